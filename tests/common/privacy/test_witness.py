import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from common.crypto.keys import SigningKey
from common.errors import LedgerCorrupt, TrustError
from common.privacy.entries import LedgerHead
from common.privacy.witness import SignedHead, WitnessBook


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


@pytest.fixture
def head(site_key: SigningKey) -> SignedHead:
    return SignedHead.sign(site_key, site="north", head=LedgerHead(seq=3, digest=digest("a")), run_id="run-1")


@pytest.fixture
def book_path(tmp_path: Path) -> Path:
    return tmp_path / "witnesses.jsonl"


def test_a_head_survives_json_and_verifies(head: SignedHead, site_key: SigningKey) -> None:
    SignedHead.from_json(head.to_json()).verify(site_key.public_key)


@pytest.mark.parametrize("change", [{"seq": 4}, {"site": "south"}, {"digest": digest("b")}, {"run_id": "run-2"}])
def test_a_changed_head_does_not_verify(head: SignedHead, site_key: SigningKey, change: dict[str, object]) -> None:
    with pytest.raises(TrustError):
        replace(head, **change).verify(site_key.public_key)  # type: ignore[arg-type]


def test_a_head_by_another_key_does_not_verify(head: SignedHead) -> None:
    with pytest.raises(TrustError):
        head.verify(SigningKey.generate().public_key)


@pytest.mark.parametrize("change", [{"v": 2}, {"sig": "AAAA"}, {"sig": "!"}, {"extra": 1}, {"seq": -1}, {"head": "x"}])
def test_a_head_of_another_shape_is_refused(head: SignedHead, change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        SignedHead.from_json(head.to_json() | change)


def test_a_book_gives_back_what_it_was_given(book_path: Path, head: SignedHead) -> None:
    WitnessBook(book_path, holder="coordinator").record(head)
    assert WitnessBook(book_path, holder="coordinator").latest("north") == head


def test_a_repeated_head_is_written_once(book_path: Path, head: SignedHead) -> None:
    book = WitnessBook(book_path, holder="coordinator")
    book.record(head)
    book.record(head)
    WitnessBook(book_path, holder="coordinator").record(head)
    assert book_path.read_bytes().count(b"\n") == 1


def test_several_holders_share_a_file(book_path: Path, head: SignedHead) -> None:
    books = [WitnessBook(book_path, holder=holder) for holder in ("coordinator", "south", "east")]
    for book in books:
        book.record(head)
    assert book_path.read_bytes().count(b'"held_by"') == 3
    assert WitnessBook(book_path, holder="auditor").heads("north") == (head,)


def test_two_histories_of_one_entry_are_both_kept_as_evidence(
    book_path: Path, head: SignedHead, site_key: SigningKey
) -> None:
    other = SignedHead.sign(site_key, site="north", head=LedgerHead(seq=3, digest=digest("b")), run_id="run-1")
    book = WitnessBook(book_path, holder="coordinator")
    book.record(head)
    assert not book.contradicts(head)
    book.record(other)
    assert book.contradicts(head) and book.contradicts(other)
    assert set(WitnessBook(book_path, holder="auditor").heads("north")) == {head, other}


def test_two_histories_in_one_file_are_found_on_reading(
    book_path: Path, head: SignedHead, site_key: SigningKey
) -> None:
    other = SignedHead.sign(site_key, site="north", head=LedgerHead(seq=3, digest=digest("b")), run_id="run-1")
    south = WitnessBook(book_path, holder="south")
    WitnessBook(book_path, holder="coordinator").record(head)
    south.record(other)
    assert WitnessBook(book_path, holder="auditor").contradicts(head)


def test_reading_a_book_changes_nothing_of_it(book_path: Path, head: SignedHead) -> None:
    WitnessBook(book_path, holder="coordinator").record(head)
    with book_path.open("ab") as stream:
        stream.write(b"torn by a crash")
    before = book_path.read_bytes()
    assert WitnessBook(book_path, holder="auditor").heads("north") == (head,)
    assert book_path.read_bytes() == before


def test_heads_come_in_the_order_of_entries(book_path: Path, site_key: SigningKey) -> None:
    book = WitnessBook(book_path, holder="coordinator")
    for seq in (5, 2, 9):
        made = LedgerHead(seq=seq, digest=digest(str(seq)))
        book.record(SignedHead.sign(site_key, site="north", head=made, run_id="run-1"))
    assert [head.seq for head in book.heads("north")] == [2, 5, 9]


def test_an_unknown_site_has_no_heads(book_path: Path) -> None:
    book = WitnessBook(book_path, holder="coordinator")
    assert (book.heads("north"), book.latest("north"), book.sites) == ((), None, ())


def test_a_torn_last_line_is_dropped_and_the_book_goes_on(
    book_path: Path, head: SignedHead, site_key: SigningKey
) -> None:
    WitnessBook(book_path, holder="coordinator").record(head)
    whole = book_path.read_bytes()
    book_path.write_bytes(whole + b'{"head":"sha2')
    later = SignedHead.sign(site_key, site="north", head=LedgerHead(seq=4, digest=digest("c")), run_id="run-1")
    WitnessBook(book_path, holder="coordinator").record(later)
    assert WitnessBook(book_path, holder="coordinator").latest("north") == later


def test_a_full_disk_leaves_the_book_as_it_was_and_it_goes_on_when_there_is_room(
    book_path: Path, head: SignedHead, site_key: SigningKey
) -> None:
    book = WitnessBook(book_path, holder="coordinator")
    book.record(head)
    before = book_path.read_bytes()
    later = SignedHead.sign(site_key, site="north", head=LedgerHead(seq=4, digest=digest("c")), run_id="run-1")
    with longest_file(len(before) + 50), pytest.raises(OSError):
        book.record(later)
    assert book_path.read_bytes() == before
    assert book.latest("north") == head
    book.record(later)
    assert WitnessBook(book_path, holder="coordinator").heads("north") == (head, later)


@contextmanager
def longest_file(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond that: the kernel writes what fits, and fails the next write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_line_that_is_no_head_is_named(book_path: Path, head: SignedHead) -> None:
    WitnessBook(book_path, holder="coordinator").record(head)
    book_path.write_bytes(book_path.read_bytes() + b"{}\n")
    with pytest.raises(LedgerCorrupt, match="line 2"):
        WitnessBook(book_path, holder="coordinator")
