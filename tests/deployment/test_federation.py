"""Three sites and a coordinator, each a machine of its own with real processes: from the first key to the audit.

The tests are one story in the order in which they stand: one run of which every process is killed once, and one that
is stopped.
"""

import json
import shutil
from collections.abc import Iterator

import pytest

from tests.deployment.consortium import Consortium, consortium
from tests.deployment.waiting import wait_until
from tests.flows.federation import POPULATION

pytestmark = pytest.mark.deployment

ROUNDS = 4


@pytest.fixture(scope="module")
def running() -> Iterator[Consortium]:
    """All of it up and connected."""
    with consortium() as built:
        built.up()
        built.at_once(lambda site, _: built.site_up(site))
        yield built


@pytest.fixture(scope="module")
def run_id(running: Consortium) -> str:
    """A run under a plan that every site approved."""
    plan = running.plan("first", training__rounds=ROUNDS)
    planned = running.server.must("server", "run", plan, "--dry-run", "--home", running.server_home)
    assert "epsilon" in planned.out and running.run_ids() == []
    running.approve(plan)
    return running.begin(plan)


def kill_in_round(running: Consortium, run_id: str, number: int, *words: str) -> None:
    """SIGKILL to the only process whose command line holds these words, once all sites are charged for this round."""

    def asked() -> bool:
        return all(number in dict(running.charges(site, run_id)) for site in running.sites)

    wait_until(asked, what=f"round {number} at every site")
    (killed,) = running.processes(*words)
    running.kill(killed)


def test_a_killed_agent_and_a_killed_superlink_do_not_end_the_run(running: Consortium, run_id: str) -> None:
    kill_in_round(running, run_id, 2, "site agent", "east")
    kill_in_round(running, run_id, 2, "guarded_superlink")
    wait_until(lambda: running.rounds(run_id) >= 2, what="the round in which both were killed")
    assert "agent was killed by signal 9; it is started again" in running.running["east"].text()
    assert "superlink was killed by signal 9; it is started again" in running.running["server"].text()


def test_a_killed_courier_and_a_killed_serverapp_are_back_and_no_attempt_is_charged_twice(
    running: Consortium, run_id: str
) -> None:
    kill_in_round(running, run_id, 3, "site courier", "north")
    kill_in_round(running, run_id, 3, "flwr-serverapp")
    wait_until(lambda: running.state(run_id) == "interrupted", what="the run to be called interrupted")
    running.server.must("server", "resume", run_id, "--home", running.server_home, timeout_s=200)
    assert running.state(run_id) == "completed"
    assert running.running["north"].text().count("connected already (412)") == 1
    result = json.loads((running.server_home / "runs" / run_id / "result.json").read_bytes())
    assert result["rounds"] == ROUNDS
    for site in running.sites:
        charges = running.charges(site, run_id)
        assert len(charges) == len(set(charges)) <= result["attempts"]
        assert {round_number for round_number, _ in charges} == set(range(1, ROUNDS + 1))


def test_its_model_is_released_and_its_ledgers_pass_the_audit(running: Consortium, run_id: str) -> None:
    run_dir = running.server_home / "runs" / run_id
    assert {entry.name for entry in (run_dir / "model").iterdir()} >= {"model.safetensors"}
    audited = running.server.root / "audited"
    shutil.copytree(run_dir, audited)
    for site in running.sites:
        (audited / "sites" / site).mkdir(parents=True)
        shutil.copy(running.home(site) / "ledger.jsonl", audited / "sites" / site)
    verified = running.server.must("audit", "report", audited, "--format", "json").document()
    assert verified["verdict"] == "verified" and len(verified["ledgers"]) == 3


def test_a_run_waits_for_an_administrator_who_still_has_to_approve_and_is_closed_everywhere_when_it_is_stopped(
    running: Consortium,
) -> None:
    plan = running.plan("later", training__rounds=200, training__learning_rate=0.5, privacy__epsilon=0.9)
    running.approve(plan, "east", "north")
    run_id = running.begin(plan)
    west = running.sites["west"]

    def offered() -> list[str]:
        listed = west.must("site", "plans", "list", "--home", running.home("west"), "--format", "json").document()
        return [found["digest"] for found in listed["plans"] if found["state"] == "waiting"]

    wait_until(offered, what="the plan to be offered to west", pause_s=0.5)
    assert running.charges("east", run_id) == []
    west.must("site", "plans", "approve", offered()[0], "--home", running.home("west"), "--population", POPULATION)
    wait_until(lambda: running.rounds(run_id) >= 1, what="round 1")
    running.server.must("server", "stop", run_id, "--home", running.server_home)
    assert running.state(run_id) == "stopped"
    for site in running.sites:
        assert f"agent: close, run {run_id}" in running.running[site].text()
    again = running.server.fedward("server", "resume", run_id, "--home", running.server_home)
    assert again.code == 3 and "over" in again.err


def test_the_log_of_acts_holds_what_people_did_and_verifies(running: Consortium) -> None:
    acts = running.server.must("server", "acts", "--home", running.server_home, "--format", "json").document()
    people = ["init", *["enrol"] * len(running.sites), "run", "resume", "run", "stop"]
    assert [act["act"] for act in acts["acts"]] == people


def test_everything_ends_at_sigterm_and_nothing_stays(running: Consortium) -> None:
    assert running.end(*running.running) == {0}
    assert running.processes() == []
