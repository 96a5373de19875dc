"""An agent that gives every envelope back: python -m simulations.bench.deployment_echo SOCKET.

It listens as the real agent does, through the same service, so that a courier cannot tell them apart.
"""

import argparse
import signal
import threading
from pathlib import Path

from client.agent_service import AgentService, serving


def serve_echo(socket: Path, *, stopping: threading.Event) -> None:
    """Listen until told to stop."""
    service = AgentService(bytes, site="echo", version="0", on_failure=lambda _name: None)
    with serving(service, socket, group=""):
        stopping.wait()


def main() -> None:
    """Read the command line and serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="Give every envelope back.")
    parser.add_argument("socket", type=Path)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    serve_echo(parser.parse_args().socket, stopping=stopping)


if __name__ == "__main__":
    main()
