"""A new site: keys, careful rules and the two directories of its two users, all of it or nothing."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from client.agent_channel import checked_socket_path
from client.home import SiteHome, create_home
from client.node_files import COURIER_FILE, NODE_FILE
from client.node_key import NODE_KEY_FILE, make_node_key, write_node_key
from client.own_enrolment import ENROLMENT_FILE, new_enrolment
from client.policy_template import policy_template
from common.crypto.keys import SigningKey
from common.crypto.seal import MINIMUM_PASSPHRASE_BYTES
from common.enrolment import Enrolment, write_enrolment
from common.errors import ConfigurationError, OutputExists
from common.files import write_atomic

DEFAULT_SOCKET: Final = "run/agent.sock"
_GATEWAY: Final = re.compile(r"[A-Za-z0-9.\-\[\]:]{1,253}:[0-9]{1,5}")
_LAST: Final = "site.json"  # a directory without it is no site
_HOME_FILES: Final = (
    *("identity.pem", "storage.key", "secrets.sealed", "policy.toml", "policy.sig", NODE_FILE, _LAST),
)
_COURIER_FILES: Final = (NODE_KEY_FILE, "node.pub", COURIER_FILE, ENROLMENT_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSite:
    """A site that was just made."""

    home: SiteHome
    courier: Path
    enrolment: Enrolment

    @property
    def enrolment_path(self) -> Path:
        """The file for the coordinator; it holds no secret."""
        return self.courier / ENROLMENT_FILE


def make_site(
    root: Path,
    *,
    name: str,
    passphrase: bytes,
    courier: Path,
    gateway: str = "",
    nominal_patients: int = 100,
    socket: str = DEFAULT_SOCKET,
    socket_group: str = "",
) -> NewSite:
    """Make a site's two directories: the agent's with its keys and rules, the courier's with the node key alone.

    A directory that is there already keeps what else it holds; run by root, the files go to its owner.

    Args:
        root: The agent's directory.
        courier: The courier's directory, outside the agent's.
        gateway: `host:port`; empty until `pin_consortium` writes it.
        nominal_patients: Public; never a count of the records.
        socket: Where the agent listens; relative paths start at `root`.

    Raises:
        OutputExists: If a site or a node key is there already.
        ConfigurationError: If a value is malformed or a directory cannot be written; nothing new is left behind then.
    """
    root, courier = root.absolute(), courier.absolute()
    _check(root, courier, passphrase=passphrase, gateway=gateway)
    address = _socket_address(root, socket)
    node_key = make_node_key()
    new_enrolment(SigningKey.generate(), name, node_key, nominal_patients)  # refuses a name before anything is made
    with _made_directory(root) as home_stage, _made_directory(courier) as courier_stage:
        home = create_home(home_stage, name=name, passphrase=passphrase)
        home.install_policy(policy_template())
        write_atomic(home_stage / NODE_FILE, _node_toml(socket, socket_group, courier).encode())
        enrolment = new_enrolment(home.identity, name, node_key, nominal_patients)
        write_node_key(courier_stage / NODE_KEY_FILE, node_key, name=name)
        write_atomic(courier_stage / COURIER_FILE, _courier_toml(gateway, address).encode())
        write_enrolment(courier_stage / ENROLMENT_FILE, enrolment, home.identity)
        with _in_place(courier_stage, courier, _COURIER_FILES), _in_place(home_stage, root, _HOME_FILES):
            pass
    return NewSite(home=replace(home, root=root), courier=courier, enrolment=enrolment)


def _check(root: Path, courier: Path, *, passphrase: bytes, gateway: str) -> None:
    if (root / _LAST).exists():
        raise OutputExists(f"{root}: there is a site already", hint="give another directory with --home DIR")
    wanted = [*map(root.joinpath, _HOME_FILES), *map(courier.joinpath, _COURIER_FILES)]
    there = [str(path) for path in wanted if os.path.lexists(path)]
    if there:
        raise OutputExists(
            f"{', '.join(there)}: there already, without a site",
            hint="an init that was cut off left them, or they are another site's; move them away first",
        )
    if root == courier or root.is_relative_to(courier) or courier.is_relative_to(root):
        raise ConfigurationError(
            f"{root} and {courier}: one directory lies in the other, and they belong to two users",
            hint="give --courier DIR beside the site's directory",
        )
    if len(passphrase) < MINIMUM_PASSPHRASE_BYTES:
        raise ConfigurationError(
            f"the passphrase has {len(passphrase)} bytes, the least is {MINIMUM_PASSPHRASE_BYTES}",
            hint="six random words do; keep a copy where the backup of the keys is not",
        )
    if gateway and not _GATEWAY.fullmatch(gateway):
        raise ConfigurationError(f"--gateway {gateway[:80]!r} is not HOST:PORT", hint="as in fl.example.org:9092")


def _socket_address(root: Path, socket: str) -> Path:
    try:
        return checked_socket_path(root / socket)
    except ConfigurationError as error:
        raise ConfigurationError(error.fact, hint="give a shorter one: --socket /run/fedward/agent.sock") from error


@contextmanager
def _made_directory(directory: Path) -> Iterator[Path]:
    """A place inside a directory where files are made; it is gone afterwards, and so is a directory left empty."""
    new = [place for place in (directory, *directory.parents) if not place.exists()]
    stage = directory / f".init-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        stage.mkdir(mode=0o700)
        yield stage
    except OSError as error:
        raise ConfigurationError(
            f"{directory}: cannot be written: {error.strerror or error}",
            hint="make the directory for its user first, or run this as root: the files go to the directory's owner",
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for place in new:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


@contextmanager
def _in_place(stage: Path, directory: Path, names: Sequence[str]) -> Iterator[None]:
    """Move files to where they belong; if anything fails before the block ends, they are gone again."""
    moved: list[Path] = []
    owner = directory.stat()
    try:
        for name in names:
            if os.geteuid() == 0:
                os.chown(stage / name, owner.st_uid, owner.st_gid, follow_symlinks=False)
            moved.append(directory / name)
            (stage / name).replace(directory / name)
        yield
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        raise


def _node_toml(socket: str, socket_group: str, courier: Path) -> str:
    return f"""\
# How this site's agent runs. Read at its start: fedward site agent
version = 1

# Where the agent listens for its courier; relative paths start here. In production /run/fedward/agent.sock.
socket = {_toml(socket)}

# The group whose members may connect: the courier's user must be one. Empty: only the agent's own user.
socket_group = {_toml(socket_group)}

# Where gradients are computed: "auto" is the GPU where there is one; "cpu", "cuda".
device = "auto"

# The courier's directory, for fedward site up, check and trust.
courier = {_toml(str(courier))}
"""


def _courier_toml(gateway: str, agent: Path) -> str:
    return f"""\
# How this site's courier runs. Read at its start: fedward site courier
version = 1

# host:port of the coordinator's gateway; fedward site trust writes it.
gateway = {_toml(gateway)}

# The authority that the gateway's certificate is checked against; fedward site trust writes it.
certificates = "ca.crt"

# Opens the transport to the gateway and proves nothing more.
node_key = "node.key"

# The agent's socket.
agent = {_toml(str(agent))}

# "fedward" speaks Flower's Fleet API itself; "supernode" starts Flower's own SuperNode.
courier = "fedward"

# Seconds between two looks for messages.
poll_s = 0.2

# Where the gateway asks for a client certificate:
# client_certificate = "client.crt"
# client_key = "client.key"
"""


def _toml(text: str) -> str:
    """A TOML string; JSON's escapes are TOML's but for one sign."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
