"""Writing the log of acts: one line at a time, on disk before what it tells of is done."""

import os
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from common.canonical import ZERO_DIGEST
from common.crypto.keys import SigningKey
from common.errors import ActsCorrupt, ConfigurationError, TrustError
from common.files import write_atomic
from common.signed import write_signed
from common.terminal import one_line
from server.acts import (
    HEAD_DOMAIN,
    KEY_DOMAIN,
    MAXIMUM_LINE_BYTES,
    Act,
    ActHead,
    Actor,
    Detail,
    line_digest,
    parse_act,
    read_acts_key,
    read_head,
)
from server.lock import exclusive
from server.moments import time_text, utc_now

LONGEST_TEXT: Final = 200
_PUBLIC: Final = 0o644


class ActLog:
    """The log for writing; any number of processes may append, one line at a time."""

    def __init__(self, root: Path, *, key: SigningKey, clock: Callable[[], datetime]) -> None:
        self._root, self._key, self._clock = root, key, clock

    @classmethod
    def create(cls, root: Path, *, coordinator: SigningKey, clock: Callable[[], datetime] = utc_now) -> "ActLog":
        """Begin a log with a key of its own, vouched for by the coordinator's."""
        secret, key = secrets.token_hex(32), SigningKey.generate()
        write_atomic(root / "acts.secret", secret.encode())
        write_atomic(root / "acts.key", key.to_pem(secret.encode()))
        document = {"version": 1, "key": key.public_key.text}
        write_signed(root / "acts.pub", KEY_DOMAIN, document, coordinator, mode=_PUBLIC)
        write_atomic(root / "acts.jsonl", b"")
        _write_head(root, ActHead(), key)
        return cls(root, key=key, clock=clock)

    @classmethod
    def open(cls, root: Path, *, clock: Callable[[], datetime] = utc_now) -> "ActLog":
        """Open a log for appending; needs no passphrase.

        Raises:
            ConfigurationError: If its key cannot be read. TrustError: If the coordinator does not vouch for the key.
        """
        try:
            pem, secret = (root / "acts.key").read_bytes(), (root / "acts.secret").read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{root}: the key of the acts cannot be read: {error.strerror}") from error
        key = SigningKey.from_pem(pem, secret)
        if key.public_key != read_acts_key(root):
            raise TrustError("acts.key is not the key that the coordinator vouches for in acts.pub")
        return cls(root, key=key, clock=clock)

    @property
    def key(self) -> SigningKey:
        """Signs acts, and what the API keeps."""
        return self._key

    def append(self, act: str, *, actor: Actor, subject: str = "", detail: Detail | None = None) -> Act:
        """Write one act; it is on disk when this returns.

        Write it before what it tells of is done: a log may name something that a crash prevented, never lack
        something that was done. Texts of strangers are cut at 200 characters and escaped.

        Raises:
            ActsCorrupt: If the log does not end where this machine left it.
            ConfigurationError: If the disk failed; the log is as it was, so what was to be done must not be.
        """
        with exclusive(self._root / "acts.lock"):
            head = self._repaired_head()
            written = Act(
                seq=head.seq + 1,
                time=time_text(self._clock()),
                actor=_short(actor.name),
                role=_short(actor.role),
                act=act,
                subject=_short(subject),
                detail={
                    name: _short(value) if isinstance(value, str) else value for name, value in (detail or {}).items()
                },
                prev=head.digest,
            )
            line = written.signed_line(self._key)
            if len(line) > MAXIMUM_LINE_BYTES:
                raise ValueError(f"an act has at most {MAXIMUM_LINE_BYTES} bytes, not {len(line)}")
            try:
                _append_line(self._root / "acts.jsonl", line + b"\n")
                _write_head(self._root, ActHead(seq=written.seq, digest=line_digest(line)), self._key)
            except OSError as error:
                raise ConfigurationError(
                    f"acts.jsonl cannot be written: {error.strerror}; nothing was done", hint="make room on the disk"
                ) from error
        return written

    def _repaired_head(self) -> ActHead:
        """The end of the log; one whole line after the signed head is what a crash left, half a line is dropped."""
        path, head = self._root / "acts.jsonl", read_head(self._root, self._key.public_key)
        tail = _drop_half_line(path)
        if (line_digest(tail) if tail else ZERO_DIGEST) == head.digest:
            return head
        if tail:
            act = parse_act(tail, self._key.public_key)
            if act.seq == head.seq + 1 and act.prev == head.digest:
                return ActHead(seq=act.seq, digest=line_digest(tail))
        raise ActsCorrupt(
            f"acts.jsonl does not end with act {head.seq}, which was the last",
            hint="look at it with: fedward server acts; restore it together with acts.head",
        )


def _write_head(root: Path, head: ActHead, key: SigningKey) -> None:
    write_signed(root / "acts.head", HEAD_DOMAIN, {"version": 1, "seq": head.seq, "digest": head.digest}, key)


def _append_line(path: Path, line: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(handle, line[written:])
            os.fsync(handle)
        except BaseException:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _drop_half_line(path: Path) -> bytes:
    """Cut what follows the last newline, and give the last whole line; empty if there is none."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ActsCorrupt(f"acts.jsonl cannot be opened: {error.strerror}", hint="restore it") from error
    try:
        size = os.fstat(handle).st_size
        start = max(0, size - 2 * MAXIMUM_LINE_BYTES - 2)
        content = os.pread(handle, size - start, start)
        end = content.rfind(b"\n") + 1
        if start + end < size:
            os.ftruncate(handle, start + end)
        return content[:end].removesuffix(b"\n").rpartition(b"\n")[2]
    finally:
        os.close(handle)


def _short(text: str) -> str:
    return one_line(text.encode("utf-8", "backslashreplace").decode())[:LONGEST_TEXT]
