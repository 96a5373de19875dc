"""`gateway.jsonl`: who asked the gateway for what, and what became of it; the format stands in `common/FORMATS.md`.

Never a body, a header or a whole key. A line is one write to a file opened for appending; when logrotate moves the
file away, the next line begins a new one.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common.errors import ConfigurationError
from common.terminal import one_line
from server.limits import Buckets, network

STRANGER: Final = "stranger"
LONGEST_TARGET: Final = 80
SUM_S: Final = 60.0
REFUSALS_PER_SECOND: Final = 2.0
REFUSALS_AT_ONCE: Final = 100.0
MOST_SUMS: Final = 1024
MOST_PENDING_BYTES: Final = 1 << 20

_POLLS: Final = frozenset({"pull-messages", "send-node-heartbeat"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request, or several alike.

    Attributes:
        address: Where from; of the peer of the connection, whatever headers claim.
        verb: The Fleet verb; for anything else method and target, made harmless and cut.
        status: What was answered; 0 if nothing, 499 if the client was gone.
        reason: Empty if SuperLink answered; else why it was not asked.
        node: The member's name, or `stranger`.
        key: First 12 hex digits of the node key's digest; empty without one.
        times: How many requests the line stands for; bytes and seconds are their sums.
    """

    address: str
    verb: str = ""
    status: int = 0
    reason: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    node: str = STRANGER
    key: str = ""
    times: int = 1


class GatewayLog:
    """Writes entries, one JSON object a line.

    Polls that succeeded are summed for a minute, and so are an address's refusals beyond 100 at once or 2 a second:
    neither a patient node nor a hostile stranger fills the disk. Everything else is written when it happens.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the log.

        Raises:
            ConfigurationError: If the file cannot be written.
        """
        self._path, self._clock, self._monotonic = path, clock, monotonic
        self._lines = Buckets(rate=REFUSALS_PER_SECOND, burst=REFUSALS_AT_ONCE, clock=monotonic)
        self._sums: dict[tuple[str, str, int, str, str, str], tuple[float, Entry]] = {}
        self._pending = bytearray()
        self._handle = -1
        try:
            self._reopen_if_rotated()
        except OSError as error:
            raise ConfigurationError(f"{path}: the gateway's log cannot be written: {error.strerror}") from error

    def ready(self) -> bool:
        """Whether all lines so far are in the file; tries again to write those that are not."""
        try:
            self._flush()
        except OSError:
            return False
        return True

    def write(self, entry: Entry) -> None:
        """Log one request; a line that cannot be written waits, and `ready` says so."""
        if entry.status == 200 and entry.verb in _POLLS:
            self._add(entry)
        elif entry.reason and not self._lines.take(network(entry.address)):
            self._add(replace(entry, address=network(entry.address), verb="", node=STRANGER, key=""))
        else:
            self._line(entry)

    def tick(self, *, everything: bool = False) -> None:
        """Write the sums that are a minute old, or all of them."""
        now = self._monotonic()
        due = [name for name, (since, _) in self._sums.items() if everything or now - since >= SUM_S]
        for name in due:
            self._line(self._sums.pop(name)[1])

    def close(self) -> None:
        """Write what is left and close the file."""
        self.tick(everything=True)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _add(self, entry: Entry) -> None:
        name = (entry.address, entry.verb, entry.status, entry.reason, entry.node, entry.key)
        if name not in self._sums and len(self._sums) >= MOST_SUMS:
            self.tick(everything=True)
        since, sofar = self._sums.get(name, (self._monotonic(), None))
        if sofar is not None:
            entry = replace(
                sofar,
                bytes_in=sofar.bytes_in + entry.bytes_in,
                bytes_out=sofar.bytes_out + entry.bytes_out,
                seconds=sofar.seconds + entry.seconds,
                times=sofar.times + entry.times,
            )
        self._sums[name] = (since, entry)
        if self._monotonic() - since >= SUM_S:
            self._line(self._sums.pop(name)[1])

    def _line(self, entry: Entry) -> None:
        moment = self._clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {
            "v": 1,
            "time": moment,
            "address": entry.address,
            "verb": entry.verb,
            "status": entry.status,
            "reason": entry.reason,
            "bytes_in": entry.bytes_in,
            "bytes_out": entry.bytes_out,
            "seconds": round(entry.seconds, 4),
            "node": entry.node,
            "key": entry.key,
            "times": entry.times,
        }
        line = json.dumps(fields, ensure_ascii=True).encode() + b"\n"
        if len(self._pending) + len(line) <= MOST_PENDING_BYTES:
            self._pending += line
        self.ready()

    def _flush(self) -> None:
        while self._pending:
            self._reopen_if_rotated()
            written = os.write(self._handle, self._pending)
            del self._pending[:written]

    def _reopen_if_rotated(self) -> None:
        if self._handle >= 0:
            try:
                there, ours = self._path.stat(), os.fstat(self._handle)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return
            except FileNotFoundError:
                pass
            os.close(self._handle)
            self._handle = -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._handle = os.open(self._path, flags, 0o600)


def harmless(method: str, target: bytes) -> str:
    """What a stranger asked for, fit for a log: printable, and at most 80 characters long."""
    shown = one_line(f"{method} {target[:LONGEST_TARGET].decode('latin-1')}")
    return shown if len(shown) <= LONGEST_TARGET else shown[: LONGEST_TARGET - 1] + "…"
