import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.errors import BackendFailed, ConfigurationError
from common.logs import keep_short, log_tail
from common.processes import SUPERVISOR_VARIABLE, Process, family
from common.supervisor import Child, Supervisor

SLEEP = "import time; time.sleep(600)"
DETACHES_A_CHILD = (
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True); {SLEEP}"
)
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
PATIENCE_S = 60.0


@pytest.fixture
def mark() -> Iterator[str]:
    name = f"test-{uuid.uuid4()}#"
    yield name
    assert family(name) == set()


def _child(name: str, code: str, *, ready: Callable[[], bool] | None = None, log: Path | None = None) -> Child:
    return Child(name=name, command=[sys.executable, "-c", code], environment=dict(os.environ), ready=ready, log=log)


def _family(mark: str) -> set[Process]:
    return family(mark, variable=SUPERVISOR_VARIABLE)


def _touches(path: Path) -> str:
    return f"import pathlib; pathlib.Path({str(path)!r}).open('a').write('x')"


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def _running(supervisor: Supervisor) -> Iterator[None]:
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield
    finally:
        supervisor.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_child_is_started_only_when_those_before_it_are_ready(tmp_path: Path, mark: str) -> None:
    first_started, gate, second_started = tmp_path / "first", tmp_path / "gate", tmp_path / "second"
    asked = threading.Event()

    def ready() -> bool:
        asked.set()
        return gate.exists()

    children = [
        _child("first", f"{_touches(first_started)}; {SLEEP}", ready=ready),
        _child("second", f"{_touches(second_started)}; {SLEEP}"),
    ]
    announced = threading.Event()
    with _running(Supervisor(children, mark=mark, on_ready=announced.set)):
        _wait_for(first_started.exists)
        assert asked.wait(PATIENCE_S)
        assert not second_started.exists() and not announced.is_set()
        gate.touch()
        _wait_for(second_started.exists)
        assert announced.wait(PATIENCE_S)


def test_a_child_that_is_killed_is_started_again_and_people_are_told(tmp_path: Path, mark: str) -> None:
    starts, told = tmp_path / "starts", list[str]()
    child = _child("worker", f"{_touches(starts)}; {SLEEP}", ready=starts.exists)
    with _running(Supervisor([child], mark=mark, tell=told.append)):
        _wait_for(lambda: "worker is running" in told)
        (victim,) = _family(mark)
        os.kill(victim.process_id, signal.SIGKILL)
        _wait_for(lambda: starts.read_text() == "xx")
    assert "worker was killed by signal 9; it is started again in 0.5 s" in told


def test_a_child_that_never_was_ready_ends_the_whole_with_its_last_words(tmp_path: Path, mark: str) -> None:
    children = [
        _child("steady", SLEEP),
        _child("broken", "raise SystemExit('no such certificate')", ready=lambda: False, log=tmp_path / "log"),
    ]
    with pytest.raises(BackendFailed, match="broken ended with exit code 1, 3 times, and was never ready") as raised:
        Supervisor(children, mark=mark).run()
    assert "no such certificate" in raised.value.hint
    assert _family(mark) == set()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_command_that_does_not_exist_is_a_configuration_error(mark: str) -> None:
    child = Child(name="ghost", command=["/no/such/program"], environment={})
    with pytest.raises(ConfigurationError, match="ghost cannot be started"):
        Supervisor([child], mark=mark).run()


def test_nothing_is_left_not_even_what_a_child_detached_or_what_ignores_sigterm(mark: str) -> None:
    children = [_child("parent", DETACHES_A_CHILD), _child("deaf", f"{IGNORES_SIGTERM}; {SLEEP}")]
    with _running(Supervisor(children, mark=mark, grace_s=0.3)):
        _wait_for(lambda: len(_family(mark)) == 3)
    assert _family(mark) == set()


def test_what_ends_by_itself_once_its_parent_is_gone_is_given_the_time(tmp_path: Path, mark: str) -> None:
    said, here = tmp_path / "said", tmp_path / "here"
    watches = (
        f"import os, pathlib, sys, time; {_touches(here)}; parent = int(sys.argv[1])\n"
        "while True:\n"
        "    try: os.kill(parent, 0)\n"
        f"    except ProcessLookupError: {_touches(said)}; break\n"
        "    time.sleep(0.05)\n"
    )
    starts = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {watches!r}, str(os.getpid())])"
    with _running(Supervisor([_child("executor", f"{starts}; {SLEEP}")], mark=mark, grace_s=PATIENCE_S)):
        _wait_for(here.exists)
    assert said.exists()


def test_what_an_earlier_supervisor_left_behind_is_ended_first(mark: str) -> None:
    left = subprocess.Popen([sys.executable, "-c", SLEEP], env={**os.environ, SUPERVISOR_VARIABLE: mark})
    _wait_for(lambda: len(_family(mark)) == 1)
    with _running(Supervisor([], mark=mark)):
        assert left.wait(PATIENCE_S) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_the_handlers_come_back(number: signal.Signals, mark: str) -> None:
    before = signal.getsignal(number)
    supervisor = Supervisor([_child("one", SLEEP)], mark=mark, on_ready=lambda: signal.raise_signal(number))
    supervisor.run()
    assert signal.getsignal(number) == before


def test_the_last_started_is_ended_first(tmp_path: Path, mark: str) -> None:
    order, first, second = tmp_path / "order", tmp_path / "1", tmp_path / "2"

    def says(name: str, ready: Path) -> str:
        return (
            "import pathlib, signal, sys, time\n"
            f"def end(*_): pathlib.Path({str(order)!r}).open('a').write({name!r}); sys.exit()\n"
            f"signal.signal(signal.SIGTERM, end); {_touches(ready)}; time.sleep(600)"
        )

    children = [
        _child("first", says("1", first), ready=first.exists),
        _child("second", says("2", second), ready=second.exists),
    ]
    ready = threading.Event()
    with _running(Supervisor(children, mark=mark, on_ready=ready.set, grace_s=PATIENCE_S)):
        assert ready.wait(PATIENCE_S)
    assert order.read_text() == "21"


def test_the_tick_goes_on_while_children_run(mark: str) -> None:
    ticks: list[float] = []
    with _running(Supervisor([], mark=mark, tick=lambda: ticks.append(time.monotonic()), tick_s=0.05)):
        _wait_for(lambda: len(ticks) >= 3)


def test_a_long_log_is_moved_aside_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as stream:
        stream.write(b"old\n" * 10)
        keep_short(path, longest_bytes=39)
        stream.write(b"new\n")
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "log.1").read_bytes() == b"old\n" * 10


def test_the_tail_of_a_log_has_no_colours_and_no_request_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("first\n\x1b[32mgreen\x1b[0m\n2026 INFO [uvicorn.access] GET\nlast\n")
    assert log_tail(path, lines=2) == "green\nlast"
    assert log_tail(tmp_path / "none") == ""
