"""How much memory a process holds, as Linux says in /proc.

Resident memory (RSS) counts what is shared with other processes in full, so it is never less than a process costs.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import MissingDependency

FORGET_PEAK: Final = "5"  # to clear_refs: the peak of resident memory begins anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one process holds.

    Attributes:
        resident_bytes: VmRSS.
        peak_bytes: VmHWM, the most since the process began or since `forget_peak`.
    """

    resident_bytes: int
    peak_bytes: int


def memory_of(process_id: int) -> Memory:
    """The memory of a running process of this user.

    Raises:
        MissingDependency: If this system has no /proc. ProcessLookupError: If there is no such process.
    """
    process = Path("/proc") / str(process_id)
    if not Path("/proc/self/status").exists():
        raise MissingDependency("memory is read from /proc, which this system lacks")
    try:
        status = _fields(process / "status")
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {process_id} is gone") from error
    return Memory(resident_bytes=status.get("VmRSS", 0), peak_bytes=status.get("VmHWM", 0))


def memory_of_self() -> Memory:
    """The memory of this process."""
    return memory_of(os.getpid())


def forget_peak(process_id: int | None = None) -> None:
    """Let the peak of a process, by default this one, begin anew."""
    (Path("/proc") / str(process_id or os.getpid()) / "clear_refs").write_text(FORGET_PEAK)


def _fields(path: Path) -> dict[str, int]:
    """Lines such as `VmRSS:  1234 kB`, in bytes."""
    found = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * 1024
    return found
