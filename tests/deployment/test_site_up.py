"""`fedward site up` and `fedward site check` beside a real SuperLink."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.passphrase import PASSPHRASE_FILE_VARIABLE
from common.processes import family
from tests.deployment.superlink_harness import (
    RUN_FEDWARD,
    Process,
    SuperLinkHarness,
    environment,
    start,
    superlink_harness,
)
from tests.deployment.waiting import wait_until
from tests.flows.federation import PASSPHRASE, make_federation

pytestmark = pytest.mark.deployment


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Short, since the path of a socket is."""
    made = Path(tempfile.mkdtemp(prefix="fw-up-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def home(root: Path) -> Path:
    made = make_federation(root / "run", sites=3).homes["north"].root
    (made / "node.toml").write_text('device = "cpu"\n')
    (root / "passphrase").write_bytes(PASSPHRASE)
    (root / "passphrase").chmod(0o600)
    return made


@pytest.fixture(scope="module")
def link(root: Path) -> Iterator[SuperLinkHarness]:
    with superlink_harness(root / "link") as harness:
        yield harness


@pytest.fixture(scope="module")
def courier(link: SuperLinkHarness, home: Path) -> Path:
    return link.make_courier("north-courier", home / "run" / "agent.sock")


@contextmanager
def site_up(root: Path, home: Path, courier: Path, name: str) -> Iterator[Process]:
    command = [*RUN_FEDWARD, "site", "up", "--home", str(home), "--courier", str(courier)]
    env = environment(**{PASSPHRASE_FILE_VARIABLE: str(root / "passphrase")})
    running = start(command, root / f"{name}.log", env)
    try:
        yield running
    finally:
        running.end()


def children(process: Process, *words: str) -> list[int]:
    """Processes below this one whose command line holds all words."""
    ids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lines = {int(number): Path(f"/proc/{number}/cmdline").read_bytes().decode() for number in ids}
    return [number for number, line in lines.items() if all(word in line for word in words)]


def test_a_node_comes_up_is_looked_at_survives_a_killed_agent_and_leaves_nothing(root, home, courier, link):
    with site_up(root, home, courier, "up") as running:
        running.says("agent is running")
        running.says("courier: connected to")
        wait_until(lambda: link.node_status() == ["online"], what="Flower to have the node as online")

        said = subprocess.run(
            [*RUN_FEDWARD, "site", "check", "--home", home, "--courier", courier, "--format", "json"],
            env=environment(**{PASSPHRASE_FILE_VARIABLE: str(root / "passphrase")}),
            capture_output=True,
            check=False,
        )
        verdicts = {finding["check"]: finding["verdict"] for finding in json.loads(said.stdout)["findings"]}
        assert said.returncode == 0, said.stdout
        assert {verdicts[name] for name in ("agent", "clock", "fleet", "ledger", "node-key")} == {"fine"}
        assert verdicts["gateway"] == "warning"  # there is none: SuperLink itself stands open

        (agent,) = children(running, "site", "agent")
        os.kill(agent, signal.SIGKILL)
        running.says("agent was killed by signal 9; it is started again")
        running.says("agent is running", times=2)
        assert children(running, "site", "agent") != [agent]

        below = children(running, "site")
        assert len(below) == 2
        assert running.end() == 0
        assert "agent and courier have ended" in running.text()
        assert not any(Path(f"/proc/{number}").exists() for number in below)
        assert not family(f"site-up:{home}:")
    wait_until(lambda: link.node_status() == ["offline"], what="Flower to have the node as signed off")
    assert not (home / "run" / "agent.sock").exists()


def test_a_node_that_can_never_work_is_given_up_with_what_its_log_says(root, home, courier):
    identity = (home / "identity.pem").read_bytes()
    (home / "identity.pem").write_bytes(b"no key")
    try:
        with site_up(root, home, courier, "broken") as running:
            code = running.process.wait(120)
    finally:
        (home / "identity.pem").write_bytes(identity)
    assert code == 13
    assert "3 times, and was never ready" in running.text()
    assert "identity.pem" in running.text() or "key" in running.text()
