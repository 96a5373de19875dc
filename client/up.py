"""Agent and courier of one site, kept running by one command: for trials and simulations on one machine.

Both run as the user who started it, so that whoever takes over the courier reads the data. In production an init
system starts them as two users; `client/deploy` shows how.
"""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from client.agent_channel import AgentAway, AgentChannel
from client.node_files import NodeSettings, read_courier_settings
from client.up_events import LogFollower
from common.errors import ConfigurationError
from common.passphrase import PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE, read_passphrase
from common.supervisor import Child, Supervisor

GRACE_S: Final = 20.0  # an agent finishes what it computes; a courier tells the gateway that it leaves
AGENT_LOG: Final = "agent.log"
COURIER_LOG: Final = "courier.log"
LOOK_AT_LOGS_S: Final = 0.5
LOCK_FILE: Final = "up.lock"
FOR_TRIALS: Final = (
    "agent and courier run as one user: for trials; client/deploy shows how to give each a user of its own"
)

_READY_TIMEOUT_S = 1.0
_RUN_FEDWARD = "from common.cli import main; main()"


def run_node(
    home: Path, courier: Path, node: NodeSettings, *, environment: Mapping[str, str], tell: Callable[[str], None]
) -> None:
    """Keep both running until SIGTERM or Ctrl-C; none of their processes is left when this returns or raises.

    Args:
        home: The agent's directory; its output goes to agent.log there.
        courier: The courier's directory, likewise courier.log. The courier is not given the passphrase.
        environment: Of this process.
        tell: Given one line for people about every event.

    Raises:
        ConfigurationError: If there is no passphrase or no courier.toml, or another `up` runs here.
        BackendFailed: If agent or courier falls three times before it ever worked.
    """
    home, courier = home.absolute(), courier.absolute()
    gateway = read_courier_settings(courier).gateway
    read_passphrase(environment)
    with _only_one(home), AgentChannel(home / node.socket, patience_s=_READY_TIMEOUT_S) as channel:
        tell(FOR_TRIALS)
        tell(f"logs: {home / AGENT_LOG} and {courier / COURIER_LOG}")
        logs = (LogFollower("agent", home / AGENT_LOG), LogFollower("courier", courier / COURIER_LOG))

        def tell_events() -> None:
            for line in (line for log in logs for line in log.new_lines()):
                tell(line)

        supervisor = Supervisor(
            [agent_child(home, channel, environment), courier_child(courier, environment)],
            mark=f"site-up:{home}:",
            tell=tell,
            on_ready=lambda: tell(f"the node is up and calls {gateway}; Ctrl-C ends it"),
            tick=tell_events,
            tick_s=LOOK_AT_LOGS_S,
            grace_s=GRACE_S,
        )
        supervisor.run()
        tell_events()
        tell("agent and courier have ended")


def agent_child(home: Path, channel: AgentChannel, environment: Mapping[str, str]) -> Child:
    """The agent, ready once it answers on its socket."""
    return Child(
        name="agent",
        command=_fedward("site", "agent", "--home", str(home)),
        environment=dict(environment),
        ready=lambda: _answers(channel),
        log=home / AGENT_LOG,
    )


def courier_child(courier: Path, environment: Mapping[str, str]) -> Child:
    """The courier. It needs no passphrase, so it gets none."""
    secret = (PASSPHRASE_FILE_VARIABLE, PASSPHRASE_VARIABLE)
    return Child(
        name="courier",
        command=_fedward("site", "courier", "--courier", str(courier)),
        environment={name: value for name, value in environment.items() if name not in secret},
        log=courier / COURIER_LOG,
    )


def _answers(channel: AgentChannel) -> bool:
    try:
        channel.status(timeout_s=_READY_TIMEOUT_S)
    except AgentAway:
        return False
    return True


def _fedward(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-c", _RUN_FEDWARD, *arguments]  # -P: what lies in the working directory stays out


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the directory: a second supervisor would take this one's processes for leftovers and kill them."""
    try:
        handle = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"{home}: no site lives here, or it cannot be written ({error.strerror})") from error
    try:
        _lock(handle, home)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, home: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigurationError(f"{home}: another `fedward site up` runs here", hint="end that one first") from error
