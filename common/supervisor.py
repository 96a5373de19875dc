"""Keeps a handful of processes running until it is told to end, and then leaves none of them behind.

`fedward server up` and `fedward site up` stand on it. In production an init system may do the same with the single
commands.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import BackendFailed, ConfigurationError
from common.logs import keep_short, log_tail
from common.processes import SUPERVISOR_VARIABLE, Process, family, kill_family, still_alive

START_TIMEOUT_S: Final = 90.0
STOP_GRACE_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
STEADY_AFTER_S: Final = 60.0
FALLS_BEFORE_FIRST_READY: Final = 3

_LOOK_AGAIN_S = 0.1
_LOOK_AT_LOGS_S = 5.0
_STDERR = 2
_NO_MARK = "\n"  # nobody's, so that only what is below a process is found


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One process to keep running.

    Attributes:
        name: As people are told of it.
        command: Program and arguments; no secrets, since everybody on the machine can read them.
        environment: The whole environment of the process.
        ready: Whether it does its work; asked again and again, so it must answer within a second or two. Without it a
            process is ready once it runs.
        log: Where its output is appended; None: to the supervisor's own standard error.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool] | None = None
    log: Path | None = None


class Supervisor:
    """Starts children in order, each once those before it were ready, and starts again what falls.

    A child that falls is started again after a pause that doubles up to `LONGEST_PAUSE_S` and is short again after a
    minute of steady work. A child that falls `FALLS_BEFORE_FIRST_READY` times without ever having been ready ends the
    whole: it is set up wrongly.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        mark: str,
        tell: Callable[[str], None] = lambda _line: None,
        on_start: Callable[[], None] = lambda: None,
        on_ready: Callable[[], None] = lambda: None,
        tick: Callable[[], None] = lambda: None,
        tick_s: float = 2.0,
        grace_s: float = STOP_GRACE_S,
    ) -> None:
        """Prepare; nothing is started.

        Args:
            children: In the order in which they are started.
            mark: Stands in the environment of every process below; no other supervisor on the machine uses it or
                begins with it. What an earlier supervisor with this mark left behind is killed first.
            tell: Is given one line for people whenever a child starts, is ready, or falls.
            on_start: Called once, when nothing of an earlier supervisor runs any more.
            on_ready: Called once, when all children have been ready.
            tick: Called every `tick_s` from then on.
            grace_s: Between SIGTERM and SIGKILL.
        """
        self._slots = [_Slot(child) for child in children]
        self._mark = mark
        self._tell = tell
        self._on_start = on_start
        self._on_ready = on_ready
        self._tick = tick
        self._tick_s = tick_s
        self._grace_s = grace_s
        self._ending = threading.Event()

    def stop(self) -> None:
        """Make `run` end; may be called from any thread."""
        self._ending.set()

    def run(self) -> None:
        """Block until SIGTERM, SIGINT or `stop`; no process of these children is left when it returns or raises.

        Raises:
            BackendFailed: If a child never became ready; the hint holds the end of its log.
            ConfigurationError: If a command does not exist.
        """
        with _signals_set(self._ending):
            kill_family(self._mark, variable=SUPERVISOR_VARIABLE)
            self._on_start()
            try:
                self._keep_running()
            finally:
                self._end()

    def _keep_running(self) -> None:
        announced, next_tick, next_log = False, 0.0, 0.0
        while not self._ending.wait(_LOOK_AGAIN_S):
            for slot in self._slots:
                self._look_at(slot)
                if not slot.was_ready:
                    break
            now = time.monotonic()
            if not announced and all(slot.was_ready for slot in self._slots):
                announced = True
                self._on_ready()
            if announced and now >= next_tick:
                self._tick()
                next_tick = time.monotonic() + self._tick_s
            if now >= next_log:
                for log in {slot.child.log for slot in self._slots} - {None}:
                    keep_short(log)  # type: ignore[arg-type]  # None was taken out
                next_log = now + _LOOK_AT_LOGS_S

    def _look_at(self, slot: "_Slot") -> None:
        now = time.monotonic()
        if slot.process is None:
            if now >= slot.next_start:
                slot.process, slot.started, slot.ready = _start(slot.child, self._mark), now, False
        elif slot.process.poll() is not None:
            self._note_fall(slot, now)
        elif not slot.ready:
            if slot.child.ready is None or slot.child.ready():
                slot.ready = slot.was_ready = True
                self._tell(f"{slot.child.name} is running")
            elif now - slot.started > START_TIMEOUT_S:
                self._tell(f"{slot.child.name} is not ready after {START_TIMEOUT_S:g} s")
                slot.process.kill()

    def _note_fall(self, slot: "_Slot", now: float) -> None:
        child, code = slot.child, slot.process.returncode if slot.process is not None else 0
        slot.process = None
        slot.falls = 1 if slot.ready and now - slot.started > STEADY_AFTER_S else slot.falls + 1
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if not slot.was_ready and slot.falls >= FALLS_BEFORE_FIRST_READY:
            hint = "" if child.log is None else log_tail(child.log, lines=15)
            raise BackendFailed(f"{child.name} {how}, {slot.falls} times, and was never ready", hint=hint)
        pause_s = min(FIRST_PAUSE_S * 2 ** (slot.falls - 1), LONGEST_PAUSE_S)
        slot.next_start = now + pause_s
        self._tell(f"{child.name} {how}; it is started again in {pause_s:g} s")

    def _end(self) -> None:
        """SIGTERM to one child after the other, the last started first; SIGKILL to whatever is there after the grace.

        A child is told when those after it are gone with all that they started, or had their share of the grace: what
        they say at their end still finds somebody to listen.
        """
        running = [slot.process for slot in reversed(self._slots) if slot.process is not None]
        # An agent hides its environment from its own user too, and with it the mark: found as what was started here.
        known, begun = self._family().union(*(family(_NO_MARK, process) for process in running)), time.monotonic()
        try:
            for number, process in enumerate(running, start=1):
                below = family(_NO_MARK, process)
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                self._wait_for(below, until=begun + number * self._grace_s / len(running))
            self._wait_for(known | self._family(), until=begun + self._grace_s)
        finally:
            kill_family(self._mark, known, variable=SUPERVISOR_VARIABLE)
            for process in running:
                process.wait()

    def _wait_for(self, processes: set[Process], *, until: float) -> None:
        while still_alive(processes) and time.monotonic() < until:
            time.sleep(_LOOK_AGAIN_S)
            for slot in self._slots:
                if slot.process is not None:
                    slot.process.poll()  # collects it: an executor's apps end only when its id is nobody's any more

    def _family(self) -> set[Process]:
        return family(self._mark, variable=SUPERVISOR_VARIABLE)


@dataclass(slots=True)
class _Slot:
    """A child and how it fares."""

    child: Child
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    next_start: float = 0.0
    falls: int = 0
    ready: bool = False
    was_ready: bool = False


def _start(child: Child, mark: str) -> subprocess.Popen[bytes]:
    environment = {**child.environment, SUPERVISOR_VARIABLE: mark}
    try:
        if child.log is None:
            return _popen(child, environment, _STDERR)
        handle = os.open(child.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            return _popen(child, environment, handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise ConfigurationError(f"{child.name} cannot be started: {error}") from error


def _popen(child: Child, environment: Mapping[str, str], output: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(child.command),
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # so that a Ctrl-C reaches the supervisor alone, which ends the others in order
    )


@contextmanager
def _signals_set(event: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set the event while the block runs; outside the main thread signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda _number, _frame: event.set()) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
