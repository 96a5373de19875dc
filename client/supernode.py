"""Flower's own SuperNode in the courier's place, for sites that require it: `courier = "supernode"` in courier.toml.

It runs what a coordinator ships, as the courier's user. So it is given no passphrase and no directory of the site, only
the socket: whatever it runs can do what a courier could.
"""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from client.agent_channel import checked_socket_path
from client.node_files import CourierSettings
from client.site_files import AGENT_KEY
from common.errors import MissingDependency

PROGRAM: Final = "flower-supernode"
FLOWER_DIRECTORY: Final = "flower"

_OURS = "FEDWARD_"


def run_supernode(directory: Path, settings: CourierSettings) -> None:
    """Become Flower's SuperNode; does not return.

    It ends itself with exit code 305 when it comes back within half a minute of an unclean end: let an init system
    start it again.

    Raises:
        MissingDependency: If Flower's command is not installed beside this Python.
    """
    program = Path(sys.executable).parent / PROGRAM
    if not program.exists():
        raise MissingDependency(f"Flower's command {PROGRAM} is not installed beside this Python")
    arguments = [str(program), *supernode_arguments(directory.absolute(), settings)]
    os.execve(program, arguments, supernode_environment(directory.absolute(), os.environ))


def supernode_arguments(directory: Path, settings: CourierSettings) -> list[str]:
    """Its command line; the runtime's own port is one that was free a moment ago, on loopback."""
    return [
        "--superlink",
        settings.gateway,
        "--root-certificates",
        str(directory / settings.certificates),
        "--auth-supernode-private-key",
        str(directory / settings.node_key),
        "--node-config",
        f'{AGENT_KEY}="{checked_socket_path(directory / settings.agent)}"',
        "--isolation",
        "subprocess",
        "--host",
        "127.0.0.1",
        "--port",
        str(_free_port()),
    ]


def supernode_environment(directory: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Nothing of Fedward's, a home for Flower in the courier's directory, and no call to Flower's makers."""
    kept = {name: value for name, value in environment.items() if not name.startswith((_OURS, "FLWR_"))}
    scripts = str(Path(sys.executable).parent)
    return {
        **kept,
        "PATH": os.pathsep.join([scripts, kept.get("PATH", os.defpath)]),
        "FLWR_HOME": str(directory / FLOWER_DIRECTORY),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
