"""`fedward site agent`: the agent as a long-lived process, until SIGTERM or Ctrl-C."""

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from client.agent import SiteAgent
from client.agent_channel import checked_socket_path
from client.agent_service import AgentService, serving
from client.node_files import read_node_settings
from common.cli import installed_version
from common.journal import Journal
from common.passphrase import read_passphrase
from common.terminal import one_line

NOTIFY_VARIABLE = "NOTIFY_SOCKET"

_PR_SET_DUMPABLE = 4


def run_agent(home: Path) -> None:
    """Answer requests on the site's socket until told to stop; the request in progress is then finished.

    Torch, keys and ledger stay in memory from the start, a run's records from its first round. Once it listens, a line
    on stderr says so, and systemd is told.

    Raises:
        ConfigurationError: If no site lives there, another agent holds it, or it cannot listen.
        TrustError: If the passphrase is wrong. LedgerCorrupt: If the ledger does not verify.
    """
    _keep_memory_private()
    node = read_node_settings(home)
    path = checked_socket_path(home / node.socket)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: _stop(stopping, number, frame))
    journal = Journal(sys.stderr)
    passphrase = read_passphrase(os.environ)
    with SiteAgent.open(home, passphrase=passphrase, journal=journal, device=node.device) as agent:
        name = agent.home.name
        service = AgentService(
            agent.handle,
            site=name,
            version=installed_version(),
            on_failure=lambda error: journal.write("failed", site=name, error=error),
        )
        with serving(service, path, group=node.socket_group):
            _say(f"the agent of {name} answers at {path}")
            notify_systemd(os.environ, "READY=1")
            stopping.wait()
            _say(f"the agent of {name} stops once it has answered what it works on")
            notify_systemd(os.environ, "STOPPING=1")
    _say(f"the agent of {name} stopped")


def notify_systemd(environment: Mapping[str, str], state: str) -> None:
    """Tell the init system what a unit of Type=notify waits for; nothing where none listens."""
    address = environment.get(NOTIFY_VARIABLE, "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)


def _keep_memory_private() -> None:
    """No core dump, and no other process of the same user may read this one's memory or environment (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _stop(stopping: threading.Event, number: int, frame: FrameType | None) -> None:
    stopping.set()


def _say(line: str) -> None:
    sys.stderr.write(f"{one_line(line)}\n")
    sys.stderr.flush()
