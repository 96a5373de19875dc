"""Keeps the nodes that Flower lets in equal to the members of the consortium."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization

from common.crypto.keys import VerifyKey
from common.errors import BackendFailed, FederationError
from server.flower_control import UNREGISTERED, FlowerControl
from server.members import Member, Members, read_members

LOOK_ANYWAY_S: Final = 60.0


class Registration:
    """Registers the node keys of those who were enrolled and unregisters those of the revoked.

    The gateway turns the revoked away by itself; this is the second lock on the same door.
    """

    def __init__(
        self,
        root: Path,
        *,
        key: VerifyKey,
        control: FlowerControl,
        stale_mark: Path,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            root: The coordinator's directory.
            key: Its public key.
            control: SuperLink.
            stale_mark: A file that is made when SuperLink's state has to be made anew at the next start: Flower never
                takes back a key that was unregistered.
            tell: Is given one line for people for each change, and once for each trouble.
        """
        self._root = root
        self._key = key
        self._control = control
        self._stale_mark = stale_mark
        self._tell = tell
        self._clock = clock
        self._settled: frozenset[str] | None = None
        self._look_again = 0.0
        self._told = ""

    def reconcile(self) -> None:
        """Do what is to be done, if the members changed or a minute passed; what fails is tried again next time."""
        try:
            members = self._members().active
            wanted = {member.node_digest: (name, member) for name, member in members.items()}
            if self._settled == wanted.keys() and self._clock() < self._look_again:
                return
            self._settle(wanted)
        except FederationError as error:
            self._complain(f"members are not brought to Flower: {error.fact} {error.hint}".strip())
            return
        self._told = ""
        self._settled, self._look_again = frozenset(wanted), self._clock() + LOOK_ANYWAY_S

    def _members(self) -> Members:
        if not (self._root / "members.json").exists():
            return Members(by_name={})
        return read_members(self._root, self._key)

    def _settle(self, wanted: dict[str, tuple[str, Member]]) -> None:
        nodes = self._control.nodes()
        for digest, node in nodes.items():
            if digest not in wanted and node.status != UNREGISTERED:
                self._control.unregister(node.node_id)
                self._tell(f"the node key {_short(digest)} is let in no more")
        stale = []
        for digest, (name, member) in wanted.items():
            if digest not in nodes:
                self._control.register(_pem(member.node_key), name=name)
                self._tell(f"{name} may connect")
            elif nodes[digest].status == UNREGISTERED:
                stale.append(name)
        if stale:
            self._stale_mark.touch()
            raise BackendFailed(
                f"{', '.join(stale)}: Flower takes no node key back that was revoked.",
                hint="The next start of `fedward server up` mends it; runs that are under way are resumed then.",
            )

    def _complain(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._tell(text)


def _pem(node_key: str) -> bytes:
    key = serialization.load_ssh_public_key(node_key.encode())
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12]
