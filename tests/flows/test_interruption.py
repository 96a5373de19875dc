"""A run that is stopped from outside: what was reserved stays charged, and nothing is left running or lying about."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.processes import MARK_VARIABLE, family
from common.report.audit import verify_paths

REPOSITORY = Path(__file__).parents[2]
COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started this test with it ignored
from common.cli import main
main()
"""
PATIENCE_S = 120.0


def events(out: Path) -> list[str]:
    log = out / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line)["event"] for line in lines[:-1]]


@pytest.fixture(scope="module", params=[signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def interrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A command that got the signal in the middle of its training: its directory and how it ended."""
    root = tmp_path_factory.mktemp("interrupted")
    (root / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "simulate", "--rounds", "2000", "--no-comparison", "--out", root / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, MARK_VARIABLE: str(root), "TMPDIR": str(root / "tmp"), "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + PATIENCE_S
    while events(root / "out").count("attempt") < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(request.param)
    out, err = process.communicate(timeout=PATIENCE_S)
    return root, process.returncode, out, err.decode()


def test_an_interrupted_command_ends_with_130_and_says_what_stays(interrupted) -> None:
    root, code, out, err = interrupted
    assert (code, out) == (130, b"")
    assert f"what the sites reserved stays charged; check with `fedward audit verify {root / 'out'}`" in err


def test_no_process_of_an_interrupted_command_is_left(interrupted) -> None:
    assert family(str(interrupted[0])) == set()


def test_the_ledgers_of_an_interrupted_run_verify(interrupted) -> None:
    assert verify_paths([interrupted[0] / "out"]).words == "verified"


def test_everything_that_was_begun_before_the_interruption_is_charged(interrupted) -> None:
    root, *_ = interrupted
    opened = events(root / "out").count("attempt")
    assert opened >= 3
    for ledger in verify_paths([root / "out"]).ledgers:
        (population,) = ledger.populations
        assert population.charged >= opened
        assert population.settled + population.burned + population.unsettled == population.charged


def test_the_hospitals_raw_tables_are_gone_after_an_interruption(interrupted) -> None:
    assert list((interrupted[0] / "tmp").glob("fedward-*")) == []


def test_an_interrupted_run_leaves_no_result_that_looks_finished(interrupted) -> None:
    out = interrupted[0] / "out"
    assert not any((out / name).exists() for name in ("summary.json", "report.html", "result.json", "model"))
