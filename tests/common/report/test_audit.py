import json
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.crypto.keys import SigningKey
from common.errors import ConfigurationError, LedgerCorrupt, LedgerNotWitnessed, PrivacyBudgetExhausted, TrustError
from common.privacy.accountant import epsilon
from common.privacy.admission import AdmissionFilter
from common.privacy.budget import PrivacyBudget, View
from common.privacy.entries import AttemptKey, EntryKind, LedgerEntry, LedgerHead, PopulationTerms, line_digest
from common.privacy.events import MechanismEvent, TrustMode
from common.privacy.ledger import BudgetLedger
from common.privacy.witness import SignedHead, WitnessBook
from common.report.audit import FAILED, NOT_WITNESSED, PopulationVerdict, _check_limits, verify_paths
from common.report.numbers import VERIFIED
from common.trust import TrustFile, write_trust

NAMES = ("north", "south", "west")
ROUNDS = 3
DIGEST = "sha256:" + "ab" * 32
BUDGET = PrivacyBudget(epsilon=3.0, epsilon_alone=6.0, delta=1e-5)
EVENT = MechanismEvent(
    mode=TrustMode.POOLED,
    noise_multiplier=12.0,
    sensitivity=1000.0,
    cohort_size=3,
    colluding=1,
    sampling_rate=1.0,
    steps=1,
    manifest_digest=DIGEST,
)


@dataclass(frozen=True)
class Run:
    root: Path
    keys: dict[str, SigningKey]

    def ledger(self, name):
        return self.root / "sites" / name / "ledger.jsonl"

    def lines(self, name):
        return self.ledger(name).read_bytes().splitlines(keepends=True)

    def rewrite(self, name, lines):
        self.ledger(name).write_bytes(b"".join(lines))

    def verdict(self, name, **options):
        return {found.site: found for found in verify_paths([self.root], **options).ledgers}[name]


def clock():
    return datetime(2026, 3, 1, tzinfo=UTC)


def write_run(root):
    """Three sites, three rounds; the coordinator and every other site hold a head of each round's reserve."""
    keys = {name: SigningKey.generate() for name in NAMES}
    books = {"coordinator": WitnessBook(root / "witnesses.jsonl", holder="coordinator")}
    ledgers = {}
    for name in NAMES:
        path = root / "sites" / name / "ledger.jsonl"
        ledgers[name] = BudgetLedger.open(path, site=name, key=keys[name], clock=clock)
        ledgers[name].open_population("patients", budget=BUDGET, admission=AdmissionFilter.gaussian())
        books[name] = WitnessBook(path.with_name("witnesses.jsonl"), holder=name)
    for round_number in range(1, ROUNDS + 1):
        answer = {"run_id": "demo", "round_number": round_number, "attempt": 0}
        for name, ledger in ledgers.items():
            ledger.reserve("patients", event=EVENT, **answer)
            for holder, book in books.items():
                if holder != name:
                    book.record(ledger.signed_head("demo"))
            if (name, round_number) == ("west", ROUNDS):
                continue
            if (name, round_number) == ("south", ROUNDS):
                ledger.burn("patients", **answer)
            else:
                ledger.settle("patients", release=DIGEST, **answer)
    for ledger in ledgers.values():
        ledger.close()
    trust = TrustFile(
        coordinator=SigningKey.generate().public_key.text,
        sites={name: key.public_key.text for name, key in keys.items()},
    )
    write_trust(root / "trust.json", trust)
    return keys


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written") / "run"
    root.mkdir()
    return Run(root, write_run(root))


@pytest.fixture
def run(written, tmp_path):
    shutil.copytree(written.root, tmp_path / "run")
    return Run(tmp_path / "run", written.keys)


def test_a_run_verifies_with_the_files_beside_its_ledgers(run):
    verdict = verify_paths([run.root])
    assert verdict.words == VERIFIED
    assert verdict.error is None
    assert [ledger.site for ledger in verdict.ledgers] == sorted(NAMES)


def test_a_single_ledger_of_a_run_finds_the_same_files(run):
    verdict = verify_paths([run.ledger("north")])
    assert verdict.words == VERIFIED
    assert verdict.ledgers[0].report.key_pinned


