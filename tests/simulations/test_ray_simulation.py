"""The main job through Flower's simulation engine: the same coordinator and agents, in Ray's processes."""

import json
import subprocess
import sys

import pytest

from common.report.audit import verify_paths

COMMAND = [sys.executable, "-c", "from common.cli import main; main()", "simulate", "breast", "--backend", "ray"]
ROUNDS = 2


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The results of two rounds over four sites."""
    pytest.importorskip("ray")
    directory = tmp_path_factory.mktemp("ray") / "run"
    subprocess.run(
        [*COMMAND, "--rounds", str(ROUNDS), "--no-comparison", "--out", str(directory)],
        check=True,
        capture_output=True,
        timeout=280,
    )
    return directory


def test_every_round_opens_and_every_ledger_verifies(out):
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["rounds"] == ROUNDS
    assert summary["backend"] == "ray"
    assert verify_paths([out]).words == "verified"


def test_every_site_answered_from_its_own_directory(out):
    settled = {
        path.parent.name: sum(json.loads(line)["kind"] == "settle" for line in path.read_bytes().splitlines())
        for path in out.glob("sites/*/ledger.jsonl")
    }
    assert settled == {f"hospital-{number}": ROUNDS for number in (1, 2, 3, 4)}


def test_nothing_of_a_patient_is_left_in_any_file(out):
    assert json.loads((out / "summary.json").read_bytes())["residual_scan"]["hits"] == 0
