"""What a node's two processes read at their start: `node.toml` of the agent, `courier.toml` of the courier.

They are two directories of two users. The courier's holds the node key and no more: nothing of the site.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from common.settings import Settings, read_settings

NODE_FILE: Final = "node.toml"
COURIER_FILE: Final = "courier.toml"


class NodeSettings(Settings):
    """node.toml, in the site's directory.

    Attributes:
        socket: Where the agent listens; relative paths start at the site's directory.
        socket_group: Name of the group whose members may connect; empty: only the agent's own user.
        device: Where gradients are computed; `auto` is the GPU where there is one.
        courier: The courier's directory, for `fedward site up` and `check`; relative paths start at the site's.
    """

    version: Literal[1] = 1
    socket: str = "run/agent.sock"
    socket_group: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    courier: str = ""


class CourierSettings(Settings):
    """courier.toml, in the courier's directory; relative paths start there.

    Attributes:
        gateway: `host:port` of the coordinator's gateway.
        certificates: PEM of the authority that the gateway's certificate is checked against.
        node_key: OpenSSH private key, ECDSA on P-384.
        agent: The agent's socket.
        courier: `fedward` speaks Flower's Fleet API itself; `supernode` starts Flower's own SuperNode.
        poll_s: Seconds between two looks for messages while they come.
        client_certificate: PEM, where the gateway asks for one; `client_key` is its private key.
    """

    version: Literal[1] = 1
    gateway: str
    certificates: str = "ca.crt"
    node_key: str = "node.key"
    agent: str
    courier: Literal["fedward", "supernode"] = "fedward"
    poll_s: float = Field(default=0.2, gt=0, le=60)
    client_certificate: str = ""
    client_key: str = ""


def read_node_settings(home: Path) -> NodeSettings:
    """The agent's settings; the defaults where the site has no node.toml. Raises ConfigurationError if malformed."""
    path = home / NODE_FILE
    return read_settings(path, NodeSettings) if path.exists() else NodeSettings()


def read_courier_settings(directory: Path) -> CourierSettings:
    """The courier's settings; raises ConfigurationError if there are none or they are malformed."""
    return read_settings(directory / COURIER_FILE, CourierSettings)
