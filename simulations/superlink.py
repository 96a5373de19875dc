"""A SuperLink of one's own for one simulated run: private home, explicit loopback port, stopped by process id.

Flower's `:local:` connection would leave a daemon behind that keeps the environment of whoever called it first.
"""

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import BackendFailed
from common.files import write_atomic
from simulations.processes import MARK_VARIABLE, stop

CONNECTION = "sim"
START_TIMEOUT_S = 60.0
STOP_GRACE_S = 10.0
LOG_TAIL_LINES = 40

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_REQUEST_LINE = " INFO [uvicorn.access] "
_ATTEMPTS = 3
_LONGEST_SOCKET_BASE = 40
_LOOK_AGAIN_S = 0.05
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperLink:
    """A running SuperLink in simulation mode.

    Attributes:
        process: Its first process.
        directory: Private to the run and short: homes, logs, Ray's sockets. Gone when the run is over.
        environment: What commands that talk to it run with.
        log: Where it and everything below it writes.
    """

    process: subprocess.Popen[bytes]
    directory: Path
    environment: Mapping[str, str]
    log: Path

    def log_tail(self) -> str:
        """The last lines of the log, without colours and without the lines on single HTTP requests."""
        text = _COLOUR.sub("", self.log.read_text(encoding="utf-8", errors="replace"))
        lines = [line for line in text.splitlines() if _REQUEST_LINE not in line]
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def program(self, name: str) -> str:
        """The path of one of Flower's commands, the one that belongs to this Python first."""
        return _program(name)


@contextmanager
def running_superlink(extra_environment: Mapping[str, str], *, secrets: Mapping[str, bytes]) -> Iterator[SuperLink]:
    """Start a SuperLink, wait until it is healthy, and leave no process and no file of it behind.

    Args:
        extra_environment: Added to the environment of every process of the run. Of this process's own environment
            Flower's and Ray's variables are left out, so that no running cluster and no other home is used.
        secrets: Per variable, what is written to a file of mode 0600 whose path the variable then holds.

    Raises:
        BackendFailed: If it does not become healthy.
    """
    directory = Path(tempfile.mkdtemp(prefix="fw-", dir=_short_base()))
    try:
        environment = _environment(directory, extra_environment)
        for variable, secret in secrets.items():
            environment[variable] = str(directory / variable.lower())
            write_atomic(directory / variable.lower(), secret, mode=0o600)
        superlink = _start(directory, environment)
        try:
            yield superlink
        finally:
            stop(superlink.process, str(directory), grace_s=STOP_GRACE_S)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(directory: Path, environment: Mapping[str, str]) -> SuperLink:
    """A healthy SuperLink; another port is tried when somebody took the one that was free a moment ago."""
    log = directory / "flower.log"
    for _ in range(_ATTEMPTS):
        port = _free_port()
        command = [_program("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        superlink = SuperLink(process=process, directory=directory, environment=environment, log=log)
        try:
            healthy = _wait_for_health(process, port)
        except BaseException:
            stop(process, str(directory), grace_s=STOP_GRACE_S)
            raise
        if healthy:
            _write_connection(directory, port)
            return superlink
        stop(process, str(directory), grace_s=STOP_GRACE_S)
    raise BackendFailed(f"Flower's SuperLink did not become healthy in {_ATTEMPTS} attempts", hint=superlink.log_tail())


def _wait_for_health(process: subprocess.Popen[bytes], port: int) -> bool:
    """True once /health answers 200; False if the process ends or START_TIMEOUT_S pass."""
    deadline = time.monotonic() + START_TIMEOUT_S
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


def _environment(directory: Path, extra: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))}
    scripts = str(Path(sys.executable).parent)
    private = {
        "PATH": os.pathsep.join([scripts, inherited.get("PATH", os.defpath)]),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "FLWR_HOME": str(directory / "home"),
        "RAY_TMPDIR": str(directory),
        MARK_VARIABLE: str(directory),
    }
    return {**inherited, **_QUIET, **private, **extra}


def _write_connection(directory: Path, port: int) -> None:
    home = directory / "home"
    home.mkdir(exist_ok=True)
    lines = [f'[superlink]\ndefault = "{CONNECTION}"', f"[superlink.{CONNECTION}]"]
    lines += [f'address = "127.0.0.1:{port}"', "insecure = true", ""]
    (home / "config.toml").write_text("\n".join(lines), encoding="utf-8")


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BackendFailed(f"Flower's command {name} is not installed beside this Python")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _short_base() -> str:
    """The temporary directory, or /tmp where its path is too long for the Unix sockets that Ray makes inside."""
    base = tempfile.gettempdir()
    return base if len(base) <= _LONGEST_SOCKET_BASE else "/tmp"
