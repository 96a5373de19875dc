"""Three sites and a coordinator, each a machine of its own with real processes: from the first key to the audit."""

import json
import shutil
import signal
from collections.abc import Iterator

import pytest

from tests.deployment.consortium import Consortium, consortium, wait_until
from tests.flows.federation import POPULATION

pytestmark = pytest.mark.deployment


@pytest.fixture(scope="module")
def running() -> Iterator[Consortium]:
    """All of it up and connected."""
    with consortium() as built:
        built.up()
        for site in built.sites:
            built.site_up(site)
        yield built


def test_a_plan_is_approved_trained_released_and_audited(running: Consortium) -> None:
    plan = running.plan("first")
    planned = running.server.must("server", "run", plan, "--dry-run", "--home", running.server_home)
    assert "epsilon" in planned.out and running.run_ids() == []
    running.approve_everywhere(plan)
    done = running.server.must("server", "run", plan, "--home", running.server_home, "--format", "json").document()
    assert done["state"] == "completed" and done["rounds"] == 6
    run_dir = running.server_home / "runs" / done["run_id"]
    assert {entry.name for entry in (run_dir / "model").iterdir()} >= {"model.safetensors"}
    assert {running.charged(site) for site in running.sites} == {6}
    audited = running.server.root / "audited"
    shutil.copytree(run_dir, audited)
    for site in running.sites:
        (audited / "sites" / site).mkdir(parents=True)
        shutil.copy(running.home(site) / "ledger.jsonl", audited / "sites" / site)
    verified = running.server.must("audit", "report", audited, "--format", "json").document()
    assert verified["verdict"] == "verified" and len(verified["ledgers"]) == 3


def test_a_run_waits_for_an_administrator_who_still_has_to_approve(running: Consortium) -> None:
    plan = running.plan("later", training__learning_rate=0.5)
    for site in ("east", "north"):
        running.sites[site].must(
            "site", "plans", "approve", plan, "--home", running.home(site), "--population", POPULATION
        )
    run_id = running.begin(plan)
    west = running.sites["west"]

    def offered() -> list[str]:
        listed = west.must("site", "plans", "list", "--home", running.home("west"), "--format", "json").document()
        return [found["digest"] for found in listed["plans"] if found["state"] == "waiting"]

    wait_until(offered, what="the plan to be offered to west", pause_s=1.0)
    assert running.charged("east") == 6
    west.must("site", "plans", "approve", offered()[0], "--home", running.home("west"), "--population", POPULATION)
    assert running.finish(run_id) == "completed"
    assert {running.charged(site) for site in running.sites} == {12}


def test_killed_agent_courier_and_superlink_cost_neither_the_run_nor_a_second_charge(running: Consortium) -> None:
    before = {site: running.charged(site) for site in running.sites}
    plan = running.plan("killed", training__rounds=12, training__learning_rate=0.25)
    running.approve_everywhere(plan)
    run_id = running.begin(plan)
    for words, rounds in ((("site agent", "east"), 2), (("site courier", "north"), 4), (("flower-superlink",), 7)):
        wait_until(lambda reached=rounds: running.rounds(run_id) >= reached, what=f"round {rounds}")
        killed = running.processes(*words)
        assert len(killed) == 1, (words, killed)
        running.kill(killed[0], signal.SIGKILL)
    assert running.finish(run_id) == "completed"
    result = json.loads((running.server_home / "runs" / run_id / "result.json").read_bytes())
    assert result["rounds"] == 12
    for site in running.sites:
        assert running.charged(site) - before[site] <= result["attempts"]


def test_a_killed_serverapp_is_resumed_without_a_second_charge(running: Consortium) -> None:
    before = {site: running.charged(site) for site in running.sites}
    plan = running.plan("resumed", training__rounds=6, training__learning_rate=0.125)
    running.approve_everywhere(plan)
    run_id = running.begin(plan)
    wait_until(lambda: running.rounds(run_id) >= 3, what="round 3")
    for process in running.processes("flwr-serverapp"):
        running.kill(process, signal.SIGKILL)
    wait_until(lambda: running.state(run_id) == "interrupted", what="the run to be called interrupted", pause_s=1.0)
    running.server.must("server", "resume", run_id, "--home", running.server_home, timeout_s=200)
    assert running.state(run_id) == "completed"
    result = json.loads((running.server_home / "runs" / run_id / "result.json").read_bytes())
    assert result["rounds"] == 6
    for site in running.sites:
        assert running.charged(site) - before[site] == result["attempts"]


def test_a_stopped_run_is_closed_at_every_site(running: Consortium) -> None:
    plan = running.plan("stopped", training__rounds=200, training__learning_rate=0.0625, privacy__epsilon=0.9)
    running.approve_everywhere(plan)
    run_id = running.begin(plan)
    wait_until(lambda: running.rounds(run_id) >= 2, what="round 2")
    running.server.must("server", "stop", run_id, "--home", running.server_home)
    assert running.state(run_id) == "stopped"
    again = running.server.fedward("server", "resume", run_id, "--home", running.server_home)
    assert again.code == 3 and "over" in again.err


def test_the_log_of_acts_holds_what_people_did_and_verifies(running: Consortium) -> None:
    acts = running.server.must("server", "acts", "--home", running.server_home, "--format", "json").document()
    assert [act["act"] for act in acts["acts"]][:2] == ["init", "enrol"]
    assert {"run", "resume", "stop"} <= {act["act"] for act in acts["acts"]}


def test_everything_ends_at_sigterm_and_nothing_stays(running: Consortium) -> None:
    assert {running.end(name) for name in list(running.running)} == {0}
    assert running.processes() == []
