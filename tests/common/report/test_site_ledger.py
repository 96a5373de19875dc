"""A site's own ledger: read without passphrase or lock, budgeted, shown and exported."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from common.crypto.keys import SigningKey
from common.errors import ConfigurationError, LedgerCorrupt, OutputExists
from common.privacy.accountant import epsilon
from common.privacy.admission import AdmissionFilter
from common.privacy.budget import PrivacyBudget, PrivacyUnit, View
from common.privacy.events import EventKind, MechanismEvent, TrustMode
from common.privacy.ledger import BudgetLedger
from common.privacy.verify import verify_ledger
from common.report.audit import verify_paths
from common.report.ledger_export import COLUMNS, export_document, ledger_bytes, write_export
from common.report.ledger_text import ledger_text
from common.report.plan_forecast import read_plan
from common.report.site_budget import budget_document
from common.report.site_budget_text import budget_text
from common.report.site_ledger import read_site_ledger

STORED = Path(__file__).parents[2] / "vectors" / "formats" / "v1"
SITE = "hospital-4"
Maker = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A copy of a real site's public files: five entries, one answer settled, one burned."""
    copied = tmp_path / SITE
    copied.mkdir()
    for name in ("site.json", "ledger.jsonl", "ledger.head"):
        shutil.copy(STORED / "sites" / SITE / name, copied)
    return copied


