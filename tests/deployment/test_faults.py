"""What goes wrong at single sites of a real consortium while it works: the others go on, nobody pays for a refusal.

The tests are one story in the order in which they stand: each leaves the consortium as the next one needs it.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment.consortium import Consortium, Running, consortium, policy_text, wait_until

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
    running.approve_everywhere(plan)
    shown = console(running, plan, "long", setup_s=8)
    says(shown, "waiting for sites west (NoAnswerYet)")
    says(shown, "3 sites; away: west (NotConnected)", "running 1/60")
    assert running.charged("west") == 0 < running.charged("south")
    running.site_up("west")
    says(shown, " 4 sites\n")
    wait_until(lambda: running.charged("west"), what="west to take part")


def test_rules_that_change_under_way_bind_the_next_attempt_and_too_few_sites_end_the_run(running: Consortium) -> None:
    shown, east, north = running.running["long"], running.sites["east"], running.home("north")
    rules = east.root / "careful.toml"
    rules.write_text(policy_text(epsilon=0.01))
    installed = east.must("site", "policy", "--install", rules, "--home", running.home("east"))
    assert "east: signed and in force" in installed.err
    says(shown, "3 sites; away: east (PrivacyBudgetExhausted)")
    charged = running.charged("east")
    says(running.running["east"], "error PrivacyBudgetExhausted, reason epsilon would reach", "of 0.010")

    (north / "policy.toml").write_text(policy_text(epsilon=100.0))
    code, text = ended(running, "long")
    assert code == 8
    assert (
        "error: 2 of 4 sites are left, the minimum cohort is 3 (east: PrivacyBudgetExhausted, north: TrustError)"
        in text
    )
    assert "hint:  what the sites spent so far stands in their ledgers" in text
    assert running.charged("east") == charged
    says(running.running["north"], "error TrustError, reason north: policy.toml is not the one this site signed. ")
    asked = running.sites["north"].fedward("site", "policy", "--home", north)
    assert asked.code == 12 and "policy.toml is not the one this site signed" in asked.err and "--install" in asked.err
    for site in ("east", "north"):
        party = running.sites[site]
        party.must("site", "policy", "--install", party.root / "rules.toml", "--home", running.home(site))


def test_a_deleted_ledger_keeps_the_agent_from_starting(running: Consortium) -> None:
    keep_ledger(running, "east", "newest")
    assert running.end("east") == 0
    home, east = running.home("east"), running.sites["east"]
    (home / "ledger.jsonl").unlink()
    for arguments in (("site", "agent"), ("site", "budget")):
        said = east.fedward(*arguments, "--home", home)
        assert said.code == 9 and "entry 1: missing; the high-water mark holds entry" in said.err
        assert "put back the newest copy of ledger.jsonl and ledger.head" in said.err
    (home / "ledger.head").unlink()
    said = east.fedward("site", "agent", "--home", home)
    assert said.code == 9 and "1 registered populations are not in this ledger" in said.err
    put_back(running, "east", "newest")
    running.site_up("east")


def test_an_old_copy_of_a_ledger_is_found_out_by_the_other_sites_and_stays_found_out(running: Consortium) -> None:
    keep_ledger(running, "north", "newest")
    assert running.end("north") == 0
    put_back(running, "north", "first")
    node = running.site_up("north")
    plan = running.plan("short", training__rounds=4)
    running.approve_everywhere(plan)
    before = running.charged("south")
    console(running, plan, "short")
    code, text = ended(running, "short")
    assert code == 0 and "completed, 4 of 4 rounds" in text and "away at the end: north (LedgerCorrupt)" in text
    assert running.charged("north") == 0 and running.charged("south") == before + 4
    says(node, "error LedgerCorrupt, reason entry", "a witness holds entry", "put back the newest copy")

    assert running.end("north") == 0
    said = running.sites["north"].fedward("site", "agent", "--home", running.home("north"))
    assert said.code == 9 and "a witness holds entry" in said.err and "put back the newest copy" in said.err
    put_back(running, "north", "newest")
    running.site_up("north")


def test_a_revoked_site_is_told_so_once_and_the_others_complete_the_plan(running: Consortium) -> None:
    plan = running.plan("short", training__rounds=4)  # approved already
    node = running.running["west"]
    shown = console(running, plan, "last", round_s=10)
    says(shown, "running 0/4, attempt 1")
    running.server.must("server", "revoke", "west", "--home", running.server_home)
    charged = running.charged("west")
    code, text = ended(running, "last")
    assert code == 0 and "completed, 4 of 4 rounds" in text and "away at the end: west (NoReply)" in text, text
    assert running.charged("west") <= charged + 1
    told = "the coordinator does not take this node's key (401). Ask the coordinator whether the site is enrolled and"
    assert node.text().count(told) == 1
    refused = [json.loads(line) for line in (running.server_home / "gateway.jsonl").read_text().splitlines()]
    assert [entry["node"] for entry in refused if entry["status"] == 401 and entry["reason"] == "revoked"]
