"""Flower's own simulation engine, really run; needs Ray."""

import os
import uuid
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import pytest

from common.errors import BackendFailed, ConfigurationError
from server.outcome import read_outcome
from simulations.bench.trivial_app import TrivialJob, read_result, write_job
from simulations.ray_backend import run_flower_app, run_with_flower
from simulations.superlink import SuperLink, running_superlink

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

BUNDLE = resources.files("simulations").joinpath("bench", "fab", "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture
def tag() -> Mapping[str, str]:
    """A variable that every process of one test's run inherits."""
    return {"FEDWARD_TEST_TAG": str(uuid.uuid4())}


def _left_running(tag: Mapping[str, str]) -> list[str]:
    wanted = f"FEDWARD_TEST_TAG={tag['FEDWARD_TEST_TAG']}".encode()
    found = []
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdigit() and wanted in (directory / "environ").read_bytes():
                found.append((directory / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found


def _run(bundle: str, run_dir: Path, tag: Mapping[str, str]) -> None:
    run_flower_app(bundle, run_dir=run_dir, nodes=3, environment=tag, secrets={}, timeout_s=120, gpus=0.0)


def test_the_trivial_job_runs_through_flower_and_ray_and_leaves_nothing_behind(
    tmp_path: Path, tag: Mapping[str, str]
) -> None:
    write_job(tmp_path, TrivialJob(sites=3, rounds=2, size_bytes=1024, longest_pause_s=0.1))
    _run(BUNDLE, tmp_path, tag)
    assert read_result(tmp_path)["exchanges"] == 6
    assert read_outcome(tmp_path) is None
    assert _left_running(tag) == []


def test_a_bundle_that_flower_refuses_fails_with_the_reason_and_leaves_nothing_behind(
    tmp_path: Path, tag: Mapping[str, str]
) -> None:
    with pytest.raises(BackendFailed) as raised:
        _run(BUNDLE.replace("trivial_app:server_app", "trivial_app:no_such_app"), tmp_path, tag)
    assert "no_such_app" in raised.value.hint
    assert _left_running(tag) == []


def _interrupted_superlink(tag: Mapping[str, str], seen: list[SuperLink]) -> None:
    with running_superlink(tag, secrets={"FEDWARD_TEST_SECRET": b"s"}) as superlink:
        secret = Path(superlink.environment["FEDWARD_TEST_SECRET"])
        assert (secret.read_bytes(), secret.stat().st_mode & 0o777) == (b"s", 0o600)
        assert len(_left_running(tag)) >= 1
        seen.append(superlink)
        raise KeyboardInterrupt


def test_ctrl_c_leaves_no_process_and_no_file_behind(tag: Mapping[str, str]) -> None:
    seen: list[SuperLink] = []
    with pytest.raises(KeyboardInterrupt):
        _interrupted_superlink(tag, seen)
    assert _left_running(tag) == []
    assert not seen[0].directory.exists()


def test_a_running_cluster_of_the_user_is_not_used(tag: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    monkeypatch.setenv("FLWR_HOME", "/elsewhere")
    with running_superlink(tag, secrets={}) as superlink:
        assert "RAY_ADDRESS" not in superlink.environment
        assert superlink.environment["FLWR_HOME"].startswith(str(superlink.directory))
        assert superlink.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["RAY_ADDRESS"] == "ray://elsewhere:10001"


def test_more_sites_than_prepared_are_refused(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    with pytest.raises(ConfigurationError, match="2 sites are to take part, 1 are prepared"):
        run_with_flower(run_dir=tmp_path, sites_dir=tmp_path, sites=2, passphrase=b"x", timeout_s=1, gpus=0.0)
