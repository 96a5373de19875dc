"""A ClientApp as a hostile coordinator would ship it. It tries what it is told of a site and says what it got.

It runs inside Flower's SuperNode, as the courier's user. The message names the agent's directory, process and socket:
whoever writes such an app may know them.
"""

import ctypes
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from common.flower import pack, unpack

PTRACE_ATTACH = 16

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Try everything; the reply names each attempt with what came of it."""
    order = json.loads(unpack(message.content))
    home, agent, place = Path(order["home"]), order["pid"], Path(order["socket"])
    process = Path("/proc") / str(agent)
    attempts: dict[str, Callable[[], object]] = {
        "own node key": lambda: Path(order["node_key"]).read_bytes(),
        "connect": lambda: socket.socket(socket.AF_UNIX).connect(str(place)),
        "list home": lambda: os.listdir(home),
        "write home": lambda: (home / "ledger.jsonl").open("ab"),
        "passphrase file": lambda: Path(order["passphrase_file"]).read_bytes(),
        "socket directory": lambda: (place.parent / "mine").touch(),
        "unlink socket": place.unlink,
        "chmod socket": lambda: place.chmod(0o777),
        "become agent": lambda: os.setuid(order["agent_uid"]),
        "ptrace": lambda: attach(agent),
        **{f"read {name}": (home / name).read_bytes for name in order["files"]},
        **{
            f"proc {name}": lambda name=name: (process / name).open("rb").read(1) for name in ("environ", "mem", "maps")
        },
        **{f"link {name}": lambda name=name: os.readlink(process / name) for name in ("cwd", "root", "exe")},
        "proc fd": lambda: os.listdir(process / "fd"),
        **{
            f"signal {number}": lambda number=number: os.kill(agent, number)
            for number in (0, signal.SIGTERM, signal.SIGKILL)
        },
    }
    result = {"uid": os.getuid(), "secrets": [name for name in os.environ if "PASSPHRASE" in name]}
    result["got"] = {name: outcome(attempt) for name, attempt in attempts.items()}
    return Message(pack(json.dumps(result).encode()), reply_to=message)


def outcome(attempt: Callable[[], object]) -> str:
    """`done`, or the name of the error."""
    try:
        attempt()
    except Exception as error:
        return type(error).__name__
    return "done"


def attach(process: int) -> None:
    """Take hold of another process, as a debugger does."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.ptrace(PTRACE_ATTACH, process, None, None) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")
