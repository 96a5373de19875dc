"""The site's own record of what it spent: written before anything is computed, never rewritten."""

import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from common.crypto.keys import SigningKey
from common.errors import ConfigurationError, LedgerCorrupt
from common.files import sync_directory, write_atomic
from common.privacy.account import PopulationAccount
from common.privacy.admission import AdmissionFilter
from common.privacy.budget import PrivacyBudget
from common.privacy.entries import (
    AttemptKey,
    EntryKind,
    LedgerEntry,
    LedgerHead,
    Payload,
    PopulationTerms,
    format_time,
)
from common.privacy.events import MechanismEvent
from common.privacy.high_water import decode_mark, encode_mark
from common.privacy.json_fields import read_digest, read_text
from common.privacy.verify import LedgerChain, replay
from common.privacy.witness import SignedHead


def _utc_now() -> datetime:
    return datetime.now(UTC)


class BudgetLedger:
    """An open ledger: one process, any number of its threads. Every entry is on disk before the call returns.

    Beside `ledger.jsonl` stand `ledger.lock`, held while open, and `ledger.head`, the high-water mark: the last entry
    that this machine wrote. The mark is written in place within one disk sector and after the entry, so it may lag
    behind the ledger after a power cut but never run ahead of it.
    """

    def __init__(
        self, path: Path, *, site: str, key: SigningKey, clock: Callable[[], datetime], heads: Sequence[SignedHead]
    ) -> None:
        self._path, self._site, self._key, self._clock = path, site, key, clock
        self._mutex = threading.RLock()
        self._files: list[int] = []
        self._usable = True
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._take_lock()
            self._chain, self._size = self._read(heads)
            self._file = self._open_file(path, os.O_RDWR | os.O_CREAT)
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
            write_atomic(self._mark_path, encode_mark(self._chain.head))
            self._mark_file = self._open_file(self._mark_path, os.O_RDWR)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        site: str,
        key: SigningKey,
        clock: Callable[[], datetime] = _utc_now,
        heads: Sequence[SignedHead] = (),
    ) -> "BudgetLedger":
        """Open a site's ledger, or begin it, and verify all of it.

        A last line without its newline is dropped: it was never on disk, so nothing was released under it.

        Args:
            path: `ledger.jsonl`; missing directories are made.
            site: Whose ledger.
            key: The site's identity key; signs every line and must have signed those that are there.
            clock: Tells the time with its zone.
            heads: Heads of this site that others hold.

        Raises:
            ConfigurationError: If another process has it open.
            LedgerCorrupt: If it does not verify, or is behind its high-water mark or a given head.
            TrustError: If a given head of this site is not signed by `key`.
        """
        return cls(path, site=read_text(site, "site"), key=key, clock=clock, heads=heads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files and the lock; a second time does nothing."""
        self._usable = False
        while self._files:
            os.close(self._files.pop())

    @property
    def head(self) -> LedgerHead:
        """Where the ledger ends."""
        return self._chain.head

    @property
    def populations(self) -> tuple[str, ...]:
        """Names of the open populations, oldest first."""
        return tuple(self._chain.populations)

    def account(self, population: str) -> PopulationAccount:
        """What one population was charged; raises ConfigurationError if it was never opened."""
        if (account := self._chain.populations.get(population)) is None:
            raise ConfigurationError(
                f"{self._site}: population {population!r} has no budget here",
                hint="register the data set first; that opens its population",
            )
        return account

    def events(self, population: str) -> tuple[MechanismEvent, ...]:
        """Every charged event of a population: reserved, settled and burned ones count alike."""
        return self.account(population).events

    def signed_head(self, run_id: str) -> SignedHead:
        """The end of the ledger as a statement for witnesses."""
        return SignedHead.sign(self._key, site=self._site, head=self.head, run_id=run_id)

    def confirm(self, head: SignedHead) -> None:
        """Return only if the ledger passes through a head of it that somebody else holds; raises LedgerCorrupt."""
        self._chain.confirm(LedgerHead(seq=head.seq, digest=head.digest), "a witness")

    def open_population(self, population: str, *, budget: PrivacyBudget, admission: AdmissionFilter) -> None:
        """Fix a population's budget and filter for good; raises ConfigurationError if it is open already."""
        if population in self._chain.populations:
            raise ConfigurationError(f"{self._site}: population {population!r} is already open; its budget stands")
        terms = PopulationTerms(site=self._site, public_key=self._key.public_key, admission=admission, budget=budget)
        self._append(population, EntryKind.OPEN, None, terms)

    def reserve(self, population: str, *, run_id: str, round_number: int, attempt: int, event: MechanismEvent) -> None:
        """Charge one answer before any data is touched; an error means that nothing was written.

        Raises:
            PrivacyBudgetExhausted: If the budget would be passed under either view.
            PolicyRefused: If this answer is already charged, or the filter has no sum for the event.
            ConfigurationError: If the population was never opened.
            OSError: If the disk failed; the file is as it was.
        """
        self.account(population)
        key = AttemptKey(run_id=run_id, round_number=round_number, attempt=attempt)
        self._append(population, EntryKind.RESERVE, key, event)

    def settle(self, population: str, *, run_id: str, round_number: int, attempt: int, release: str) -> None:
        """Record that a reserved answer is on disk and may leave.

        Args:
            release: Digest of exactly those bytes.

        Raises:
            ValueError: If the answer is not reserved, or already settled or burned.
        """
        self.account(population)
        key = AttemptKey(run_id=run_id, round_number=round_number, attempt=attempt)
        self._append(population, EntryKind.SETTLE, key, read_digest(release, "release"))

    def burn(self, population: str, *, run_id: str, round_number: int, attempt: int) -> None:
        """Record that a reserved answer will never leave; its charge stays. Raises ValueError as `settle`."""
        self.account(population)
        key = AttemptKey(run_id=run_id, round_number=round_number, attempt=attempt)
        self._append(population, EntryKind.BURN, key, None)

    def _append(self, population: str, kind: EntryKind, key: AttemptKey | None, payload: Payload) -> None:
        with self._mutex:
            if not self._usable:
                raise ValueError("the ledger is closed, or a write to it was interrupted; open it anew")
            entry = LedgerEntry(
                seq=self.head.seq + 1,
                time=format_time(self._clock()),
                population=read_text(population, "population"),
                kind=kind,
                key=key,
                payload=payload,
                prev=self.head.digest,
            )
            self._chain.check(entry)
            line = entry.signed_line(self._key)
            self._usable = False
            self._write_line(line + b"\n")
            self._chain.apply(entry, line)
            os.pwrite(self._mark_file, encode_mark(self.head), 0)
            self._usable = True

    def _write_line(self, line: bytes) -> None:
        written = 0
        try:
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._size + written)
            os.fsync(self._file)
        except BaseException:
            # If taking the line back fails too, the ledger stays unusable until it is opened and verified anew.
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)
            self._usable = True
            raise
        self._size += len(line)

    def _read(self, heads: Sequence[SignedHead]) -> tuple[LedgerChain, int]:
        content = self._path.read_bytes() if self._path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        chain, _ = replay(whole, key=self._key.public_key, heads=heads, site=self._site)
        if self._mark_path.exists():
            chain.confirm(decode_mark(self._mark_path.read_bytes()), "the high-water mark")
        elif chain.head.seq > 0:
            raise LedgerCorrupt(
                f"entry {chain.head.seq}: nothing says that it is the last; {self._mark_path.name} is missing",
                hint="restore the high-water mark together with the ledger",
            )
        return chain, len(whole)

    @property
    def _mark_path(self) -> Path:
        return self._path.with_suffix(".head")

    def _take_lock(self) -> None:
        lock = self._open_file(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"{self._site}: the ledger {self._path} is in use by another process",
                hint="stop the other agent, or wait for it",
            ) from error

    def _open_file(self, path: Path, flags: int) -> int:
        new = not path.exists()
        handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
        self._files.append(handle)
        if new:
            sync_directory(path.parent)
        return handle