@pytest.fixture(scope="module")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A site with one population, its filter chosen by `sampling_rate`, and some charges."""

    def make(
        *,
        count: int = 3,
        sampling_rate: float = 1.0,
        limit: float = 3.0,
        population: str = "ward",
        unit: str = "patient",
    ) -> Path:
        root = tmp_path_factory.mktemp("home")
        key = SigningKey.generate()
        document = {"version": 1, "name": "north", "public_key": key.public_key.text}
        (root / "site.json").write_text(json.dumps(document))
        budget = PrivacyBudget(epsilon=limit, epsilon_alone=3 * limit, delta=1e-5, unit=PrivacyUnit(unit))
        admission = AdmissionFilter.gaussian() if sampling_rate == 1 else AdmissionFilter.rdp(budget)
        event = MechanismEvent(
            mode=TrustMode.POOLED if sampling_rate == 1 else TrustMode.LOCAL,
            noise_multiplier=20.0 if sampling_rate == 1 else 2.0,
            sensitivity=1100.5,
            cohort_size=4,
            colluding=1,
            sampling_rate=sampling_rate,
            steps=1 if sampling_rate == 1 else 10,
            manifest_digest="sha256:" + "ab" * 32,
        )
        with BudgetLedger.open(root / "ledger.jsonl", site="north", key=key) as ledger:
            ledger.open_population(population, budget=budget, admission=admission)
            for number in range(1, count + 1):
                ledger.reserve(population, run_id="run-1", round_number=number, attempt=1, event=event)
        return root

    return make


def budget_of(home: Path, **asked: object) -> dict:
    document = budget_document(read_site_ledger(home), **({"rounds": 30} | asked))  # type: ignore[arg-type]
    return document["populations"][0]


# Reading


def test_it_is_read_while_an_agent_holds_the_lock(make_home: Maker) -> None:
    home = make_home(count=0)
    key = SigningKey.generate()
    (home / "site.json").write_text(json.dumps({"version": 1, "name": "south", "public_key": key.public_key.text}))
    (home / "ledger.jsonl").unlink()
    (home / "ledger.head").unlink()
    budget = PrivacyBudget(epsilon=3.0, epsilon_alone=9.0, delta=1e-5)
    with BudgetLedger.open(home / "ledger.jsonl", site="south", key=key) as ledger:
        ledger.open_population("ward", budget=budget, admission=AdmissionFilter.gaussian())
        assert read_site_ledger(home).head == ledger.head


def test_reading_writes_nothing(home: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in home.iterdir()}
    budget_document(read_site_ledger(home), rounds=30)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in home.iterdir()} == before


def test_a_line_that_is_just_being_written_is_left_out(home: Path) -> None:
    whole = read_site_ledger(home)
    with (home / "ledger.jsonl").open("ab") as stream:
        stream.write(b'{"attempt":1,"event":nul')
    assert read_site_ledger(home).head == whole.head


def test_a_changed_entry_is_named(home: Path) -> None:
    content = (home / "ledger.jsonl").read_bytes()
    (home / "ledger.jsonl").write_bytes(content.replace(b'"round":2', b'"round":7', 1))
    with pytest.raises(LedgerCorrupt, match="hospital-4: entry 4:"):
        read_site_ledger(home)


def test_a_ledger_that_was_cut_behind_its_mark_is_refused(home: Path) -> None:
    lines = (home / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (home / "ledger.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(LedgerCorrupt, match="entry 5: missing; the high-water mark holds entry 5"):
        read_site_ledger(home)


def test_a_ledger_without_its_mark_is_refused(home: Path) -> None:
    (home / "ledger.head").unlink()
    with pytest.raises(LedgerCorrupt, match=r"ledger\.head is missing"):
        read_site_ledger(home)


def test_a_ledger_under_another_key_is_refused(home: Path) -> None:
    other = SigningKey.generate().public_key.text
    (home / "site.json").write_text(json.dumps({"version": 1, "name": SITE, "public_key": other}))
    with pytest.raises(LedgerCorrupt, match="entry 1"):
        read_site_ledger(home)


def test_a_directory_without_a_site_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no site lives here") as refused:
        read_site_ledger(tmp_path)
    assert "--home DIR" in refused.value.hint


def test_a_ledger_that_was_deleted_is_missed(home: Path) -> None:
    (home / "ledger.jsonl").unlink()
    with pytest.raises(LedgerCorrupt, match="entry 1: missing; the high-water mark holds entry 5") as refused:
        read_site_ledger(home)
    assert "put back the newest copy" in refused.value.hint


def test_a_site_without_a_ledger_says_what_to_do(home: Path) -> None:
    (home / "ledger.jsonl").unlink()
    (home / "ledger.head").unlink()
    with pytest.raises(ConfigurationError, match="there is no ledger yet") as refused:
        read_site_ledger(home)
    assert "register a data set" in refused.value.hint


# Budget


def test_the_spend_is_the_one_that_an_audit_finds(home: Path) -> None:
    (audited,) = (ledger for ledger in verify_paths([STORED]).ledgers if ledger.site == SITE)
    views = budget_of(home)["views"]
    assert views["epsilon"]["spent"] == audited.populations[0].epsilon
    assert views["epsilon_alone"]["spent"] == audited.populations[0].epsilon_alone
    assert (views["epsilon"]["limit"], views["epsilon_alone"]["limit"]) == (3.0, 6.0)


def test_every_charged_answer_stands_in_one_state_and_the_parts_add_up(home: Path) -> None:
    population = budget_of(home)
    answers = population["answers"]
    assert (answers["charged"], answers["settled"], answers["burned"], answers["reserved"]) == (
        2,
        {"answers": 1, "room_used": pytest.approx({"epsilon": 0.25, "epsilon_alone": 0.2253}, abs=1e-3)},
        {"answers": 1, "room_used": pytest.approx({"epsilon": 0.25, "epsilon_alone": 0.2253}, abs=1e-3)},
        {"answers": 0, "room_used": {"epsilon": 0.0, "epsilon_alone": 0.0}},
    )
    for view in View:
        parts = sum(answers[state]["room_used"][view.value] for state in ("settled", "burned", "reserved"))
        assert parts == pytest.approx(population["views"][view.value]["room_used"])


def test_as_many_more_fit_as_the_ledger_then_admits(make_home: Maker) -> None:
    home = make_home(count=3)
    ledger = read_site_ledger(home)
    account, event = ledger.populations["ward"], ledger.populations["ward"].events[0]
    fits = budget_of(home)["forecast"]["fits"]
    account.check_affordable(event, times=fits)
    assert account.fitting(event) == fits > 0
    assert account.fitting(event, at_most=2) == 2
    with pytest.raises(Exception, match="would reach"):
        account.check_affordable(event, times=fits + 1)


def evaluated(home: Path, *, rounds: Sequence[int]) -> Path:
    """The same site after evaluations of its run, in a copy."""
    copied = Path(shutil.copytree(home, home.with_name(f"{home.name}-evaluated")))
    key = SigningKey.generate()
    (copied / "ledger.head").unlink()
    (copied / "site.json").write_text(json.dumps({"version": 1, "name": "north", "public_key": key.public_key.text}))
    account = read_site_ledger(home).populations["ward"]
    (copied / "ledger.jsonl").unlink()
    histogram = replace(account.events[-1], kind=EventKind.SCORE_HISTOGRAM)
    with BudgetLedger.open(copied / "ledger.jsonl", site="north", key=key) as ledger:
        ledger.open_population("ward", budget=account.budget, admission=account.terms.admission)
        for charged, event in account.charges.items():
            ledger.reserve(
                "ward", run_id=charged.run_id, round_number=charged.round_number, attempt=1, event=event.event
            )
        for number in rounds:
            ledger.reserve("ward", run_id="run-1:evaluation", round_number=number, attempt=1, event=histogram)
    return copied


def test_the_forecast_counts_the_evaluations_that_come_with_its_rounds(make_home: Maker) -> None:
    """The evaluation has the noise of a round here, so that 30 rounds with one after every 2 cost as much as 45."""
    home = evaluated(make_home(count=5, limit=9.0), rounds=[2, 4])
    found, account = budget_of(home)["forecast"], read_site_ledger(home).populations["ward"]
    assert (found["evaluation"]["every"], found["round"]) == (2, 5)
    as_rounds = [account.events[0]] * (len(account.events) + 45)
    assert found["after_rounds"]["epsilon"] == pytest.approx(epsilon(as_rounds, delta=1e-5, view=View.TRUSTED))
    room = account.fitting(account.events[0])
    assert found["fits"] + -(-found["fits"] // 2) <= room < found["fits"] + 1 + -(-(found["fits"] + 1) // 2)
    text = budget_text(budget_document(read_site_ledger(home), rounds=30))
    assert "an evaluation after every 2 rounds counted too" in " ".join(text.split())


def test_a_forecast_says_that_it_knows_of_no_evaluation(make_home: Maker) -> None:
    home = make_home(count=3)
    assert budget_of(home)["forecast"]["evaluation"] is None
    text = budget_text(budget_document(read_site_ledger(home), rounds=30))
    assert "no evaluation so far, and none is counted" in " ".join(text.split())


def test_the_forecast_of_full_batches_ends_at_the_limit(make_home: Maker) -> None:
    forecast = budget_of(make_home(count=3))["forecast"]
    assert 2.95 < forecast["then"]["epsilon"] <= 3.0
    assert forecast["rounds_fit"] == (forecast["fits"] >= 30)


def test_a_sampled_forecast_ends_below_the_limit_because_of_the_filter(make_home: Maker) -> None:
    population = budget_of(make_home(count=3, sampling_rate=0.05))
    assert population["filter"]["kind"] == "rdp"
    assert population["views"]["epsilon"]["spent"] < population["views"]["epsilon"]["spent_by_filter"]
    assert population["forecast"]["then"]["epsilon"] < 3.0


def test_what_is_left_is_what_one_more_plan_may_cost(make_home: Maker) -> None:
    untouched = budget_of(make_home(count=0))["views"]["epsilon"]
    assert untouched["left"] == pytest.approx(3.0, abs=1e-6)
    assert budget_of(make_home(count=0))["forecast"] is None
    used = budget_of(make_home(count=20))["views"]["epsilon"]
    assert used["limit"] - used["spent"] < used["left"] < 3.0


def test_a_plan_is_forecast_as_a_whole(home: Path) -> None:
    plan = read_plan(STORED / "plan.json")
    forecast = budget_of(home, plan=plan)["plan"]
    assert (forecast["attempts"], forecast["sites"], forecast["colluding"]) == (4, 4, 1)
    assert forecast["cost"]["epsilon"] == pytest.approx(3.0, abs=1e-6)
    assert not forecast["fits"]
    assert "epsilon would reach 3.779 of 3.000" in forecast["refused"][0]


def test_a_plan_that_fits_is_said_to_fit(make_home: Maker) -> None:
    forecast = budget_of(make_home(count=0, limit=6.0), plan=read_plan(STORED / "plan.json"), sites=4)["plan"]
    assert forecast["fits"] and forecast["refused"] == []


def test_more_sites_leave_less_noise_from_each(make_home: Maker) -> None:
    home, plan = make_home(count=3), read_plan(STORED / "plan.json")
    few, many = (budget_of(home, plan=plan, sites=sites)["plan"]["cost"] for sites in (3, 12))
    assert few["epsilon"] == many["epsilon"]
    assert few["epsilon_alone"] < many["epsilon_alone"]


def test_a_plan_of_another_unit_is_said_to_be_refused(make_home: Maker) -> None:
    forecast = budget_of(make_home(count=3, unit="record", limit=30.0), plan=read_plan(STORED / "plan.json"))["plan"]
    assert forecast["refused"] == ["the plan protects each patient, the budget each record"]


def test_without_a_charge_the_number_of_sites_must_be_said(make_home: Maker) -> None:
    with pytest.raises(ConfigurationError, match="how many sites") as refused:
        budget_of(make_home(count=0), plan=read_plan(STORED / "plan.json"))
    assert "--sites N" in refused.value.hint


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"plan": 7}', b"\xff"])
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"plan\.json"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("rounds", [0, -1, 10**10])
def test_an_absurd_number_of_rounds_is_refused(home: Path, rounds: int) -> None:
    with pytest.raises(ValueError, match=str(rounds)):
        budget_of(home, rounds=rounds)


@pytest.mark.parametrize("sampling_rate", [1.0, 0.05])
def test_the_text_is_at_most_100_columns_and_shows_delta_unit_and_relation(
    make_home: Maker, sampling_rate: float
) -> None:
    home = make_home(sampling_rate=sampling_rate)
    plan = read_plan(STORED / "plan.json")
    text = budget_text(budget_document(read_site_ledger(home), rounds=30, plan=plan))
    assert max(map(len, text.splitlines())) <= 100
    assert "δ = 1e-05, per patient, add/remove-one" in text


def test_the_text_of_a_sampled_population_says_why_the_filter_refuses_early(make_home: Maker) -> None:
    text = budget_text(budget_document(read_site_ledger(make_home(sampling_rate=0.05)), rounds=30))
    assert "may refuse before the ε above reaches its limit" in " ".join(text.split())


# Entries and export


def test_entries_are_shown_newest_last(home: Path) -> None:
    lines = ledger_text(read_site_ledger(home), last=0).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["1", "2", "3", "4", "5"]
    assert "burned: never left, stays charged" in lines[5]
    assert max(map(len, lines)) <= 120


def test_only_the_newest_entries_are_shown_and_it_says_so(home: Path) -> None:
    text = ledger_text(read_site_ledger(home), last=2)
    assert text.startswith("3 earlier entries are not shown")
    assert "opened" not in text


def test_an_exported_json_verifies_to_the_same_events(home: Path, tmp_path: Path) -> None:
    ledger = read_site_ledger(home)
    write_export(ledger, tmp_path / "out.json", force=False)
    document = json.loads((tmp_path / "out.json").read_bytes())
    content = ledger_bytes(document)
    assert content == (home / "ledger.jsonl").read_bytes()
    report = verify_ledger(content, key=ledger.key, site=document["site"])
    assert report.populations["nuclei"].events == ledger.populations["nuclei"].events
    assert document["head"] == document["ledger"][-1]["digest"] == report.head.digest


def test_a_csv_has_a_row_an_entry_with_flat_event_fields(home: Path, tmp_path: Path) -> None:
    ledger = read_site_ledger(home)
    write_export(ledger, tmp_path / "out.csv", force=False)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert [row["kind"] for row in rows] == ["open", "reserve", "settle", "reserve", "burn"]
    assert tuple(rows[0]) == COLUMNS
    assert float(rows[1]["noise_multiplier"]) == ledger.populations["nuclei"].events[0].noise_multiplier
    assert rows[-1]["digest"] == ledger.head.digest


def test_the_filters_epsilon_after_each_entry_grows_to_what_the_filter_proves_at_the_end(make_home: Maker) -> None:
    ledger = read_site_ledger(make_home(count=5, sampling_rate=0.05))
    reached = [entry["epsilon_by_filter"] for entry in export_document(ledger)["ledger"]]
    assert reached == sorted(reached) and reached[0] == 0.0
    account = ledger.populations["ward"]
    assert reached[-1] == account.terms.admission.reached_epsilon(account.cost, 1e-5, View.TRUSTED)


@pytest.mark.parametrize("name", ["=1+1", "  =1+1", "@sum"])
def test_a_name_that_a_spreadsheet_would_run_is_quoted(make_home: Maker, tmp_path: Path, name: str) -> None:
    write_export(read_site_ledger(make_home(population=name)), tmp_path / "out.csv", force=False)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert {row["population"] for row in rows} == {f"'{name}"}


def test_a_file_that_is_there_is_replaced_only_by_force(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("mine")
    with pytest.raises(OutputExists, match=r"out\.csv"):
        write_export(read_site_ledger(home), path, force=False)
    assert path.read_text() == "mine"
    write_export(read_site_ledger(home), path, force=True)
    assert path.read_text().startswith("seq,time")


@pytest.mark.parametrize("name", ["out.txt", "out"])
def test_another_ending_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\.json or \.csv"):
        write_export(read_site_ledger(home), tmp_path / name, force=False)


@pytest.mark.parametrize("document", [{}, {"version": 2, "ledger": []}, {"version": 1, "ledger": [{}]}])
def test_what_is_no_export_is_refused(document: dict) -> None:
    with pytest.raises(ConfigurationError):
        ledger_bytes(document)