def test_both_epsilons_are_derived_from_the_charged_events(run):
    population = run.verdict("north").populations[0]
    events = [EVENT] * ROUNDS
    assert population.epsilon == epsilon(events, delta=1e-5, view=View.TRUSTED)
    assert population.epsilon_alone == epsilon(events, delta=1e-5, view=View.ALONE)
    assert (population.epsilon_limit, population.epsilon_alone_limit) == (3.0, 6.0)
    assert (population.delta, population.unit, population.relation) == (1e-5, "patient", "add_remove_one")


def test_unsettled_and_burned_answers_are_counted_as_spent(run):
    west, south = run.verdict("west").populations[0], run.verdict("south").populations[0]
    assert (west.charged, west.settled, west.unsettled, west.burned) == (3, 2, 1, 0)
    assert (south.charged, south.settled, south.unsettled, south.burned) == (3, 2, 0, 1)
    assert west.epsilon == south.epsilon == run.verdict("north").populations[0].epsilon


def test_the_highest_held_head_is_named(run):
    assert run.verdict("north").report.witnessed_seq == 2 * ROUNDS
    assert run.verdict("north").report.entries == 2 * ROUNDS + 1


@pytest.mark.parametrize("number", range(2 * ROUNDS + 1))
def test_a_changed_byte_is_found_and_its_entry_named(run, number):
    lines = run.lines("north")
    lines[number] = lines[number].replace(b'"v":1', b'"v":2')
    run.rewrite("north", lines)
    found = run.verdict("north")
    assert found.verdict == FAILED
    assert isinstance(found.error, LedgerCorrupt)
    assert f"north: entry {number + 1}:" in found.error.fact


def test_a_flipped_bit_is_found_wherever_it_lies(run):
    whole = run.ledger("south").read_bytes()
    for place in range(0, len(whole), 97):
        run.ledger("south").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert verify_paths([run.ledger("south")]).words == FAILED, place


def test_a_removed_line_is_found(run):
    lines = run.lines("north")
    run.rewrite("north", lines[:2] + lines[3:])
    assert "entry 3" in run.verdict("north").error.fact


def test_exchanged_lines_are_found(run):
    lines = run.lines("north")
    lines[1], lines[2] = lines[2], lines[1]
    run.rewrite("north", lines)
    assert "entry 2" in run.verdict("north").error.fact


def test_a_repeated_line_is_found(run):
    lines = run.lines("north")
    run.rewrite("north", [*lines, lines[-1]])
    assert isinstance(run.verdict("north").error, LedgerCorrupt)


@pytest.mark.parametrize("kept", range(2 * ROUNDS))
def test_a_tail_cut_before_a_held_head_is_found(run, kept):
    run.rewrite("north", run.lines("north")[:kept])
    error = run.verdict("north").error
    assert isinstance(error, LedgerCorrupt)
    assert f"entry {kept + 1}: missing" in error.fact


def test_a_tail_cut_after_the_last_held_head_is_not_found_and_the_verdict_says_up_to_where(run):
    run.rewrite("north", run.lines("north")[: 2 * ROUNDS])
    found = run.verdict("north")
    assert found.verdict == VERIFIED
    assert found.report.witnessed_seq == found.report.entries == 2 * ROUNDS


def test_a_last_line_cut_in_its_middle_is_found(run):
    whole = run.ledger("north").read_bytes()
    run.ledger("north").write_bytes(whole[:-9])
    assert isinstance(run.verdict("north").error, LedgerCorrupt)


def forge(run, name, key, rounds, event=EVENT):
    """A self-consistent ledger, written without asking any filter and signed with any key."""
    terms = PopulationTerms(site=name, public_key=key.public_key, admission=AdmissionFilter.gaussian(), budget=BUDGET)
    payloads = [(EntryKind.OPEN, None, terms)]
    for number in range(1, rounds + 1):
        answer = AttemptKey(run_id="demo", round_number=number, attempt=0)
        payloads += [(EntryKind.RESERVE, answer, event), (EntryKind.SETTLE, answer, DIGEST)]
    head, lines = LedgerHead(), []
    for kind, answer, payload in payloads:
        entry = LedgerEntry(
            seq=head.seq + 1, time="2026-03-01T00:00:00Z", population="patients", kind=kind, key=answer,
            payload=payload, prev=head.digest,
        )  # fmt: skip
        line = entry.signed_line(key)
        head = LedgerHead(seq=entry.seq, digest=line_digest(line))
        lines.append(line + b"\n")
    run.rewrite(name, lines)


