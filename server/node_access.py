"""Which member a request comes from: Flower's signed headers, held against the signed list of members.

Flower's own check comes after it, in SuperLink. This one keeps strangers away from SuperLink, takes effect as soon as
`members.json` changes, and lets nobody use up the limits of a node whose private key he does not hold.
"""

import binascii
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

from common.crypto.keys import VerifyKey
from common.enrolment import node_key_digest, node_key_text, pem_digest
from common.errors import ConfigurationError, FederationError
from server.gateway_log import STRANGER
from server.home import read_public_key
from server.members import Member, read_members

MEMBERS_FILE: Final = "members.json"
LOOK_AGAIN_S: Final = 1.0
OLDEST: Final = timedelta(seconds=TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)
NEWEST: Final = timedelta(seconds=SYSTEM_TIME_TOLERANCE)

_KEY, _TIME, _SIGNATURE = (
    name.encode() for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, TIMESTAMP_HEADER, FLEET_HTTP_SIGNATURE_HEADER)
)
_KEY_HEX: Final = 12

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who a request says it is from.

    Attributes:
        name: Of the member; `stranger` without one.
        digest: Of the node key; empty without one.
        refused: Why the request may not pass; empty if it may.
    """

    name: str = STRANGER
    digest: str = ""
    refused: str = ""

    @property
    def key(self) -> str:
        """The digest's first digits, for the log."""
        return self.digest.removeprefix("sha256:")[:_KEY_HEX]


class MembersUnreadable(Exception):
    """The list of members is missing, malformed or not signed by the coordinator: nobody may pass."""


class NodeAccess:
    """Tells members from strangers; reads `members.json` again when it changes."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Pin the coordinator's key.

        Raises:
            ConfigurationError: If `coordinator.pub` is missing or no key.
        """
        self._root, self._clock, self._monotonic = root, clock, monotonic
        self._coordinator = read_public_key(root)
        self._seen: tuple[int, int, int] | None = None
        self._looked = -LOOK_AGAIN_S
        self._nodes: Mapping[str, _Node] | None = None

    def identify(self, headers: Headers) -> Caller:
        """Whose request this is.

        Guarantee: a caller that is not refused holds the private key of an active member's node key and signed the
        time within Flower's tolerance of now.

        Raises:
            MembersUnreadable: If the list of members cannot be relied on.
        """
        nodes = self._members()
        try:
            pem, signature, stamp = _signed_headers(headers)
        except ValueError:
            return Caller(refused="no node key")
        digest = pem_digest(pem)
        node = nodes.get(digest)
        if node is None:
            return Caller(digest=digest, refused="not a member")
        if not node.active:
            return Caller(name=node.name, digest=digest, refused="revoked")
        try:
            node.key.verify(signature, stamp, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return Caller(digest=digest, refused="bad signature")
        return Caller(name=node.name, digest=digest, refused="" if self._is_now(stamp) else "clock")

    def _is_now(self, stamp: bytes) -> bool:
        try:
            age = self._clock() - datetime.fromisoformat(stamp.decode("ascii"))
        except (ValueError, TypeError):
            return False
        return -NEWEST < age < OLDEST

    def _members(self) -> "Mapping[str, _Node]":
        try:
            status = (self._root / MEMBERS_FILE).stat()
        except OSError as error:
            self._nodes, self._seen = None, None
            raise MembersUnreadable(MEMBERS_FILE) from error
        seen, now = (status.st_mtime_ns, status.st_ino, status.st_size), self._monotonic()
        if seen != self._seen or (self._nodes is None and now - self._looked >= LOOK_AGAIN_S):
            self._seen, self._looked, self._nodes = seen, now, None
            try:
                self._nodes = _read_nodes(self._root, self._coordinator)
            except FederationError as error:
                raise MembersUnreadable(MEMBERS_FILE) from error
        if self._nodes is None:
            raise MembersUnreadable(MEMBERS_FILE)
        return self._nodes


@dataclass(frozen=True, slots=True)
class _Node:
    name: str
    active: bool
    key: ec.EllipticCurvePublicKey


def _signed_headers(headers: Headers) -> tuple[bytes, bytes, bytes]:
    """Key, signature and time stamp; raises ValueError if one is missing, twice there, or no base64."""
    wanted: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in (_KEY, _TIME, _SIGNATURE):
            if name in wanted:
                raise ValueError("twice")
            wanted[name] = value
    try:
        return b64decode(wanted[_KEY], validate=True), b64decode(wanted[_SIGNATURE], validate=True), wanted[_TIME]
    except (KeyError, binascii.Error) as error:
        raise ValueError("missing") from error


def _read_nodes(root: Path, coordinator: VerifyKey) -> dict[str, _Node]:
    """Nodes by digest, keys that a member had before among them; those of active members come last and count."""
    members = read_members(root, coordinator)
    nodes: dict[str, _Node] = {}
    for name, member in members.by_name.items():
        for node_key in _former_node_keys(member):
            nodes[node_key_digest(node_key)] = _Node(name, False, _public_key(node_key))
    for name, member in members.active.items():
        nodes[member.node_digest] = _Node(name, True, _public_key(member.node_key))
    return nodes


def _former_node_keys(member: Member) -> Iterator[str]:
    for key in (*member.former_keys, member.node_key):
        with suppress(ValueError):  # an identity key
            yield node_key_text(key.encode())


def _public_key(node_key: str) -> ec.EllipticCurvePublicKey:
    key = load_ssh_public_key(node_key.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigurationError("members.json: a node key is not ECDSA")
    return key
