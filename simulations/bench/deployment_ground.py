"""A coordinator with its nodes as real processes on loopback, for the time of one measurement.

SuperLink, executor and gateway are those of `fedward server up`; couriers and agents are those of `fedward site`. What
is written lies below one temporary directory, and neither a file nor a process of it stays, whatever happens.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.crypto.keys import SigningKey
from common.enrolment import Enrolment
from common.errors import BackendFailed
from common.files import write_atomic
from common.logs import log_tail
from common.passphrase import PASSPHRASE_FILE_VARIABLE
from common.processes import MARK_VARIABLE, family, kill_family
from server.actlog import ActLog
from server.acts import Actor
from server.home import ServerHome, ServerSettings
from server.members import enrol
from server.moments import utc_now
from server.setup import set_up
from server.superlink import free_port
from server.upstate import UpState, read_up

START_TIMEOUT_S: Final = 180.0
GRACE_S: Final = 25.0
LOOK_AGAIN_S: Final = 0.05
QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "OMP_NUM_THREADS": "1",
}

_RUN_FEDWARD: Final = (sys.executable, "-P", "-c", "from common.cli import main; main()")
_ACTOR: Final = Actor(name="bench", role="coordinator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Courier:
    """A courier's directory, whose node key the coordinator knows.

    Attributes:
        socket: Where its agent listens.
    """

    name: str
    directory: Path
    socket: Path


@dataclass(slots=True, kw_only=True)
class Ground:
    """Made by `ground`. Everything lies below `root`, whose path is short for the sake of Unix sockets."""

    root: Path
    server: ServerHome
    passphrase: bytes
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of every process; the caller's variables of Flower and Fedward are left out."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "FEDWARD_", "RAY_"))}
        scripts = str(Path(sys.executable).parent)
        return {
            **kept,
            **QUIET,
            "PATH": os.pathsep.join([scripts, kept.get("PATH", os.defpath)]),
            "FLWR_HOME": str(self.root / "flower-home"),
            PASSPHRASE_FILE_VARIABLE: str(self.root / "passphrase"),
            MARK_VARIABLE: str(self.root),
        }

    def start(self, name: str, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a process that is ended with the ground; its output goes to a log of that name."""
        with (self.root / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                cwd=self.root,
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.running[name]

    def fedward(self, *arguments: str | Path) -> tuple[str, ...]:
        """The command line of one of Fedward's commands."""
        return (*_RUN_FEDWARD, *map(str, arguments))

    def says(self, name: str) -> str:
        """The end of a process's log."""
        return log_tail(self.root / f"{name}.log", lines=15)

    def wait_until(
        self,
        happens: Callable[[], object],
        what: str,
        *,
        timeout_s: float = START_TIMEOUT_S,
        look_again_s: float = LOOK_AGAIN_S,
    ) -> None:
        """Return once something is so.

        Raises:
            BackendFailed: If the time passes or a process ends meanwhile; the hint holds the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not happens():
            for name, process in self.running.items():
                if process.poll() is not None:
                    raise BackendFailed(f"{name} ended with exit code {process.returncode}", hint=self.says(name))
            if time.monotonic() > deadline:
                raise BackendFailed(f"waited {timeout_s:g} s for {what}", hint=self.says("server"))
            time.sleep(look_again_s)

    def serve(self) -> UpState:
        """Start the coordinator and wait until it is up."""
        self.start("server", *self.fedward("server", "up", "--home", self.server.root))
        found: list[UpState] = []

        def is_up() -> bool:
            state = read_up(self.server.root)
            found.extend([state] if state is not None else [])
            return state is not None

        self.wait_until(is_up, "the coordinator to be up")
        return found[0]

    def enrol(self, names: Mapping[str, SigningKey], *, nominal_patients: int = 100) -> list[Courier]:
        """Make a node key and a courier's directory for each name, and enrol all of them."""
        couriers, enrolments = [], []
        for name, key in names.items():
            node = ec.generate_private_key(ec.SECP384R1())
            directory = self.root / "couriers" / name
            courier = Courier(name=name, directory=directory, socket=self.root / "s" / name / "a.sock")
            couriers.append(courier)
            self._write_courier(courier, node)
            openssh = node.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            enrolments.append(
                Enrolment(
                    name=name,
                    identity_key=key.public_key.text,
                    node_key=openssh.decode(),
                    nominal_patients=nominal_patients,
                )
            )
        enrol(self.server, enrolments, actor=_ACTOR, log=ActLog.open(self.server.root), now=utc_now())
        return couriers

    def start_courier(self, courier: Courier) -> subprocess.Popen[bytes]:
        """`fedward site courier`."""
        command = self.fedward("site", "courier", "--courier", courier.directory)
        return self.start(f"courier-{courier.name}", *command)

    def is_connected(self, courier: Courier) -> bool:
        """Whether it says so."""
        return "connected to" in (self.root / f"courier-{courier.name}.log").read_text(errors="replace")

    def process_of(self, *words: str) -> int:
        """The id of the one process of this ground whose command line holds all words.

        Raises:
            BackendFailed: If there is none.
        """
        for process in family(str(self.root)):
            try:
                line = Path(f"/proc/{process.process_id}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, UnicodeDecodeError):
                continue
            if all(word in line for word in words):
                return process.process_id
        raise BackendFailed(f"no process {' '.join(words)} runs")

    def end(self, names: Sequence[str] | None = None) -> None:
        """End processes, the newest first, by SIGTERM and after a grace by SIGKILL; by default all."""
        ending = [self.running.pop(name) for name in reversed(list(self.running)) if names is None or name in names]
        for process in ending:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for process in ending:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _write_courier(self, courier: Courier, node: ec.EllipticCurvePrivateKey) -> None:
        courier.directory.mkdir(parents=True, mode=0o700)
        private = node.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        write_atomic(courier.directory / "node.key", private)
        write_atomic(courier.directory / "ca.crt", (self.server.pki / "ca.crt").read_bytes())
        settings = {"gateway": self.server.settings.address, "agent": str(courier.socket)}
        lines = ["version = 1", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        write_atomic(courier.directory / "courier.toml", ("\n".join(lines) + "\n").encode())


@contextmanager
def ground() -> Iterator[Ground]:
    """A coordinator's directory in a temporary place; nothing runs yet, and nothing stays."""
    root = Path(tempfile.mkdtemp(prefix="fb-", dir="/tmp"))  # a Unix socket's path is short
    passphrase = secrets.token_urlsafe(24).encode()
    made: Ground | None = None
    try:
        write_atomic(root / "passphrase", passphrase)
        port = free_port()
        settings = ServerSettings(address=f"localhost:{port}", listen=f"127.0.0.1:{port}", requests_per_second=1000.0)
        server = set_up(root / "server", settings=settings, passphrase=passphrase, actor=_ACTOR)
        made = Ground(root=root, server=server, passphrase=passphrase)
        yield made
    finally:
        try:
            if made is not None:
                made.end()
        finally:
            kill_family(str(root))
            shutil.rmtree(root, ignore_errors=True)
