"""Someone who may write into a run directory after the run, and has no key of anybody."""

import json
import shutil
from pathlib import Path

import pytest

from common.crypto.keys import SigningKey
from common.errors import FederationError
from common.report.audit import verify_paths
from common.report.numbers import VERIFIED
from common.trust import TrustFile, write_trust
from tests.flows.federation import Federation, make_federation

GONE = "east"


@pytest.fixture
def finished(federation: Federation) -> Federation:
    with federation.agents() as handlers:
        federation.train(handlers)
    assert words(federation.root) == VERIFIED
    return federation


def words(run: Path) -> str:
    try:
        return verify_paths([run]).words
    except FederationError as error:
        return type(error).__name__


def rewrite_trust(run: Path, sites: dict[str, str], coordinator: str) -> None:
    write_trust(run / "trust.json", TrustFile(coordinator=coordinator, sites=sites))


def test_an_audit_changes_no_file_that_a_link_in_the_run_leads_to(finished: Federation, tmp_path: Path) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_bytes(b"one long line without an end")
    book = finished.root / "sites" / GONE / "witnesses.jsonl"
    book.unlink()
    book.symlink_to(victim)
    words(finished.root)
    assert victim.read_bytes() == b"one long line without an end"


def test_an_audit_leaves_a_torn_book_as_the_evidence_it_is(finished: Federation) -> None:
    book = finished.root / "witnesses.jsonl"
    book.write_bytes(book.read_bytes() + b'{"half of a li')
    before = book.read_bytes()
    words(finished.root)
    assert book.read_bytes() == before


def test_a_site_that_is_taken_out_with_its_key_is_missed(finished: Federation) -> None:
    shutil.rmtree(finished.root / "sites" / GONE)
    kept = {name: key for name, key in finished.trust.sites.items() if name != GONE}
    rewrite_trust(finished.root, kept, finished.trust.coordinator)
    assert words(finished.root) != VERIFIED


def test_a_site_that_is_signed_anew_with_its_heads_and_its_key_replaced_is_found(
    finished: Federation, tmp_path: Path
) -> None:
    """The forger makes a run of his own, with keys of his own, and swaps one hospital in."""
    forged = make_federation(tmp_path / "forged")
    with forged.agents() as handlers:
        forged.train(handlers)
    shutil.copy(forged.root / "sites" / GONE / "ledger.jsonl", finished.root / "sites" / GONE / "ledger.jsonl")
    books = [Path("witnesses.jsonl"), *(Path("sites", name, "witnesses.jsonl") for name in finished.names)]
    for book in books:
        mine = (forged.root / book).read_bytes().splitlines(keepends=True)
        theirs = (finished.root / book).read_bytes().splitlines(keepends=True)
        lines = [line for line in theirs if json.loads(line)["site"] != GONE]
        lines += [line for line in mine if json.loads(line)["site"] == GONE]
        (finished.root / book).write_bytes(b"".join(lines))
    rewrite_trust(finished.root, finished.trust.sites | {GONE: forged.trust.sites[GONE]}, finished.trust.coordinator)
    assert words(finished.root) != VERIFIED


def test_a_ledger_cut_together_with_every_head_of_it_but_the_first_is_found(finished: Federation) -> None:
    """Every round of the signed model card was charged at a full cohort; this ledger shows one entry."""
    ledger = finished.root / "sites" / GONE / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().splitlines(keepends=True)[0])
    books = [Path("witnesses.jsonl"), *(Path("sites", name, "witnesses.jsonl") for name in finished.names)]
    for book in books:
        path = finished.root / book
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        kept = [
            raw
            for raw, line in zip(path.read_bytes().splitlines(keepends=True), lines, strict=True)
            if line["site"] != GONE or line["seq"] == 1
        ]
        path.write_bytes(b"".join(kept))
    assert words(finished.root) != VERIFIED


def test_two_sites_ledgers_and_keys_swapped_by_name_are_found(finished: Federation) -> None:
    first, second = finished.root / "sites" / "east", finished.root / "sites" / "north"
    first.rename(finished.root / "sites" / "tmp")
    second.rename(first)
    (finished.root / "sites" / "tmp").rename(second)
    swapped = finished.trust.sites | {
        "east": finished.trust.sites["north"],
        "north": finished.trust.sites["east"],
    }
    rewrite_trust(finished.root, swapped, finished.trust.coordinator)
    assert words(finished.root) != VERIFIED


def test_another_coordinator_in_the_trust_file_than_the_one_that_signed_the_run_is_found(finished: Federation) -> None:
    rewrite_trust(finished.root, finished.trust.sites, SigningKey.generate().public_key.text)
    assert words(finished.root) != VERIFIED
