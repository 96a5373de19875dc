"""Finding and stopping every process that a run started, also those that left its process group.

Flower detaches a helper into a session of its own and Ray starts daemons, so a process group is not enough. A run's
processes are its first one, those whose environment carries the run's mark, and everything below these. Nothing else
is ever signalled. A running node or coordinator is a run in this sense, too.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MARK_VARIABLE = "FEDWARD_RUN_MARK"
SUPERVISOR_VARIABLE = "FEDWARD_SUPERVISOR_MARK"
"""A variable of its own, so that a supervised process keeps the mark of the run that the supervisor belongs to."""

_PROC = Path("/proc")
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """One process, told apart from a later one with the same id by when it started."""

    process_id: int
    started: str


def family(mark: str, first: subprocess.Popen[bytes] | None = None, *, variable: str = MARK_VARIABLE) -> set[Process]:
    """The living processes of a run.

    Args:
        mark: The value that `variable` has in the run's environment, which no other run uses or begins with.
        first: The process that the run started with. Once it is collected its id may be another's and is not used.
    """
    roots = {first.pid} if first is not None and first.poll() is None else set()
    table = _process_table()
    wanted = f"{variable}={mark}".encode()
    members = {entry.process_id for entry in table.values() if wanted in entry.environment} | (roots & table.keys())
    while True:
        below = {entry.process_id for entry in table.values() if entry.parent_id in members} - members
        if not below:
            break
        members |= below
    members.discard(os.getpid())
    return {Process(process_id, table[process_id].started) for process_id in members}


def stop(first: subprocess.Popen[bytes], mark: str, *, grace_s: float) -> None:
    """End a run's processes: SIGTERM to the first, which ends its own, then SIGKILL to whatever is left.

    Returns when none is alive. A Ctrl-C meanwhile ends the grace, not the killing.
    """
    known = family(mark, first)
    try:
        if first.poll() is None:
            first.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and still_alive(known):
            time.sleep(_LOOK_AGAIN_S)
            known |= family(mark, first)
    finally:
        kill_family(mark, known)
        first.wait()


def kill_family(mark: str, known: Iterable[Process] = (), *, variable: str = MARK_VARIABLE) -> None:
    """SIGKILL every process of a run, and those of `known` that are alive; returns when there are none."""
    known = set(known)
    while alive := still_alive(known | family(mark, variable=variable)):
        known |= alive  # what a killed one leaves behind is found below its parent no more
        for process in alive:
            _kill(process)
        time.sleep(_LOOK_AGAIN_S)


def still_alive(processes: Iterable[Process]) -> set[Process]:
    """Those that run; one that has ended and only waits to be collected does not."""
    table = _process_table()
    return {
        process
        for process in processes
        if process.process_id in table and table[process.process_id].started == process.started
    }


@dataclass(frozen=True, slots=True)
class _Entry:
    process_id: int
    parent_id: int
    started: str
    environment: bytes


def _process_table() -> Mapping[int, _Entry]:
    entries = _read_proc() if _PROC.joinpath("self/stat").exists() else _read_ps()
    return {entry.process_id: entry for entry in entries}


def _read_proc() -> Iterable[_Entry]:
    for directory in _PROC.iterdir():
        if not directory.name.isdigit():
            continue
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            if fields[0] in "ZX":
                continue
            environment = (directory / "environ").read_bytes()
        except PermissionError:
            environment = b""
        except OSError:
            continue
        yield _Entry(int(directory.name), int(fields[1]), fields[19], environment)


def _read_ps() -> Iterable[_Entry]:
    columns = ["ps", "-axEww", "-o", "pid=,ppid=,stat=,lstart=,command="]
    for line in subprocess.run(columns, stdout=subprocess.PIPE, check=True).stdout.splitlines():
        fields = line.split(maxsplit=8)
        if len(fields) == 9 and not fields[2].startswith(b"Z"):
            yield _Entry(int(fields[0]), int(fields[1]), b" ".join(fields[3:8]).decode(), fields[8])


def _kill(process: Process) -> None:
    try:
        os.kill(process.process_id, signal.SIGKILL)
    except ProcessLookupError:
        return
