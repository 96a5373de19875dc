"""`fedward audit verify` over the files of a real run that somebody tampered with."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.canonical import ZERO_DIGEST
from common.crypto.keys import SigningKey
from common.errors import LedgerCorrupt
from common.privacy.entries import PopulationTerms, line_digest, parse_line
from tests.flows.federation import POPULATION, Federation, make_federation, make_plan

SITE = "north"
Lines = list[bytes]


@pytest.fixture(scope="module")
def made_finished(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    federation = make_federation(tmp_path_factory.mktemp("finished") / "run", sites=3, plan=make_plan(rounds=2))
    with federation.agents() as agents:
        federation.train(agents)
    return federation


@pytest.fixture
def finished(made_finished: Federation, tmp_path: Path) -> Federation:
    return made_finished.copy_to(tmp_path / "run")


def rewrite(federation: Federation, change: Callable[[Lines], Lines]) -> None:
    path = federation.homes[SITE].ledger_path
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))


def with_a_byte_changed(lines: Lines) -> Lines:
    return [*lines[:2], lines[2].replace(b'"attempt":1', b'"attempt":2'), *lines[3:]]


def without_a_line(lines: Lines) -> Lines:
    return [*lines[:2], *lines[3:]]


def in_another_order(lines: Lines) -> Lines:
    return [lines[0], lines[3], lines[4], lines[1], lines[2]]


def without_its_tail(lines: Lines) -> Lines:
    return lines[:-1]


def signed_anew(lines: Lines) -> Lines:
    """The whole history under a fresh key, with a chain that holds."""
    key, prev, written = SigningKey.generate(), ZERO_DIGEST, []
    for line in lines:
        entry, _ = parse_line(line)
        if isinstance(entry.payload, PopulationTerms):
            entry = replace(entry, payload=replace(entry.payload, public_key=key.public_key))
        written.append(replace(entry, prev=prev).signed_line(key))
        prev = line_digest(written[-1])
    return written


def test_the_ledgers_of_a_run_verify(finished: Federation, fedward) -> None:
    ended = fedward("audit", "verify", finished.root)
    assert (ended.code, ended.err) == (0, "")
    assert "verdict: verified" in ended.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_a_byte_changed, "entry 3: "),
        (without_a_line, "entry 3: numbered 4; a line was removed, added or moved"),
        (in_another_order, "entry 2: numbered 4"),
        (without_its_tail, "holds entry 5, the ledger ends at 4"),
        (signed_anew, "entry 1: "),
    ],
)
def test_a_tampered_ledger_is_found_and_its_entry_named(
    finished: Federation, fedward, change: Callable[[Lines], Lines], said: str
) -> None:
    rewrite(finished, change)
    ended = fedward("audit", "verify", finished.root)
    assert ended.code == 9
    assert f"error: {SITE}: " in ended.err
    assert said in ended.err
    assert "verdict: failed" in ended.out


def test_the_other_ledgers_are_judged_for_themselves(finished: Federation, fedward) -> None:
    rewrite(finished, without_a_line)
    out = fedward("audit", "verify", finished.root).out
    verdicts = {line.split()[0]: line.split()[-1] for line in out.splitlines()[1:4]}
    assert verdicts == {"east": "verified", "north": "failed", "south": "verified"}


def test_without_witnesses_a_ledger_is_self_consistent_only(finished: Federation, fedward) -> None:
    for book in finished.root.rglob("witnesses.jsonl"):
        book.unlink()
    ended = fedward("audit", "verify", finished.root)
    assert ended.code == 10
    assert "self-consistent, not witnessed" in ended.err
    assert "hint:" in ended.err


def test_a_cut_tail_is_found_by_a_head_that_another_hospital_holds(finished: Federation, fedward, tmp_path) -> None:
    """The coordinator lost its book; one peer's is enough."""
    (finished.root / "witnesses.jsonl").unlink()
    (finished.homes["south"].witness_path).unlink()
    rewrite(finished, without_its_tail)
    assert fedward("audit", "verify", finished.root).code == 9


def test_a_ledger_signed_anew_passes_for_nobody_who_pinned_the_key(finished: Federation, fedward) -> None:
    rewrite(finished, signed_anew)
    for book in finished.root.rglob("witnesses.jsonl"):
        book.unlink()
    assert fedward("audit", "verify", finished.root).code == 9


def grown(federation: Federation, root: Path, population: str) -> Path:
    """The ledger of a copy of the site that went on by itself."""
    copy = federation.copy_to(root)
    with copy.ledger(SITE) as ledger:
        terms = ledger.account(POPULATION).terms
        ledger.open_population(population, budget=terms.budget, admission=terms.admission)
    return copy.homes[SITE].ledger_path


def test_two_histories_that_one_site_signed_are_named_with_the_entry_where_they_part(
    finished: Federation, fedward, tmp_path: Path
) -> None:
    entries = len(finished.homes[SITE].ledger_path.read_bytes().splitlines())
    one, other = grown(finished, tmp_path / "one", "ward-1"), grown(finished, tmp_path / "other", "ward-2")
    ended = fedward("audit", "verify", finished.root, one, other)
    assert ended.code == 9
    for path in (one, other):
        said = f"{SITE}: entry {entries + 1}: this key signed another history in {path}: a forked ledger"
        assert said in ended.err


def test_a_newer_copy_of_a_ledger_is_no_other_history(finished: Federation, fedward, tmp_path: Path) -> None:
    newer = shutil.copy(grown(finished, tmp_path / "one", "ward-1"), tmp_path / "newer.jsonl")
    ended = fedward("audit", "verify", finished.root, newer)
    assert (ended.code, ended.err) == (0, "")


def test_a_copy_that_was_damaged_is_no_other_history_of_the_whole_one(
    finished: Federation, fedward, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.jsonl"
    lines = with_a_byte_changed(finished.homes[SITE].ledger_path.read_bytes().splitlines())
    damaged.write_bytes(b"".join(line + b"\n" for line in lines))
    ended = fedward("audit", "verify", finished.root, damaged)
    assert ended.code == 9
    assert "forked" not in ended.err


def test_verifying_changes_no_file(finished: Federation, fedward) -> None:
    rewrite(finished, with_a_byte_changed)
    before = {path: path.read_bytes() for path in finished.root.rglob("*") if path.is_file()}
    fedward("audit", "verify", finished.root)
    assert {path: path.read_bytes() for path in finished.root.rglob("*") if path.is_file()} == before


def test_a_tampered_ledger_does_not_open_at_its_site_either(finished: Federation) -> None:
    rewrite(finished, with_a_byte_changed)
    with pytest.raises(LedgerCorrupt, match="entry 3"):
        finished.open_agent(SITE)
