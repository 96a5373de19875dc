"""A SuperLink of one's own for one simulated run: private home, explicit loopback port, stopped by process id.

Flower's `:local:` connection would leave a daemon behind that keeps the environment of whoever called it first.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import BackendFailed
from common.files import write_atomic
from common.logs import log_tail
from common.processes import MARK_VARIABLE, stop
from server.superlink import flower_environment, free_port, installed_program, wait_for_health

CONNECTION = "sim"
START_TIMEOUT_S = 60.0
STOP_GRACE_S = 10.0

_ATTEMPTS = 3
_LONGEST_SOCKET_BASE = 40
_QUIET_RAY = {
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
        return log_tail(self.log)

    def program(self, name: str) -> str:
        """The path of one of Flower's commands, the one that belongs to this Python first."""
        return installed_program(name)


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
        port = free_port()
        command = [installed_program("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
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
            healthy = wait_for_health(process, port, timeout_s=START_TIMEOUT_S)
        except BaseException:
            stop(process, str(directory), grace_s=STOP_GRACE_S)
            raise
        if healthy:
            _write_connection(directory, port)
            return superlink
        stop(process, str(directory), grace_s=STOP_GRACE_S)
    raise BackendFailed(f"Flower's SuperLink did not become healthy in {_ATTEMPTS} attempts", hint=superlink.log_tail())


def _environment(directory: Path, extra: Mapping[str, str]) -> dict[str, str]:
    flower = flower_environment(directory / "home", passphrase=False, inherited=os.environ)
    return {**flower, **_QUIET_RAY, "RAY_TMPDIR": str(directory), MARK_VARIABLE: str(directory), **extra}


def _write_connection(directory: Path, port: int) -> None:
    home = directory / "home"
    home.mkdir(exist_ok=True)
    lines = [f'[superlink]\ndefault = "{CONNECTION}"', f"[superlink.{CONNECTION}]"]
    lines += [f'address = "127.0.0.1:{port}"', "insecure = true", ""]
    (home / "config.toml").write_text("\n".join(lines), encoding="utf-8")


def _short_base() -> str:
    """The temporary directory, or /tmp where its path is too long for the Unix sockets that Ray makes inside."""
    base = tempfile.gettempdir()
    return base if len(base) <= _LONGEST_SOCKET_BASE else "/tmp"
