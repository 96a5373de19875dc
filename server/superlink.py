"""Flower's processes on the coordinator's machine: their commands, their environment, and a run handed to them.

SuperLink listens on loopback under TLS with node authentication. The ServerApp runs apart from it, started by an
executor that knows a secret: without the two, whoever reaches the port could take a ServerApp's place.
"""

import http.client
import json
import os
import re
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

from common.errors import BackendFailed
from common.files import write_atomic
from common.logs import last_lines
from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE
from server.pki import TlsFiles

CONNECTION: Final = "coordinator"
COMMAND_TIMEOUT_S: Final = 120.0

_LOOK_AGAIN_S = 0.05
_RUN_ID = re.compile(r"[0-9]{1,20}")
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerDirectory:
    """What Flower keeps on the coordinator's machine, below one directory.

    Attributes:
        root: `ServerHome.flower`.
    """

    root: Path

    @property
    def home(self) -> Path:
        """FLWR_HOME: the connection, and unpacked bundles."""
        return self.root / "home"

    @property
    def database(self) -> Path:
        """SuperLink's state."""
        return self.root / "state.db"

    @property
    def bundle(self) -> Path:
        """What is handed to Flower for every run: one pyproject.toml that names the installed apps."""
        return self.root / "bundle"

    def log(self, name: str) -> Path:
        """Where one process writes."""
        return self.root / f"{name}.log"

    def prepare(self, *, address: str, authority: Path) -> None:
        """Write the connection that `flwr` commands use, and the bundle.

        Args:
            address: `host:port` of SuperLink.
            authority: Certificate that SuperLink's is checked against.
        """
        lines = [f'[superlink]\ndefault = "{CONNECTION}"', f"[superlink.{CONNECTION}]", f'address = "{address}"']
        lines += [f"root-certificates = {json.dumps(str(authority), ensure_ascii=False)}", ""]
        write_atomic(self.home / "config.toml", "\n".join(lines).encode())
        fab = resources.files("server") / "fab" / "pyproject.toml"
        write_atomic(self.bundle / "pyproject.toml", fab.read_bytes())

    def forget_state(self) -> None:
        """Remove SuperLink's state; it must not be running."""
        for path in self.root.glob(f"{self.database.name}*"):
            path.unlink()


def superlink_command(directory: FlowerDirectory, *, port: int, files: TlsFiles, secret: Path) -> list[str]:
    """SuperLink on loopback; what it is told is in files, nothing secret on the command line."""
    return [
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
    config = directory.root / "run.toml"
    write_atomic(config, f"run-dir = {json.dumps(str(run_dir.resolve()), ensure_ascii=False)}\n".encode())
    done = _flwr(directory, "run", str(directory.bundle), CONNECTION, "--run-config", str(config), "--format", "json")
    flower_run = _run_id(done.stdout)
    if done.returncode != 0 or not flower_run:
        raise BackendFailed("Flower did not take the run", hint=(done.stdout + done.stderr).strip()[-2000:])
    return flower_run


def run_output(directory: FlowerDirectory, flower_run: str) -> str:
    """The last lines that a run's ServerApp printed, as SuperLink kept them; empty if it cannot say."""
    try:
        done = _flwr(directory, "log", flower_run, CONNECTION, "--show")
    except BackendFailed:
        return ""
    return last_lines(done.stdout)


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


def _flwr(directory: FlowerDirectory, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One of Flower's commands, in its own home and without a passphrase."""
    try:
        return subprocess.run(
            [installed_program("flwr"), *arguments],
            cwd=directory.root,
            env=flower_environment(directory.home, passphrase=False, inherited=os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendFailed(f"`flwr {arguments[0]}` did not end within {COMMAND_TIMEOUT_S:g} s") from error


def _run_id(output: str) -> str:
    """The run id in what `flwr run --format json` prints; empty if there is none."""
    try:
        found = str(json.loads(output)["run-id"])
    except (ValueError, KeyError, TypeError):
        return ""
    return found if _RUN_ID.fullmatch(found) else ""
