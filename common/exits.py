"""Everything that may leave a site, field by field. What is not on this list stays there.

The agent holds every reply against the list before it signs it (`client/agent.py`); a report can show the list as it
is. Sizes follow from the manifest, which everybody knows, and never from records: two sites with different patients
send replies of one shape and one length. A site writes no file for others and opens no connection of its own; what
its log may hold is listed in `common/journal.py`. Training loss, gradient norms, clip fractions, counts of patients and
timings are not here, so they cannot leave.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from common.crypto.masking import MLKEM_CIPHERTEXT_BYTES, MLKEM_PUBLIC_BYTES, X25519_BYTES
from common.plan import Manifest
from common.wire import COORDINATOR, LARGEST_NUMBER, LEAVES_A_SITE, LONGEST_RUN_ID, WIRE_VERSION

UNAVAILABLE: Final = "Unavailable"
NAMES_THAT_TRAVEL: Final = frozenset(
    {"TrustError", "PolicyRefused", "PlanNotApproved", "AttemptLost", "PrivacyBudgetExhausted", "LedgerCorrupt"}
)
SIGNATURE_BYTES: Final = 64
WORD_BYTES: Final = 4  # of one coordinate of a masked vector, uint32

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSizes:
    """The numbers that sizes on the list may depend on: all of them stand in the manifest.

    Attributes:
        sites: K, sites of the roster; 0 before a manifest is agreed to.
        dimension: d, trained parameters.
        histogram: Counts of an evaluation; 0 without one.
        rounds: T.
        attempts: Most attempts of one round.
    """

    sites: int = 0
    dimension: int = 0
    histogram: int = 0
    rounds: int = 0
    attempts: int = 0

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The sizes of one run."""
        return cls(
            sites=len(manifest.roster),
            dimension=manifest.dimension,
            histogram=manifest.evaluation_dimension or 0,
            rounds=manifest.rounds,
            attempts=1 + manifest.spare_attempts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What a field may hold.

    Attributes:
        text: For people.
        allows: Whether a value fits, given the public sizes. An absent field has its type's zero; a repeated one is
            judged by how many it holds, a message by whether it is there.
    """

    text: str
    allows: Callable[[Any, PublicSizes], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """One field that may leave.

    Attributes:
        message: Name of its message in `common/wire.proto`.
        field: Its name there.
        what: What it is.
        why: Why it may leave.
        bound: What it may hold.
    """

    message: str
    field: str
    what: str
    why: str
    bound: Bound

    def to_json(self) -> dict[str, str]:
        """The row of a report."""
        return {
            "message": self.message,
            "field": self.field,
            "what": self.what,
            "why": self.why,
            "bound": self.bound.text,
        }


def _bytes(size: int) -> Bound:
    return Bound(text=f"{size} bytes", allows=lambda value, _: len(value) == size)


def _match(pattern: re.Pattern[str], text: str) -> Bound:
    return Bound(text=text, allows=lambda value, _: pattern.fullmatch(value) is not None)


def _one_of(*values: str | int) -> Bound:
    listed = ", ".join(sorted(map(str, values)))
    return Bound(text=f"one of {listed}" if len(values) > 1 else listed, allows=lambda value, _: value in values)


_SITE_NAME = _match(_NAME, "a name of the roster, at most 63 characters")
_DIGEST_TEXT = _match(_DIGEST, "sha256: and 64 hex digits")
_SIGNATURE = _bytes(SIGNATURE_BYTES)
_PRESENT = Bound(text="one", allows=lambda there, _: there)
_OPTIONAL = Bound(text="one or none", allows=lambda there, _: True)
_ONE_A_PEER = Bound(text="at most one for each other site", allows=lambda count, sizes: count < max(sizes.sites, 1))
_ROUND = Bound(text="1 to the plan's rounds", allows=lambda value, sizes: 1 <= value <= sizes.rounds)
_ATTEMPT = Bound(
    text="1 to the plan's spare attempts and one", allows=lambda value, sizes: 1 <= value <= sizes.attempts
)
_VECTOR = Bound(
    text="4 bytes for each trained parameter", allows=lambda value, sizes: len(value) == WORD_BYTES * sizes.dimension
)
_COUNTS = Bound(
    text="4 bytes for each count of the evaluation's histogram",
    allows=lambda value, sizes: 0 < len(value) == WORD_BYTES * sizes.histogram,
)

_ASKED = "it repeats the request"
_WITNESS = "others keep it, so that a site cannot rewrite what it spent"
_HEAD = ("head", "where the ledger ends after this reply", _WITNESS)

_LIST: Final[Mapping[str, tuple[tuple[str, str, str, Bound], ...]]] = {
    "Envelope": (
        ("version", "version of the format", "it says nothing about the site", _one_of(WIRE_VERSION)),
        (
            "run_id",
            "the run, empty towards whoever is not the pinned coordinator",
            _ASKED,
            Bound(
                text="the request's, at most 63 characters",
                allows=lambda value, _: value == "" or _NAME.fullmatch(value) is not None,
            ),
        ),
        ("sender", "the site's name", "names of sites are public", _SITE_NAME),
        ("recipient", "the coordinator", "it is always the same", _one_of(COORDINATOR)),
        (
            "kind",
            "which of the messages below",
            "it follows from the request, or is a refusal",
            _one_of(*(kind.DESCRIPTOR.name.lower() for kind in LEAVES_A_SITE)),
        ),
        ("body", "one of the messages below", "its fields are listed", Bound(text="as listed", allows=lambda *_: True)),
        ("signature", "by the site's identity key", "it follows from all other fields", _SIGNATURE),
    ),
    "Head": (
        ("site", "whose ledger", "names of sites are public", _SITE_NAME),
        (
            "seq",
            "number of the ledger's last entry",
            "it counts answers that a coordinator asked for, and registered populations; never patients",
            Bound(text="0 to 2^53 - 1", allows=lambda value, _: 0 <= value <= LARGEST_NUMBER),
        ),
        (
            "digest",
            "digest of the ledger's last entry",
            "the entry ends with a signature that nobody without the site's key can try out",
            _DIGEST_TEXT,
        ),
        (
            "run_id",
            "the run in whose message the head was sent first",
            "run identifiers are public",
            Bound(text="1 to 63 characters", allows=lambda value, _: 0 < len(value) <= LONGEST_RUN_ID),
        ),
        ("signature", "by the key of the site that is named", _WITNESS, _SIGNATURE),
    ),
    "Joined": (
        ("manifest_digest", "digest of the manifest that the site agrees to", _ASKED, _DIGEST_TEXT),
        ("x25519", "the site's public X25519 key for this run", "fresh randomness", _bytes(X25519_BYTES)),
        ("mlkem", "the site's public ML-KEM-768 key for this run", "fresh randomness", _bytes(MLKEM_PUBLIC_BYTES)),
        (*_HEAD, _PRESENT),
        ("held", "the last heads it holds of the other sites", _WITNESS, _ONE_A_PEER),
    ),
    "Encapsulated": (
        (
            "ciphertexts",
            "one ML-KEM ciphertext for each peer whose name sorts later",
            "only the peer can open it, and it holds a fresh random secret",
            _ONE_A_PEER,
        ),
        (*_HEAD, _PRESENT),
    ),
    "Ciphertext": (
        ("sender", "the site's name", "names of sites are public", _SITE_NAME),
        ("recipient", "the peer's name", "names of sites are public", _SITE_NAME),
        (
            "ciphertext",
            "the encapsulated secret",
            "only the peer can open it, and it holds a fresh random secret",
            _bytes(MLKEM_CIPHERTEXT_BYTES),
        ),
        ("signature", "by the site's identity key", "it follows from the other fields", _SIGNATURE),
    ),
    "Masked": (
        ("round", "which round", _ASKED, _ROUND),
        ("attempt", "which attempt of it", _ASKED, _ATTEMPT),
        ("context", "digest of run, round, attempt, cohort and model", _ASKED, _DIGEST_TEXT),
        (
            "vector",
            "the clipped sum with its noise, under the masks of the cohort",
            "charged to the ledger before it is computed; alone it is uniform, and only the sum of the cohort opens",
            _VECTOR,
        ),
        (*_HEAD, _PRESENT),
    ),
    "Histogram": (
        ("round", "which round's model was evaluated", _ASKED, _ROUND),
        ("attempt", "which attempt of it", _ASKED, _ATTEMPT),
        ("context", "digest of run, round, attempt, cohort and model", _ASKED, _DIGEST_TEXT),
        (
            "vector",
            "counts of labels and scores of the held-out patients with their noise, under the masks of the cohort",
            "charged to the ledger before it is computed; alone it is uniform, and only the sum of the cohort opens",
            _COUNTS,
        ),
        (*_HEAD, _PRESENT),
    ),
    "Closed": ((*_HEAD, _PRESENT),),
    "Refused": (
        (
            "name",
            "the name of an error, never its text",
            "the named ones are decided without the records; all others are Unavailable",
            _one_of(*NAMES_THAT_TRAVEL, UNAVAILABLE),
        ),
        (*_HEAD, _OPTIONAL),
    ),
}

EXITS: Final = tuple(
    Exit(message=message, field=field, what=what, why=why, bound=bound)
    for message, fields in _LIST.items()
    for field, what, why, bound in fields
)
_BOUNDS: Final = {(exit_.message, exit_.field): exit_.bound for exit_ in EXITS}


def check_reply(reply: Message, sizes: PublicSizes) -> None:
    """Return only if a reply is of a kind that may leave and every part of it is on the list, as large as it says.

    Args:
        reply: The body that an envelope will carry.
        sizes: What is public of the run; without a manifest only a refusal can pass.

    Raises:
        ValueError: If a kind, a field, a value or a length is not on the list. The text names it, never its value.
    """
    if not isinstance(reply, LEAVES_A_SITE):
        raise ValueError(f"{reply.DESCRIPTOR.name} is not a message that may leave a site")
    check_message(reply, sizes)


def check_message(message: Message, sizes: PublicSizes) -> None:
    """As `check_reply`, for any message on the list, an `Envelope` too; the body inside one is bytes to it."""
    name = message.DESCRIPTOR.name
    if name not in _LIST:
        raise ValueError(f"{name} is not on the list of what may leave a site")
    if len(UnknownFieldSet(message)):
        raise ValueError(f"{name} carries fields that common/wire.proto does not know")
    for field in message.DESCRIPTOR.fields:
        bound, value = _BOUNDS.get((name, field.name)), _judged(message, field)
        if bound is None:
            if value:
                raise ValueError(f"{name}.{field.name} is not on the list of what may leave a site")
        elif not bound.allows(value, sizes):
            raise ValueError(f"{name}.{field.name} is not as the list says: {bound.text}")
        for nested in _nested(message, field):
            check_message(nested, sizes)


def _judged(message: Message, field: Any) -> Any:
    """A field's value; of a repeated one the number, of a message whether it is there."""
    if field.is_repeated:
        return len(getattr(message, field.name))
    if field.message_type is not None:
        return message.HasField(field.name)
    return getattr(message, field.name)


def _nested(message: Message, field: Any) -> Iterator[Message]:
    if field.message_type is None:
        return
    if field.is_repeated:
        yield from getattr(message, field.name)
    elif message.HasField(field.name):
        yield getattr(message, field.name)
