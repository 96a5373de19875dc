"""The running coordinator as real processes: what it starts, what it starts again, and that it leaves nothing."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.crypto.keys import SigningKey
from common.enrolment import Enrolment
from common.processes import SUPERVISOR_VARIABLE, Process, family, kill_family
from server.actlog import ActLog
from server.acts import Actor, verified_acts
from server.flower_control import UNREGISTERED, FlowerControl
from server.home import ServerHome, ServerSettings
from server.members import enrol, revoke
from server.moments import utc_now
from server.run_status import asks_flower, run_status
from server.setup import set_up
from server.superlink import FlowerDirectory, free_port, installed_program
from server.upstate import UpState, read_up
from tests.deployment.waiting import wait_until

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
]

PASSPHRASE = "a passphrase for tests only"
ACTOR = Actor(name="tester", role="coordinator")
PATIENCE_S = 120.0
PLAN = """
[task]
kind = "tabular-classification"
classes = ["healthy", "ill"]
positive = "ill"
[model]
inputs = [4]
[training]
rounds = 6
[privacy]
epsilon = 1.0
delta = 1e-5
nominal_patients = 120
"""


def _enrolment(name: str) -> Enrolment:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    identity = SigningKey.generate().public_key.text
    return Enrolment(name=name, identity_key=identity, node_key=text, nominal_patients=40)


@dataclass
class Coordinator:
    """A coordinator's directory, and its `fedward server up` once it was started."""

    home: ServerHome
    process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        return self.home.root

    @property
    def mark(self) -> str:
        return f"{self.root.resolve()}#server"

    @property
    def state(self) -> UpState:
        state = read_up(self.root)
        assert state is not None
        return state

    @property
    def control(self) -> FlowerControl:
        return FlowerDirectory(root=self.home.flower).control()

    @property
    def said(self) -> str:
        return (self.root / "up.said").read_text()

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed_program("fedward"), "server", *map(str, arguments), "--home", str(self.root)],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def start(self) -> None:
        with (self.root / "up.said").open("wb") as said:
            self.process = subprocess.Popen(
                [installed_program("fedward"), "server", "up", "--home", str(self.root)],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        wait_until(
            lambda: "coordinator is up" in self.said or self.process.poll() is not None, what="the coordinator to be up"
        )
        assert self.process.poll() is None, self.said

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def family(self) -> set[Process]:
        return family(self.mark, variable=SUPERVISOR_VARIABLE)

    def process_of(self, word: str) -> int:
        """The only process below whose command line has this word; 0 if there is none."""
        found = [entry.process_id for entry in self.family() if word in _command_line(entry.process_id)]
        assert len(found) <= 1
        return found[0] if found else 0

    def environment_of(self, word: str) -> bytes:
        return Path(f"/proc/{self.process_of(word)}/environ").read_bytes()

    def statuses(self) -> dict[str, str]:
        return {digest: node.status for digest, node in self.control.nodes().items()}

    def enrol(self, *enrolments: Enrolment, again: bool = False) -> None:
        log = ActLog.open(self.root)
        enrol(self.home, enrolments, actor=ACTOR, log=log, now=utc_now(), again=again)

    def revoke(self, name: str) -> None:
        revoke(self.home, name, actor=ACTOR, log=ActLog.open(self.root), now=utc_now())

    def run_state(self, run_id: str) -> str:
        return run_status(self.home.runs / run_id, flower_runs=asks_flower(self.root)).state

    @staticmethod
    def _environment() -> dict[str, str]:
        return {**os.environ, "FEDWARD_PASSPHRASE": PASSPHRASE, "OMP_NUM_THREADS": "1"}


def _command_line(process_id: int) -> str:
    try:
        return Path(f"/proc/{process_id}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Coordinator]:
    root = Path(tempfile.mkdtemp(prefix="fw-"))
    address = f"127.0.0.1:{free_port()}"
    settings = ServerSettings(address=address.replace("127.0.0.1", "localhost"), listen=address)
    home = set_up(root / "home", settings=settings, passphrase=PASSPHRASE.encode(), actor=ACTOR)
    started = Coordinator(home=home)
    try:
        started.start()
        yield started
    finally:
        if started.process is not None and started.process.poll() is None:
            started.end(signal.SIGKILL)
        kill_family(started.mark, variable=SUPERVISOR_VARIABLE)
        shutil.rmtree(root)


def test_the_parts_are_there_and_only_the_executor_knows_the_passphrase(coordinator: Coordinator) -> None:
    assert coordinator.state.gateway == coordinator.home.settings.listen
    assert (coordinator.root / "up.json").stat().st_mode & 0o777 == 0o600
    assert PASSPHRASE.encode() in coordinator.environment_of("flower-superexec")
    for word in ("flower-superlink", "server gateway"):
        assert PASSPHRASE.encode() not in coordinator.environment_of(word)
    listening = socket.create_connection(("127.0.0.1", int(coordinator.state.gateway.rpartition(":")[2])), timeout=5)
    listening.close()


def test_a_second_one_on_the_same_directory_is_refused(coordinator: Coordinator) -> None:
    second = coordinator.command("up")
    assert second.returncode == 3
    assert "a coordinator is up on this directory already" in second.stderr
    assert coordinator.control.is_healthy()


def test_who_is_enrolled_is_let_in_and_who_is_revoked_is_not(coordinator: Coordinator) -> None:
    north, south = _enrolment("north"), _enrolment("south")
    coordinator.enrol(north, south)
    wait_until(
        lambda: {north.node_digest, south.node_digest} <= coordinator.statuses().keys(),
        what="the nodes to be registered",
    )
    coordinator.revoke("south")
    wait_until(lambda: coordinator.statuses()[south.node_digest] == UNREGISTERED, what="south to be taken out")
    assert coordinator.statuses()[north.node_digest] == "registered"


def test_a_killed_superlink_comes_back_on_its_port_with_its_nodes(coordinator: Coordinator) -> None:
    before, nodes, killed = coordinator.state, coordinator.statuses(), coordinator.process_of("flower-superlink")
    os.kill(killed, signal.SIGKILL)
    wait_until(
        lambda: coordinator.process_of("flower-superlink") not in (0, killed), what="SuperLink to be started again"
    )
    wait_until(coordinator.control.is_healthy, what="SuperLink to be healthy")
    assert coordinator.state == before
    assert coordinator.statuses() == nodes
    assert "superlink was killed by signal 9" in coordinator.said


def test_a_killed_gateway_comes_back(coordinator: Coordinator) -> None:
    killed = coordinator.process_of("server gateway")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: coordinator.said.count("gateway is running") == 2, what="the gateway to run again")
    assert coordinator.process_of("server gateway") not in (0, killed)


@pytest.fixture(scope="module")
def plan_file(coordinator: Coordinator) -> Path:
    """A plan, and members enough for it."""
    for name in ("east", "north", "west"):
        if name not in coordinator.said:
            coordinator.enrol(_enrolment(name))
    path = coordinator.root.parent / "lonely.toml"
    path.write_text(PLAN)
    return path


def test_a_run_to_which_no_site_comes_fails_and_never_completes(coordinator: Coordinator, plan_file: Path) -> None:
    ended = coordinator.command("run", plan_file, "--setup-timeout", "2")
    assert ended.returncode == 8
    assert "waiting for sites" in ended.stderr and "0 of 3 sites" in ended.stderr
    assert "failed QuorumLost, 0 of 6 rounds" in ended.stdout
    acts = [act for act, _ in verified_acts(coordinator.root) if act.act == "run"]
    assert (acts[-1].subject, acts[-1].detail["sites"]) == (ended.stdout.split(":")[0], 3)


@pytest.fixture(scope="module")
def run_id(coordinator: Coordinator, plan_file: Path) -> str:
    """A run that waits for its sites for an hour."""
    started = coordinator.command("run", plan_file, "--detach").stdout.strip()
    wait_until(lambda: coordinator.run_state(started) == "waiting", what="the run to wait")
    return started


def test_a_run_outlives_superlink(coordinator: Coordinator, run_id: str) -> None:
    server_app = coordinator.process_of("flwr-serverapp")
    os.kill(coordinator.process_of("flower-superlink"), signal.SIGKILL)
    wait_until(lambda: coordinator.said.count("superlink is running") == 3, what="SuperLink to run for the third time")
    assert coordinator.run_state(run_id) == "waiting"
    assert coordinator.process_of("flwr-serverapp") == server_app
    refused = coordinator.command("resume", run_id)
    assert (refused.returncode, "is at work" in refused.stderr) == (3, True)


def test_a_run_whose_process_is_killed_is_interrupted_and_can_be_resumed(coordinator: Coordinator, run_id: str) -> None:
    os.kill(coordinator.process_of("flwr-serverapp"), signal.SIGKILL)
    wait_until(lambda: coordinator.run_state(run_id) == "interrupted", what="the run to be interrupted")
    assert coordinator.command("resume", run_id, "--detach").returncode == 0
    wait_until(lambda: coordinator.run_state(run_id) == "waiting", what="the run to wait again")


def test_the_end_leaves_nothing_behind_not_even_a_server_app(coordinator: Coordinator, run_id: str) -> None:
    assert coordinator.process_of("flwr-serverapp")
    assert coordinator.end() == 0
    assert coordinator.family() == set()
    assert not (coordinator.root / "up.json").exists()
    assert coordinator.run_state(run_id) == "interrupted"
    without = coordinator.command("stop", run_id)
    assert (without.returncode, "the coordinator is not up" in without.stderr) == (13, True)


def test_after_a_kill_the_next_start_clears_up_and_takes_revoked_keys_back(
    coordinator: Coordinator, run_id: str
) -> None:
    shutil.move(coordinator.root / "members.json", coordinator.root.parent / "members.json")
    coordinator.start()
    left = coordinator.process_of("flower-superlink")
    assert set(coordinator.statuses().values()) == {UNREGISTERED}
    shutil.move(coordinator.root.parent / "members.json", coordinator.root / "members.json")
    wait_until(lambda: "Flower takes no node key back" in coordinator.said, what="Flower's refusal to be seen")
    assert coordinator.end(signal.SIGKILL) == -signal.SIGKILL
    assert left in {process.process_id for process in coordinator.family()}
    assert read_up(coordinator.root) is None
    coordinator.start()
    assert left not in {process.process_id for process in coordinator.family()}
    assert set(coordinator.statuses().values()) == {"registered"}
    stopped = coordinator.command("stop", run_id)
    assert (stopped.returncode, "stopped, 0 of 6 rounds" in stopped.stdout) == (0, True)
    assert [act.act for act, _ in verified_acts(coordinator.root)][-3:] == ["run", "resume", "stop"]
    assert coordinator.command("resume", run_id).returncode == 3
    assert coordinator.end(signal.SIGINT) == 0
    assert coordinator.family() == set()