def test_a_ledger_signed_anew_with_another_key_is_found(run):
    forge(run, "north", SigningKey.generate(), ROUNDS)
    error = run.verdict("north").error
    assert isinstance(error, LedgerCorrupt)
    assert "north: entry 1:" in error.fact


def test_a_history_written_anew_with_the_right_key_is_found_by_a_held_head(run):
    forge(run, "west", run.keys["west"], ROUNDS, event=replace(EVENT, noise_multiplier=20.0))
    error = run.verdict("west").error
    assert isinstance(error, LedgerCorrupt)
    assert "not the one that a witness holds" in error.fact


def test_spending_over_the_limit_is_found_though_everything_is_signed(run):
    (run.root / "witnesses.jsonl").unlink()
    forge(run, "north", run.keys["north"], 400)
    error = verify_paths([run.ledger("north")]).error
    assert isinstance(error, LedgerCorrupt)
    assert "epsilon" in error.fact


def test_a_derived_epsilon_over_its_limit_is_a_failure_with_number_and_limit():
    over = PopulationVerdict(
        name="patients", epsilon=2.0, epsilon_limit=3.0, epsilon_alone=6.1, epsilon_alone_limit=6.0, delta=1e-5,
        unit="patient", relation="add_remove_one", charged=1, settled=1, burned=0, unsettled=0,
    )  # fmt: skip
    with pytest.raises(PrivacyBudgetExhausted, match=r"epsilon alone = 6\.1000 of 6\.0000 at delta = 1e-05"):
        _check_limits([over])


def without_books(run):
    for path in run.root.rglob("witnesses.jsonl"):
        path.unlink()


def test_without_any_held_head_a_ledger_is_not_witnessed(run):
    without_books(run)
    verdict = verify_paths([run.root])
    assert verdict.words == NOT_WITNESSED
    assert isinstance(verdict.error, LedgerNotWitnessed)
    assert "nobody holds a head" in verdict.error.fact


def test_without_pinned_keys_a_ledger_is_not_witnessed_and_says_whose_key_was_used(run):
    (run.root / "trust.json").unlink()
    verdict = verify_paths([run.root])
    assert verdict.words == NOT_WITNESSED
    assert not verdict.ledgers[0].report.key_pinned
    assert "its key is the one that the ledger names itself" in verdict.error.fact


def test_a_site_that_is_not_pinned_is_not_witnessed_while_the_others_are(run):
    trust = json.loads((run.root / "trust.json").read_text())
    del trust["sites"]["west"]
    (run.root / "trust.json").write_text(json.dumps(trust))
    assert run.verdict("west").verdict == NOT_WITNESSED
    assert run.verdict("north").verdict == VERIFIED
    assert isinstance(verify_paths([run.root]).error, LedgerNotWitnessed)


def test_a_site_is_no_witness_of_itself(run):
    heads = WitnessBook(run.root / "witnesses.jsonl", holder="auditor").heads("north")
    without_books(run)
    own = WitnessBook(run.ledger("north").with_name("witnesses.jsonl"), holder="north")
    for head in heads:
        own.record(head)
    assert run.verdict("north").verdict == NOT_WITNESSED


def test_a_book_from_elsewhere_vouches_too(run, tmp_path):
    shutil.copy(run.root / "witnesses.jsonl", tmp_path / "mine.jsonl")
    without_books(run)
    assert verify_paths([run.root], witness_files=[tmp_path / "mine.jsonl"]).words == VERIFIED


