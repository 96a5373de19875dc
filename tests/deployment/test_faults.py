"""What goes wrong at single sites of a real consortium while it works: the others go on, nobody pays for a refusal.

The tests are one story in the order in which they stand: each leaves the consortium as the next one needs it.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment.consortium import Consortium, Running, consortium, policy_text
from tests.deployment.waiting import wait_until

pytestmark = pytest.mark.deployment

SITES = ("east", "north", "south", "west")
END_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def running() -> Iterator[Consortium]:
    """Coordinator, east, north and south are up; west is there and off."""
    with consortium(sites=SITES) as built:
        built.up()
        built.at_once(lambda site, _: built.site_up(site), "east", "north", "south")
        for site in SITES:
            keep_ledger(built, site, "first")
        yield built


def keep_ledger(running: Consortium, site: str, name: str) -> None:
    """Copy a ledger and its high-water mark aside, as a backup would."""
    aside = running.sites[site].root / name
    aside.mkdir()
    for file in ("ledger.jsonl", "ledger.head"):
        shutil.copy(running.home(site) / file, aside)


def put_back(running: Consortium, site: str, name: str) -> None:
    """Put that copy in the place of what is there."""
    shutil.copytree(running.sites[site].root / name, running.home(site), dirs_exist_ok=True)


def console(running: Consortium, plan: Path, name: str, *, setup_s: int = 30, round_s: int = 20) -> Running:
    """`fedward server run` as a person watches it."""
    log, arguments = running.root / f"{name}.log", ["server", "run", plan, "--home", running.server_home]
    arguments += ["--setup-timeout", str(setup_s), "--round-timeout", str(round_s)]
    return running.start(name, running.server, *arguments, ready=lambda: log.read_text().startswith("run "))


def ended(running: Consortium, name: str) -> tuple[int, str]:
    """How a console ended, and all that it showed."""
    shown = running.running.pop(name)
    return shown.process.wait(END_TIMEOUT_S), shown.text()


def says(shown: Running, *words: str) -> None:
    """Wait for words on a console or in a node's output."""
    wait_until(lambda: all(word in shown.text() for word in words), what=f"{words}", says=shown.text)


def test_a_run_waits_for_sites_goes_on_without_one_and_lets_it_in_when_it_comes(running: Consortium) -> None:
    plan = running.plan("long", training__rounds=60, training__learning_rate=0.25)
    running.approve(plan)
    shown = console(running, plan, "long", setup_s=6, round_s=10)
    says(shown, "waiting for sites west (NoAnswerYet)")
    says(shown, "3 sites; away: west (NotConnected)", "running 1/60")
    assert running.charged("west") == 0 < running.charged("south")
    running.site_up("west")
    says(shown, " 4 sites\n")
    wait_until(lambda: running.charged("west"), what="west to take part")


def test_rules_that_change_under_way_bind_the_next_attempt_and_the_others_go_on(running: Consortium) -> None:
    shown, east = running.running["long"], running.sites["east"]
    rules = east.root / "careful.toml"
    rules.write_text(policy_text(epsilon=0.01))
    installed = east.must("site", "policy", "--install", rules, "--home", running.home("east"))
    assert "east: signed and in force" in installed.err
    says(shown, "3 sites; away: east (PrivacyBudgetExhausted)")
    charged, done = running.charged("east"), running.charged("south")
    says(running.running["east"], "error PrivacyBudgetExhausted, reason epsilon would reach", "of 0.010")
    wait_until(lambda: running.charged("south") > done, what="the others to go on")
    assert running.charged("east") == charged
    east.must("site", "policy", "--install", east.root / "rules.toml", "--home", running.home("east"))
    running.server.must("server", "stop", running.run_ids()[-1], "--home", running.server_home)
    code, text = ended(running, "long")
    assert code != 0 and "stopped" in text, text


def test_a_revoked_site_is_told_so_once_and_the_run_goes_on_to_its_end_without_it(running: Consortium) -> None:
    plan = running.plan("shrinking", training__rounds=12)
    running.approve(plan)
    shown = console(running, plan, "shrinking")
    says(shown, "running 2/12", " 4 sites\n")
    node, charged = running.running["west"], running.charged("west")
    running.server.must("server", "revoke", "west", "--home", running.server_home)
    says(shown, "3 sites; away: west (Revoked)")
    code, text = ended(running, "shrinking")
    assert code == 0 and "12 of 12 rounds" in text, text
    assert running.charged("west") <= charged + 1
    told = "the coordinator does not take this node's key (401). Ask the coordinator whether the site is enrolled and"
    assert node.text().count(told) == 1
    refused = [json.loads(line) for line in (running.server_home / "gateway.jsonl").read_text().splitlines()]
    assert [entry["node"] for entry in refused if entry["status"] == 401 and entry["reason"] == "revoked"]


def test_a_deleted_ledger_keeps_the_agent_from_starting(running: Consortium) -> None:
    keep_ledger(running, "north", "newest")
    assert running.end("north") == {0}
    home, north = running.home("north"), running.sites["north"]
    (home / "ledger.jsonl").unlink()
    for arguments in (("site", "agent"), ("site", "budget")):
        said = north.fedward(*arguments, "--home", home)
        assert said.code == 9 and "entry 1: missing; the high-water mark holds entry" in said.err
        assert "put back the newest copy of ledger.jsonl and ledger.head" in said.err
    (home / "ledger.head").unlink()
    said = north.fedward("site", "agent", "--home", home)
    assert said.code == 9 and "1 registered populations are not in this ledger" in said.err


def test_an_old_copy_of_a_ledger_is_found_out_by_the_other_sites_stays_found_out_and_costs_them_nothing(
    running: Consortium,
) -> None:
    put_back(running, "north", "first")
    node = running.site_up("north")
    plan = running.plan("short", training__rounds=2)
    running.approve(plan)
    before = running.charged("south")
    console(running, plan, "short")
    code, text = ended(running, "short")
    assert code == 8 and "error: 2 of 3 sites are left, the minimum cohort is 3 (north: LedgerCorrupt)" in text, text
    assert "hint:  what the sites spent so far stands in their ledgers" in text
    assert running.charged("north") == 0 and running.charged("south") == before
    says(node, "error LedgerCorrupt, reason entry", "a witness holds entry", "put back the newest copy")

    assert running.end("north") == {0}
    said = running.sites["north"].fedward("site", "agent", "--home", running.home("north"))
    assert said.code == 9 and "a witness holds entry" in said.err and "put back the newest copy" in said.err
    put_back(running, "north", "newest")
    running.site_up("north")
