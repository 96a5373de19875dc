"""The plans that a coordinator offered to this site: kept, so that people can read them before they decide."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from client.decisions import Decisions
from client.home import SiteHome
from common.canonical import DIGEST_PREFIX, canonical_json
from common.crypto.keys import VerifyKey
from common.errors import ConfigurationError, FederationError
from common.plan import Manifest, TrainingPlan
from common.settings import parse_json_settings
from common.signed import read_signed, write_signed

OFFERS_DIRECTORY: Final = "plans"
OFFER_DOMAIN: Final = "offer"
MOST_OFFERS: Final = 200
LARGEST_OFFER_BYTES: Final = 2 << 20
MOST_OFFERS_BYTES: Final = 64 << 20
SHORTEST_PREFIX: Final = 8
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedPlan:
    """A plan as the pinned coordinator offered it.

    Attributes:
        manifest: Of the run for which it was offered last.
        received: When that was, RFC 3339.
    """

    plan: TrainingPlan
    manifest: Manifest
    received: str

    @property
    def digest(self) -> str:
        """What a site approves."""
        return self.plan.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOffers:
    """What lies in the directory of offers.

    Attributes:
        offers: The newest first.
        unreadable: Files that this site did not sign, or that hold no offer.
    """

    offers: tuple[OfferedPlan, ...]
    unreadable: int


def keep_offer(home: SiteHome, plan: TrainingPlan, manifest: Manifest, *, received: datetime) -> bool:
    """Keep an offer whose message the pinned coordinator signed; decides nothing and touches no decision.

    An offer that is known already, or takes more than 2 MiB, is not written. Of more than 200 offers or 64 MiB the
    oldest go, those that nobody approved first.

    Returns:
        Whether it was written.
    """
    path = _path(home.root, plan.digest)
    document = {
        "version": 1,
        "received": received.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "run_id": manifest.run_id,
        "plan": plan.to_json(),
        "manifest": manifest.to_json(),
    }
    if len(canonical_json(document)) > LARGEST_OFFER_BYTES:
        return False
    known = _read(path, home.identity.public_key)
    if known is not None and (known.plan, known.manifest) == (plan, manifest):
        return False
    write_signed(path, OFFER_DOMAIN, document, home.identity)
    _drop_oldest(path, home.decisions())
    return True


def read_offers(root: Path, key: VerifyKey) -> KeptOffers:
    """Every kept offer that this site signed; needs no passphrase."""
    paths = list(_paths(root))
    found = [offer for path in paths if (offer := _read(path, key)) is not None]
    found.sort(key=lambda offer: (offer.received, offer.digest), reverse=True)
    return KeptOffers(offers=tuple(found), unreadable=len(paths) - len(found))


def offer_rows(offers: Sequence[OfferedPlan], decisions: Decisions) -> list[dict[str, Any]]:
    """What was offered and decided, for `fedward site plans list`; decided plans without an offer come last."""
    rows: list[dict[str, Any]] = [
        {
            "digest": offer.digest,
            "received": offer.received,
            "run_id": offer.manifest.run_id,
            "mode": offer.plan.training.mode,
            "attempts": offer.plan.attempts,
            "epsilon": offer.plan.privacy.epsilon,
            "delta": offer.plan.privacy.delta,
            "unit": offer.plan.privacy.unit,
            **decided(decisions, offer.digest, offer.manifest.run_id),
        }
        for offer in offers
    ]
    unknown = dict.fromkeys(("received", "run_id", "mode", "attempts", "epsilon", "delta", "unit"))
    others = {*decisions.approved, *decisions.rejected} - {offer.digest for offer in offers}
    return rows + [
        {"digest": digest, **unknown, **decided(decisions, digest, _last_begun(decisions, digest))}
        for digest in sorted(others)
    ]


def decided(decisions: Decisions, digest: str, run_id: str) -> dict[str, Any]:
    """What was decided on one run of a plan, as documents say it."""
    approval = decisions.approved.get(digest)
    return {
        "state": decisions.state(digest, run_id),
        "population": None if approval is None else approval.population,
        "runs_left": None if approval is None else approval.runs_left,
        "runs_begun": [] if approval is None else list(approval.begun),
    }


def find_digest(text: str, known: Sequence[str]) -> str:
    """The one known digest that begins like this.

    Args:
        text: `sha256:<hex>`, its hex digits alone, or the first 8 or more of them.

    Raises:
        ConfigurationError: If none or several begin so, or the text is no such thing.
    """
    digits = text.strip().lower().removeprefix(DIGEST_PREFIX).removesuffix("…")
    if not SHORTEST_PREFIX <= len(digits) <= 64 or not set(digits) <= _HEX:
        raise ConfigurationError(
            f"{text[:80]!r} is neither a file nor a plan's digest of at least {SHORTEST_PREFIX} hex digits",
            hint="fedward site plans list shows the digests",
        )
    found = sorted({digest for digest in known if digest.removeprefix(DIGEST_PREFIX).startswith(digits)})
    if not found:
        raise ConfigurationError(
            f"no offered plan's digest begins with {digits}",
            hint="fedward site plans list shows them; a plan that was not offered yet is given as a file",
        )
    if len(found) > 1:
        raise ConfigurationError(f"{len(found)} plans' digests begin with {digits}", hint="give more of its digits")
    return found[0]


def _last_begun(decisions: Decisions, digest: str) -> str:
    """The run to speak of where a plan's offer is kept no more; empty if none began."""
    approval = decisions.approved.get(digest)
    return approval.begun[-1] if approval is not None and approval.begun else ""


def _drop_oldest(newest: Path, decisions: Decisions) -> None:
    sizes: dict[Path, os.stat_result] = {path: path.stat() for path in _paths(newest.parent.parent)}

    def order(path: Path) -> tuple[bool, bool, int]:
        approved = DIGEST_PREFIX + path.stem in decisions.approved
        return (path == newest, approved, sizes[path].st_mtime_ns)

    left, total = len(sizes), sum(facts.st_size for facts in sizes.values())
    for path in sorted(sizes, key=order):
        if left <= MOST_OFFERS and total <= MOST_OFFERS_BYTES:
            return
        path.unlink(missing_ok=True)
        left, total = left - 1, total - sizes[path].st_size


def _read(path: Path, key: VerifyKey) -> OfferedPlan | None:
    """The offer in a file, if this site signed it under this very name."""
    try:
        document = read_signed(path, OFFER_DOMAIN, key)
        plan = parse_json_settings(canonical_json(document["plan"]), TrainingPlan, source=path.name)
        manifest = parse_json_settings(canonical_json(document["manifest"]), Manifest, source=path.name)
        received = document["received"]
    except (FederationError, KeyError):
        return None
    if path.name != _path(path.parent.parent, plan.digest).name:
        return None
    return OfferedPlan(plan=plan, manifest=manifest, received=received)


def _paths(root: Path) -> Iterator[Path]:
    return (root / OFFERS_DIRECTORY).glob("*.json")


def _path(root: Path, digest: str) -> Path:
    return root / OFFERS_DIRECTORY / f"{digest.removeprefix(DIGEST_PREFIX)}.json"
