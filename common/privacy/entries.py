"""One line of a budget ledger, version 1: what it may say and how it is signed."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from common.canonical import ZERO_DIGEST, canonical_json, digest_bytes
from common.crypto.keys import SigningKey, VerifyKey
from common.privacy.admission import AdmissionFilter
from common.privacy.budget import RELATION, PrivacyBudget
from common.privacy.events import MechanismEvent
from common.privacy.json_fields import exact_object, read_digest, read_signature, read_text, read_whole

LINE_VERSION = 1
ENTRY_DOMAIN = "ledger-entry"
LINE_DOMAIN = "ledger-line"
_LINE_FIELDS = frozenset({"v", "seq", "time", "population", "kind", "run", "round", "attempt", "event", "prev", "sig"})
_TERMS_FIELDS = frozenset({"site", "public_key", "filter", "budget", "relation"})


class EntryKind(StrEnum):
    """What a line records.

    OPEN: a population, its budget and its filter. RESERVE: an event is charged. SETTLE: its answer is on disk and may
    leave. BURN: its answer will never leave; the charge stays.
    """

    OPEN = "open"
    RESERVE = "reserve"
    SETTLE = "settle"
    BURN = "burn"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHead:
    """Where a ledger ends.

    Attributes:
        seq: Number of the last entry, counted from 1; 0 for an empty ledger.
        digest: Digest of the last line without its newline; zeros for an empty ledger.
    """

    seq: int = 0
    digest: str = ZERO_DIGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptKey:
    """Which answer of which run an entry is about."""

    run_id: str
    round_number: int
    attempt: int

    def __post_init__(self) -> None:
        read_text(self.run_id, "run")
        if read_whole(self.round_number, "round") < 0 or read_whole(self.attempt, "attempt") < 0:
            raise ValueError(f"round and attempt are at least 0, not {self.round_number} and {self.attempt}")

    def __str__(self) -> str:
        return f"run {self.run_id}, round {self.round_number}, attempt {self.attempt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationTerms:
    """What an `open` entry fixes for good.

    Attributes:
        site: Whose ledger this is.
        public_key: The key that signs every line.
        admission: The filter that decides what may be charged.
        budget: The limits.
    """

    site: str
    public_key: VerifyKey
    admission: AdmissionFilter
    budget: PrivacyBudget


# open -> terms, reserve -> event, settle -> digest of the released bytes, burn -> nothing
Payload = PopulationTerms | MechanismEvent | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One line, before or after signing.

    Attributes:
        seq: From 1, without a gap.
        time: RFC 3339 UTC with seconds.
        population: Whose budget.
        kind: What is recorded.
        key: Which answer; None for `open`.
        payload: By kind: terms, event, digest of the released bytes, None.
        prev: Digest of the line before.
    """

    seq: int
    time: str
    population: str
    kind: EntryKind
    key: AttemptKey | None
    payload: Payload
    prev: str

    def signed_line(self, signing_key: SigningKey) -> bytes:
        """The canonical line, signature included, without the newline."""
        body = self._body()
        signature = signing_key.sign(ENTRY_DOMAIN, canonical_json(body))
        return canonical_json({**body, "sig": base64.b64encode(signature).decode()})

    def _body(self) -> dict[str, Any]:
        return {
            "v": LINE_VERSION,
            "seq": self.seq,
            "time": self.time,
            "population": self.population,
            "kind": self.kind.value,
            "run": self.key.run_id if self.key else None,
            "round": self.key.round_number if self.key else None,
            "attempt": self.key.attempt if self.key else None,
            "event": _payload_to_json(self.payload),
            "prev": self.prev,
        }


def format_time(moment: datetime) -> str:
    """RFC 3339 UTC with seconds; raises ValueError for a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a ledger's clock tells its time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def line_digest(line: bytes) -> str:
    """What the next line's `prev` and a head hold of this line; the newline is not part of it."""
    return digest_bytes(LINE_DOMAIN, line)