def test_keys_from_elsewhere_beat_those_of_the_run(run, tmp_path):
    strangers = {name: SigningKey.generate().public_key.text for name in NAMES}
    coordinator = SigningKey.generate().public_key.text
    write_trust(tmp_path / "mine.json", TrustFile(coordinator=coordinator, sites=strangers))
    assert verify_paths([run.root], trust_file=tmp_path / "mine.json").words == FAILED


def test_a_ledger_handed_over_alone_is_self_consistent_only(run, tmp_path):
    shutil.copy(run.ledger("north"), tmp_path / "handed-over.jsonl")
    verdict = verify_paths([tmp_path / "handed-over.jsonl"])
    assert verdict.words == NOT_WITNESSED
    assert verdict.ledgers[0].site == "north"


def test_a_missing_ledger_of_a_pinned_site_is_a_failure(run):
    run.ledger("south").unlink()
    assert "south: the ledger is missing" in run.verdict("south").error.fact


def test_an_emptied_ledger_is_a_failure(run):
    run.rewrite("south", [])
    assert isinstance(run.verdict("south").error, LedgerCorrupt)


def test_swapped_ledgers_are_a_failure(run):
    north, south = run.lines("north"), run.lines("south")
    run.rewrite("north", south)
    run.rewrite("south", north)
    assert run.verdict("north").verdict == run.verdict("south").verdict == FAILED


def test_a_false_head_in_a_book_is_told_apart_from_a_corrupt_ledger(run):
    without_books(run)
    false = SignedHead.sign(SigningKey.generate(), site="north", head=LedgerHead(seq=2, digest=DIGEST), run_id="demo")
    WitnessBook(run.root / "witnesses.jsonl", holder="coordinator").record(false)
    assert isinstance(run.verdict("north").error, TrustError)


def test_every_failing_ledger_is_reported_and_the_first_kind_counts(run):
    for name in ("north", "west"):
        lines = run.lines(name)
        run.rewrite(name, lines[1:])
    verdict = verify_paths([run.root])
    assert verdict.words == FAILED
    assert isinstance(verdict.error, LedgerCorrupt)
    assert "north: entry 1" in verdict.error.fact
    assert "west: entry 1" in verdict.error.fact
    assert run.verdict("south").verdict == VERIFIED


def test_a_book_that_cannot_be_read_is_corrupt(run):
    with (run.root / "witnesses.jsonl").open("ab") as stream:
        stream.write(b"{}\n")
    with pytest.raises(LedgerCorrupt, match=r"witnesses\.jsonl, line"):
        verify_paths([run.root])


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_path_without_a_ledger_is_refused(tmp_path, make):
    make(tmp_path / "empty")
    with pytest.raises(ConfigurationError, match="ledger"):
        verify_paths([tmp_path / "empty"])


def test_a_given_file_that_is_missing_is_refused(run, tmp_path):
    with pytest.raises(ConfigurationError, match=r"mine\.jsonl"):
        verify_paths([run.root], witness_files=[tmp_path / "mine.jsonl"])
    with pytest.raises(ConfigurationError, match=r"mine\.json"):
        verify_paths([run.root], trust_file=tmp_path / "mine.json")


def test_the_json_document_is_json_and_names_everything(run):
    document = json.loads(json.dumps(verify_paths([run.root]).to_json()))
    assert document["version"] == 1
    assert document["verdict"] == VERIFIED
    ledger = document["ledgers"][0]
    assert ledger["site"] == "north"
    assert ledger["head"].startswith("sha256:")
    assert ledger["key"] == run.keys["north"].public_key.text
    assert set(ledger["populations"][0]) >= {"epsilon", "epsilon_alone", "delta", "unit", "relation", "unsettled"}


def test_a_ledger_handed_over_with_its_book_and_keys_beside_it_verifies(run, tmp_path):
    for path in (run.ledger("north"), run.root / "witnesses.jsonl", run.root / "trust.json"):
        shutil.copy(path, tmp_path / path.name)
    assert verify_paths([tmp_path / "ledger.jsonl"]).words == VERIFIED


def test_a_relative_path_finds_the_same_files(run, monkeypatch):
    monkeypatch.chdir(run.ledger("north").parent)
    assert verify_paths([Path("ledger.jsonl")]).words == VERIFIED
