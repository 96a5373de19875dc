"""Flower's processes on the coordinator's machine: their commands, their environment, and a run handed to them.

SuperLink listens on loopback under TLS with node authentication. The ServerApp runs apart from it, started by an
executor that knows a secret, and whoever submits a run knows a token: without them, every user of the machine who
reaches the port could take a ServerApp's place, or have code run as the coordinator.
"""

import http.client
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from common.canonical import canonical_json
from common.errors import BackendFailed, ConfigurationError, FederationError
from common.files import write_atomic
from common.logs import last_lines
from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE
from common.settings import Settings, parse_json_settings
from server.flower_control import FlowerControl
from server.pki import TlsFiles

RUN_DIRECTORY_KEY: Final = "run-dir"

_LOOK_AGAIN_S = 0.05
_TOKEN_BYTES = 32
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
}


class Connection(Settings):
    """Where SuperLink is, for whoever may read it.

    Attributes:
        address: `host:port`.
        authority: Path of the certificate that SuperLink's is checked against.
    """

    address: str
    authority: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerDirectory:
    """What Flower keeps on the coordinator's machine, below one directory.

    Attributes:
        root: `ServerHome.flower`.
    """

    root: Path

    @property
    def home(self) -> Path:
        """FLWR_HOME: unpacked bundles."""
        return self.root / "home"

    @property
    def database(self) -> Path:
        """SuperLink's state."""
        return self.root / "state.db"

    @property
    def bundle(self) -> Path:
        """What is handed to Flower for every run: one pyproject.toml that names the installed apps."""
        return self.root / "bundle"

    @property
    def token(self) -> Path:
        """What the Control API asks for; made anew at every start, and nobody else's."""
        return self.root / "control.token"

    @property
    def connection(self) -> Path:
        """Where SuperLink is."""
        return self.root / "connection.json"

    def control(self) -> FlowerControl:
        """What asks the SuperLink that was prepared last; raises ConfigurationError if none was."""
        try:
            content = self.connection.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"{self.connection}: cannot be read: {error.strerror}", hint="fedward server up writes it"
            ) from error
        found = parse_json_settings(content, Connection, source=str(self.connection))
        return FlowerControl(found.address, authority=Path(found.authority), token=self.token)

    def log(self, name: str) -> Path:
        """Where one process writes."""
        return self.root / f"{name}.log"

    def prepare(self, *, address: str, authority: Path) -> None:
        """Write where SuperLink is, a new token for its Control API, and the bundle.

        Args:
            address: `host:port` of SuperLink.
            authority: Certificate that SuperLink's is checked against.
        """
        known = Connection(address=address, authority=str(authority))
        write_atomic(self.connection, canonical_json(known.model_dump(mode="json")) + b"\n")
        write_atomic(self.token, secrets.token_hex(_TOKEN_BYTES).encode())
        fab = resources.files("server") / "fab" / "pyproject.toml"
        write_atomic(self.bundle / "pyproject.toml", fab.read_bytes())

    def forget_state(self) -> None:
        """Remove SuperLink's state; it must not be running."""
        for path in self.root.glob(f"{self.database.name}*"):
            path.unlink()


def superlink_command(directory: FlowerDirectory, *, port: int, files: TlsFiles, secret: Path) -> list[str]:
    """SuperLink on loopback; what it is told is in files, nothing secret on the command line."""
    return [
        *(sys.executable, "-P", "-m", "server.guarded_superlink", str(directory.token.resolve())),
        installed_program("flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-ca-certfile", str(files.authority)),
        *("--ssl-certfile", str(files.certificate), "--ssl-keyfile", str(files.key)),
        "--enable-supernode-auth",
        *("--database", str(directory.database)),
        "--disable-runtime-dependency-installation",
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
    ]


def superexec_command(*, port: int, authority: Path, secret: Path) -> list[str]:
    """The executor that starts a ServerApp for each run."""
    command = [installed_program("flower-superexec"), "--runtime-api-address", f"127.0.0.1:{port}"]
    return [*command, "--root-certificates", str(authority), "--superexec-auth-secret-file", str(secret)]


def flower_environment(directory: Path, *, passphrase: bool, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of one of Flower's processes.

    Args:
        directory: FLWR_HOME.
        passphrase: Whether the process may know where the keys' passphrase is; only the executor, for its ServerApps.
        inherited: This process's own environment. Flower's variables are left out, so that no other home is used.
    """
    secrets = () if passphrase else (PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE)
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(("FLWR_", "RAY_")) and name not in secrets
    }
    private = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "FLWR_HOME": str(directory),
    }
    return {**kept, **_QUIET, **private}


def submit_run(directory: FlowerDirectory, *, run_dir: Path) -> str:
    """Hand a prepared run to Flower; returns Flower's id of it.

    Raises:
        BackendFailed: If Flower does not take it; the hint holds its words.
    """
    try:
        return directory.control().start(directory.bundle, {RUN_DIRECTORY_KEY: str(run_dir.resolve())})
    except BackendFailed as error:
        raise BackendFailed("Flower did not take the run", hint=f"{error.fact} {error.hint}".strip()) from error


def run_output(directory: FlowerDirectory, flower_run: str) -> str:
    """The last lines that a run's ServerApp printed, as SuperLink kept them; empty if it cannot say."""
    try:
        return last_lines(directory.control().output(flower_run))
    except FederationError:
        return ""


def installed_program(name: str) -> str:
    """The path of a command, the one that belongs to this Python first; raises BackendFailed without one."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BackendFailed(f"the command {name} is not installed beside this Python")
    return found


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_health(process: subprocess.Popen[bytes], port: int, *, timeout_s: float) -> bool:
    """True once /health answers 200 without TLS; False if the process ends or the time passes."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return process.poll() is None
        except (OSError, http.client.HTTPException):
            time.sleep(_LOOK_AGAIN_S)
        finally:
            connection.close()
    return False
