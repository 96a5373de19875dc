"""`fedward audit report` over the files of real runs, whole and tampered with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.privacy.accountant import epsilon
from common.privacy.budget import View
from tests.flows.federation import POPULATION, RUN_ID, Federation, lost_at, make_federation, make_plan

SITE = "north"


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Three rounds; south's first answer to round 2 gets lost, so that the round is tried again without it."""
    federation = make_federation(tmp_path_factory.mktemp("reported") / "run", sites=4, plan=make_plan(rounds=3))
    with federation.agents() as agents:
        federation.train({**agents, "south": lost_at(agents["south"], (2, 1))})
    return federation


@pytest.fixture
def run(made_run: Federation, tmp_path: Path) -> Federation:
    return made_run.copy_to(tmp_path / "run")


def written(directory: Path) -> tuple[dict[str, Any], str]:
    document = json.loads((directory / "audit-report.json").read_bytes())
    return document, (directory / "audit-report.html").read_text(encoding="utf-8")


def test_a_real_run_is_reported_in_plain_words(run: Federation, fedward, tmp_path: Path) -> None:
    ended = fedward("audit", "report", run.root, "--out", tmp_path / "out")
    document, page = written(tmp_path / "out")
    assert (ended.code, ended.err, document["verdict"]) == (0, "", "verified")
    assert {ledger["site"] for ledger in document["ledgers"]} == set(run.names)
    (north,) = (ledger for ledger in document["ledgers"] if ledger["site"] == SITE)
    labels = [(event["label"], event["state"]) for event in north["populations"][0]["events"]]
    assert labels[0] == ("Rounds 1–3, attempt 1 each", "settled")
    assert ("Round 2, attempt 2", "settled") in labels
    assert "clipped to norm 1 and summed" in page
    assert document["runs"][0]["plan_digest"] == run.plan.digest
    assert document["runs"][0]["signatures_checked"][:2] == ["plan.json", "manifest.json"]


def test_the_reported_epsilons_follow_from_what_the_sites_charged(run: Federation, fedward, tmp_path: Path) -> None:
    fedward("audit", "report", run.root, "--out", tmp_path / "out")
    document, _ = written(tmp_path / "out")
    for ledger in document["ledgers"]:
        with run.ledger(ledger["site"]) as opened:
            account = opened.account(POPULATION)
            (population,) = ledger["populations"]
            for view in View:
                told = epsilon(account.events, delta=account.budget.delta, view=view)
                assert population[view.value]["value"] == told
            assert population["charged"] == account.reserves
            assert population["filter"]["admits_more"] == account.fitting(account.events[-1])


def test_a_tampered_run_is_reported_with_the_exit_code_of_verify(run: Federation, fedward, tmp_path: Path) -> None:
    path = run.homes[SITE].ledger_path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    verified = fedward("audit", "verify", run.root)
    ended = fedward("audit", "report", run.root, "--out", tmp_path / "out")
    assert (ended.code, ended.err) == (verified.code, verified.err)
    document, page = written(tmp_path / "out")
    assert document["exit_code"] == 9
    assert f"{SITE}: entry 3: numbered 4" in page
    assert "what was spent in all is unknown" in page


def test_ledgers_of_several_runs_and_one_alone_make_one_report(
    run: Federation, made_local_federation: Federation, fedward, tmp_path: Path
) -> None:
    other = made_local_federation.copy_to(tmp_path / "other")
    with other.agents() as agents:
        other.train(agents)
    alone = tmp_path / "handed-over.jsonl"
    shutil.copy(run.homes[SITE].ledger_path, alone)
    ended = fedward("audit", "report", run.root, other.root, alone, "--out", tmp_path / "out")
    document, page = written(tmp_path / "out")
    assert ended.code == 0
    assert [found["run_id"] for found in document["runs"]] == [RUN_ID, RUN_ID]
    judged = {ledger["path"]: ledger["verdict"] for ledger in document["ledgers"]}
    assert (judged[str(alone)], len(judged)) == ("verified", 2 * len(run.names) + 1)
    assert "all of it the site’s own" in page


def test_a_run_without_its_ledgers_is_reported_with_those_that_are_handed_over(
    run: Federation, fedward, tmp_path: Path
) -> None:
    ledgers = [shutil.copy(home.ledger_path, tmp_path / f"from-{name}.jsonl") for name, home in run.homes.items()]
    shutil.rmtree(run.root / "sites")
    ended = fedward("audit", "report", run.root, *ledgers, "--out", tmp_path / "out")
    document, _ = written(tmp_path / "out")
    assert (ended.code, ended.err, document["verdict"]) == (0, "", "verified")
    assert [ledger["site"] for ledger in document["ledgers"]] == sorted(run.names)
    assert [found["run_id"] for found in document["runs"]] == [RUN_ID]


def test_a_ledger_that_nobody_handed_over_is_named_with_what_to_do(run: Federation, fedward, tmp_path: Path) -> None:
    ledger = shutil.copy(run.homes[SITE].ledger_path, tmp_path / "north.jsonl")
    shutil.rmtree(run.root / "sites")
    ended = fedward("audit", "report", run.root, ledger, "--out", tmp_path / "out")
    assert ended.code == 9
    assert "south: the ledger is missing" in ended.err and "give its ledger as one more path" in ended.err
    assert "north: the ledger" not in ended.err


def test_reporting_changes_no_file_of_the_run(run: Federation, fedward, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    fedward("audit", "report", run.root, "--out", tmp_path / "out")
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before


def test_a_report_names_no_patient(run: Federation, fedward, tmp_path: Path) -> None:
    fedward("audit", "report", run.root, "--out", tmp_path / "out")
    document, page = written(tmp_path / "out")
    said = (json.dumps(document, ensure_ascii=False) + page).casefold()
    texts = {text for texts in run.identifiers for text in texts if len(text) > 5}
    assert not [text for text in texts if text.casefold() in said]
