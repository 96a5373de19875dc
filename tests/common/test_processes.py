import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import pytest

from common.processes import MARK_VARIABLE, family, still_alive, stop

SLEEP = "import time; time.sleep(60)"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); {SLEEP}"
DETACHES_A_CHILD = (
    "import subprocess, sys;"
    f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True);"
    "print('ready', flush=True)"
)


@pytest.fixture
def mark() -> Iterator[str]:
    name = f"test-{uuid.uuid4()}"
    yield name
    assert family(name) == set()


def _start(code: str, mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, MARK_VARIABLE: mark},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def _ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()


def test_a_process_and_its_own_are_a_family(mark: str) -> None:
    first = _start(f"{DETACHES_A_CHILD}; {SLEEP}", mark)
    _ready(first)
    assert len(family(mark, first)) == 2
    stop(first, mark, grace_s=0.1)


def test_a_child_that_outlived_its_parent_in_another_session_is_found_and_ended(mark: str) -> None:
    first = _start(DETACHES_A_CHILD, mark)
    _ready(first)
    first.wait()
    assert len(family(mark, first)) == 1
    stop(first, mark, grace_s=0.1)
    assert family(mark) == set()


def test_one_that_ignores_sigterm_is_killed_after_the_grace(mark: str) -> None:
    first = _start(IGNORES_SIGTERM, mark)
    _ready(first)
    stop(first, mark, grace_s=0.2)
    assert first.returncode == -9


def test_a_process_of_another_run_is_left_alone(mark: str) -> None:
    other_mark = f"test-{uuid.uuid4()}"
    other, first = _start(SLEEP, other_mark), _start(SLEEP, mark)
    stop(first, mark, grace_s=5)
    assert other.poll() is None
    stop(other, other_mark, grace_s=5)
    for process in (other, first):
        assert process.stdout is not None
        process.stdout.close()


def test_an_ended_process_is_not_alive(mark: str) -> None:
    first = _start(SLEEP, mark)
    while not (members := family(mark, first)):
        time.sleep(0.01)
    stop(first, mark, grace_s=5)
    assert still_alive(members) == set()
    assert first.stdout is not None
    first.stdout.close()
