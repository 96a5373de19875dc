"""Who did what: an append-only log whose lines are chained by digests and signed.

acts.jsonl   one act a line        acts.key, acts.secret   the key that signs lines, and what opens it
acts.head    the last act, signed  acts.pub                its public half, signed by the coordinator's key

The key is not the one that signs plans. So the API, which faces people, can record what it is asked without ever
holding the passphrase. What that costs: who can read this directory can add lines. Such a person cannot change one
that is already vouched for by a head that somebody else holds (`fedward server acts --head`).
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from common.canonical import ZERO_DIGEST, canonical_json, digest_bytes
from common.crypto.keys import SigningKey, VerifyKey
from common.errors import ActsCorrupt, ConfigurationError, FederationError, TrustError
from common.signed import read_signed
from server.home import read_public_key
from server.moments import read_time

ACT_DOMAIN: Final = "act"
LINE_DOMAIN: Final = "act-line"
HEAD_DOMAIN: Final = "acts-head"
KEY_DOMAIN: Final = "acts-key"
MAXIMUM_LINE_BYTES: Final = 16 << 10
_FIELDS: Final = frozenset({"v", "seq", "time", "actor", "role", "act", "subject", "detail", "prev", "sig"})

Detail = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who acts: the system's name for the user of a command, or a token's name; and in which role."""

    name: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActHead:
    """The end of a log: its last act's number and digest."""

    seq: int = 0
    digest: str = ZERO_DIGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One line of the log.

    Attributes:
        act: What was done or refused, such as `enrol` or `refuse`.
        subject: To what: a site, a token's id, a plan's digest.
        detail: Short texts and numbers; never a secret.
        prev: Digest of the line before.
    """

    seq: int
    time: str
    actor: str
    role: str
    act: str
    subject: str
    detail: Detail = field(default_factory=dict)
    prev: str

    def to_json(self) -> dict[str, Any]:
        """All fields but the signature."""
        return {
            "v": 1,
            "seq": self.seq,
            "time": self.time,
            "actor": self.actor,
            "role": self.role,
            "act": self.act,
            "subject": self.subject,
            "detail": dict(self.detail),
            "prev": self.prev,
        }

    def signed_line(self, key: SigningKey) -> bytes:
        """The line, without a newline."""
        fields = self.to_json()
        signature = b64encode(key.sign(ACT_DOMAIN, canonical_json(fields))).decode()
        return canonical_json({**fields, "sig": signature})


def read_acts_key(root: Path) -> VerifyKey:
    """The key that signs acts, as the coordinator vouches for it. Raises ConfigurationError or TrustError."""
    document = read_signed(root / "acts.pub", KEY_DOMAIN, read_public_key(root))
    try:
        return VerifyKey.parse(document["key"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{root / 'acts.pub'}: names no key") from error


def read_head(root: Path, key: VerifyKey) -> ActHead:
    """Where this machine left the log; raises ActsCorrupt if nothing sound says so."""
    try:
        document = read_signed(root / "acts.head", HEAD_DOMAIN, key)
        return ActHead(seq=int(document["seq"]), digest=str(document["digest"]))
    except (FederationError, KeyError, TypeError, ValueError) as error:
        raise ActsCorrupt(
            "acts.head, which says where the log ends, is missing or not signed by the log's key",
            hint="restore acts.head together with acts.jsonl",
        ) from error


def verified_acts(root: Path, *, held: ActHead | None = None) -> Iterator[tuple[Act, str]]:
    """Every act with its line's digest, each after its check; takes no lock, so others may append meanwhile.

    Args:
        held: A head that somebody noted down earlier; the log must pass through it.

    Raises:
        ActsCorrupt: Names the first act that was changed, moved, cut or put in.
    """
    key = read_acts_key(root)
    wanted = [head for head in (read_head(root, key), held) if head is not None and head.seq > 0]
    seq, digest = 0, ZERO_DIGEST
    for line in lines(root):
        act = parse_act(line, key)
        if act.seq != seq + 1 or act.prev != digest:
            raise ActsCorrupt(f"act {seq + 1}: the line in its place is act {act.seq} or follows another one")
        seq, digest = act.seq, line_digest(line)
        if any(head.seq == seq and head.digest != digest for head in wanted):
            raise ActsCorrupt(f"act {seq}: whoever noted down the head {seq} held another act in its place")
        yield act, digest
    behind = [head.seq for head in wanted if head.seq > seq]
    if behind:
        raise ActsCorrupt(f"act {seq + 1}: missing, though there were {max(behind)} acts")


def lines(root: Path) -> Iterator[bytes]:
    """The whole lines of the log, unchecked; half a line at the end is one that is being written."""
    try:
        with (root / "acts.jsonl").open("rb") as stream:
            while line := stream.readline(MAXIMUM_LINE_BYTES + 1):
                if line.endswith(b"\n"):
                    yield line[:-1]
                elif len(line) > MAXIMUM_LINE_BYTES:
                    raise ActsCorrupt(f"a line of acts.jsonl is longer than {MAXIMUM_LINE_BYTES} bytes")
    except OSError as error:
        raise ActsCorrupt(f"acts.jsonl cannot be read: {error.strerror}") from error


def line_digest(line: bytes) -> str:
    """Digest of a whole line without its newline; what the next one names as `prev`."""
    return digest_bytes(LINE_DOMAIN, line)


def parse_act(line: bytes, key: VerifyKey) -> Act:
    """One line as an act, if `key` signed exactly it; raises ActsCorrupt."""
    try:
        fields = json.loads(line)
        if canonical_json(fields) != line or set(fields) != _FIELDS or fields["v"] != 1:
            raise ValueError("not the fields of version 1 in canonical form")
        signature = b64decode(fields.pop("sig"), validate=True)
        key.verify(ACT_DOMAIN, canonical_json(fields), signature)
        del fields["v"]
        read_time(fields["time"])
        return Act(**fields)
    except TrustError as error:
        raise ActsCorrupt(f"act {_named(line)}: it was changed, or another key signed it") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ActsCorrupt(f"act {_named(line)}: the line is no act of version 1") from error


def _named(line: bytes) -> str:
    try:
        return str(int(json.loads(line)["seq"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return "?"