def parse_line(line: bytes) -> tuple[LedgerEntry, Mapping[str, Any]]:
    """Read one line strictly, signature unchecked.

    Returns:
        The entry and the line's raw fields.

    Raises:
        ValueError: If the line is not canonical JSON of version 1 with exactly the fields its kind has.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if isinstance(fields, dict) and isinstance(fields.get("v"), int) and fields["v"] > LINE_VERSION:
        raise ValueError(f"version {fields['v']} is newer than version {LINE_VERSION} that is read here")
    exact_object(fields, _LINE_FIELDS, "a line")
    if canonical_json(fields) != line:
        raise ValueError("not in canonical form (RFC 8785)")
    if read_whole(fields["v"], "v") != LINE_VERSION:
        raise ValueError(f"version {fields['v']} is unknown; {LINE_VERSION} is read here")
    kind_text = read_text(fields["kind"], "kind")
    if kind_text not in set(EntryKind):
        raise ValueError(f"unknown kind {kind_text[:40]!r}")
    kind = EntryKind(kind_text)
    entry = LedgerEntry(
        seq=read_whole(fields["seq"], "seq"),
        time=_read_time(fields["time"]),
        population=read_text(fields["population"], "population"),
        kind=kind,
        key=_read_key(fields, kind),
        payload=_read_payload(fields["event"], kind),
        prev=read_digest(fields["prev"], "prev"),
    )
    return entry, fields


def check_signature(fields: Mapping[str, Any], key: VerifyKey) -> None:
    """Return only if the raw fields of a line are signed by `key`; raises TrustError if not."""
    body = {name: value for name, value in fields.items() if name != "sig"}
    key.verify(ENTRY_DOMAIN, canonical_json(body), read_signature(fields["sig"]))


def _read_time(value: object) -> str:
    text = read_text(value, "time")
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise ValueError(f"time is RFC 3339 UTC with seconds, not {text[:40]!r}") from error
    if format_time(moment) != text:
        raise ValueError(f"time is RFC 3339 UTC with seconds, not {text[:40]!r}")
    return text


def _read_key(fields: Mapping[str, Any], kind: EntryKind) -> AttemptKey | None:
    if kind is EntryKind.OPEN:
        if any(fields[name] is not None for name in ("run", "round", "attempt")):
            raise ValueError("an open entry has no run, round or attempt")
        return None
    return AttemptKey(
        run_id=read_text(fields["run"], "run"),
        round_number=read_whole(fields["round"], "round"),
        attempt=read_whole(fields["attempt"], "attempt"),
    )


def _payload_to_json(payload: Payload) -> dict[str, Any] | None:
    match payload:
        case PopulationTerms():
            return {
                "site": payload.site,
                "public_key": payload.public_key.text,
                "filter": payload.admission.to_json(),
                "budget": payload.budget.to_json(),
                "relation": RELATION,
            }
        case MechanismEvent():
            return payload.to_json()
        case str():
            return {"release": payload}
        case None:
            return None


def _read_payload(value: object, kind: EntryKind) -> Payload:
    match kind:
        case EntryKind.OPEN:
            fields = exact_object(value, _TERMS_FIELDS, "an open entry's event")
            if fields["relation"] != RELATION:
                raise ValueError(f"relation is {RELATION!r}, not {str(fields['relation'])[:40]!r}")
            return PopulationTerms(
                site=read_text(fields["site"], "site"),
                public_key=VerifyKey.parse(read_text(fields["public_key"], "public_key")),
                admission=AdmissionFilter.from_json(fields["filter"]),
                budget=PrivacyBudget.from_json(fields["budget"]),
            )
        case EntryKind.RESERVE:
            return MechanismEvent.from_json(value)
        case EntryKind.SETTLE:
            fields = exact_object(value, frozenset({"release"}), "a settle entry's event")
            return read_digest(fields["release"], "release")
        case EntryKind.BURN:
            if value is not None:
                raise ValueError("a burn entry has no event")
            return None
