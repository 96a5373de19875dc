"""`fedward server up`: SuperLink, its executor, the gateway and the API, kept running until somebody ends them."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from common.errors import ConfigurationError
from common.supervisor import Child, Supervisor
from server.flower_control import FlowerControl
from server.home import ServerHome
from server.lock import exclusive
from server.moments import utc_now
from server.pki import check_in_force, loopback_files
from server.registration import Registration
from server.superlink import (
    FlowerDirectory,
    flower_environment,
    free_port,
    installed_program,
    superexec_command,
    superlink_command,
)
from server.upstate import UP_FILE, UP_LOCK, UpState, write_up

RECONCILE_S: Final = 2.0
STOP_GRACE_S: Final = 15.0

_CONNECT_TIMEOUT_S = 1.0
_LOCK_WAIT_S = 1.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def run_up(home: ServerHome, *, tell: Callable[[str], None], ready: Callable[[UpState], None]) -> None:
    """Block until SIGTERM or SIGINT; no process is left when it returns or raises.

    What falls is started again, SuperLink on its port: a run that is under way goes on. Of the processes only the
    executor is told where the passphrase is, for its ServerApps.

    Args:
        home: The coordinator's directory, opened.
        tell: Is given lines for people.
        ready: Called once when everything works and `up.json` is written.

    Raises:
        ConfigurationError: If another one runs on the same directory, a file is missing or an address is taken.
        BackendFailed: If a part never became ready.
    """
    os.umask(0o077)
    with _only_one(home.root):
        (home.root / UP_FILE).unlink(missing_ok=True)
        _check_ready_to_start(home)
        try:
            _supervise(home, tell, ready)
        finally:
            (home.root / UP_FILE).unlink(missing_ok=True)


def _supervise(home: ServerHome, tell: Callable[[str], None], ready: Callable[[UpState], None]) -> None:
    flower, stale_mark = FlowerDirectory(root=home.flower), home.flower / "stale"
    authority = loopback_files(home.pki).authority.resolve()
    state = UpState(
        pid=os.getpid(),
        superlink=f"127.0.0.1:{free_port()}",
        gateway=home.settings.listen,
        api=home.settings.api,
    )
    control = FlowerControl(state.superlink, authority=authority, token=flower.token)
    registration = Registration(home.root, key=home.key.public_key, control=control, stale_mark=stale_mark, tell=tell)

    def everything_runs() -> None:
        registration.reconcile()
        write_up(home.root, state)
        ready(state)

    supervisor = Supervisor(
        _children(home, flower, state, control, os.environ),
        mark=f"{home.root.resolve()}#server",
        tell=tell,
        on_start=lambda: _prepare(flower, state, authority, stale_mark),
        on_ready=everything_runs,
        tick=registration.reconcile,
        tick_s=RECONCILE_S,
        grace_s=STOP_GRACE_S,
    )
    supervisor.run()


def _prepare(flower: FlowerDirectory, state: UpState, authority: Path, stale_mark: Path) -> None:
    """Called when nothing of an earlier start runs any more; raises ConfigurationError if an address is taken."""
    for setting, address in (("listen", state.gateway), ("api", state.api)):
        if address:
            _refuse_if_taken(setting, address)
    flower.prepare(address=state.superlink, authority=authority)
    if stale_mark.exists():
        flower.forget_state()
        stale_mark.unlink()


def _children(
    home: ServerHome,
    flower: FlowerDirectory,
    state: UpState,
    control: FlowerControl,
    inherited: Mapping[str, str],
) -> list[Child]:
    files, secret = loopback_files(home.pki.resolve()), home.superexec_secret_path.resolve()
    root, port = home.root.resolve(), int(state.superlink.rpartition(":")[2])
    closed = flower_environment(flower.home, passphrase=False, inherited=inherited)
    opened = flower_environment(flower.home, passphrase=True, inherited=inherited)
    fedward = installed_program("fedward")
    children = [
        Child(
            name="superlink",
            command=superlink_command(flower, port=port, files=files, secret=secret),
            # Its log would hold a line for each of the couriers' looks, five a second and site.
            environment={**closed, "FLWR_LOG_LEVEL": "WARNING"},
            ready=control.is_healthy,
            log=flower.log("superlink"),
        ),
        Child(
            name="superexec",
            command=superexec_command(port=port, authority=files.authority, secret=secret),
            environment=opened,
            log=flower.log("superexec"),
        ),
        Child(
            name="gateway",
            command=[fedward, "server", "gateway", "--home", str(root), "--superlink", state.superlink],
            environment=closed,
            ready=lambda: _accepts(state.gateway),
            log=flower.log("gateway"),
        ),
    ]
    if state.api:
        api = Child(
            name="api",
            command=[fedward, "server", "api", "--home", str(root)],
            environment=closed,
            ready=lambda: _accepts(state.api),
            log=flower.log("api"),
        )
        children.append(api)
    return children


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Hold the lock that says that a coordinator is up."""
    with ExitStack() as held:
        try:
            held.enter_context(exclusive(root / UP_LOCK, timeout_s=_LOCK_WAIT_S))
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{root}: a coordinator is up on this directory already",
                hint="end that one first: Ctrl-C there, or SIGTERM",
            ) from error
        yield


def _check_ready_to_start(home: ServerHome) -> None:
    files = loopback_files(home.pki)
    for path in (files.authority, files.certificate, files.key, home.superexec_secret_path):
        if not path.is_file():
            raise ConfigurationError(
                f"{path}: no such file", hint="`fedward server init` makes it; restore it from a backup"
            )
    for path in (files.authority, files.certificate):
        check_in_force(path, utc_now())
    home.flower.mkdir(exist_ok=True, mode=0o700)


def _refuse_if_taken(setting: str, address: str) -> None:
    host, port = _host_and_port(address)
    if port == 0:
        raise ConfigurationError(f"server.toml: {setting} = {address!r} names no port", hint="write the port down")
    try:
        family, kind, protocol, _, bound = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(bound)
    except OSError as error:
        raise ConfigurationError(
            f"server.toml: {setting} = {address!r} cannot be used: {error.strerror}",
            hint="another program listens there, or the address is not of this machine",
        ) from error


def _accepts(address: str) -> bool:
    """Whether somebody listens there."""
    host, port = _host_and_port(address)
    try:
        with socket.create_connection((_WILDCARDS.get(host, host), port), timeout=_CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
