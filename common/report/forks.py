"""Two ledgers of one key that tell different histories: no chain and no head shows that, only their comparison."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from common.crypto.keys import VerifyKey
from common.errors import FederationError
from common.privacy.entries import PopulationTerms, parse_line
from common.privacy.verify import verify_ledger


def forked_histories(ledgers: Mapping[Path, bytes]) -> dict[Path, str]:
    """The ledgers that are no older or newer copy of another one by the same key, each with the reason.

    A site has one ledger, and an older copy is its beginning. Two that differ before the shorter one ends were both
    signed by the site, and only one of them can be what it spent.

    Args:
        ledgers: What was given, by path; one that does not verify by itself tells nothing about another.
    """
    found: dict[Path, str] = {}
    for (one, first), (other, second) in combinations(ledgers.items(), 2):
        entry = _first_difference(first, second)
        key = named_key(first)
        if entry is None or key is None or key != named_key(second):
            continue
        if _verifies(first, key) and _verifies(second, key):
            words = "entry {}: this key signed another history in {}: a forked ledger"
            found.setdefault(one, words.format(entry, other))
            found.setdefault(other, words.format(entry, one))
    return found


def named_key(content: bytes) -> VerifyKey | None:
    """The key that a ledger's first entry names, unverified; None if it cannot be read."""
    terms = named_terms(content)
    return None if terms is None else terms.public_key


def named_terms(content: bytes) -> PopulationTerms | None:
    """What a ledger's first entry says, unverified; None if it cannot be read."""
    try:
        entry, _ = parse_line(content.split(b"\n", 1)[0])
    except (ValueError, FederationError):
        return None
    return entry.payload if isinstance(entry.payload, PopulationTerms) else None


def _first_difference(first: bytes, second: bytes) -> int | None:
    """The first entry in which two ledgers differ; None if one begins with the whole other."""
    lines = zip(first.split(b"\n")[:-1], second.split(b"\n")[:-1], strict=False)
    return next((number for number, (one, other) in enumerate(lines, start=1) if one != other), None)


def _verifies(content: bytes, key: VerifyKey) -> bool:
    try:
        verify_ledger(content, key=key, heads=[])
    except (FederationError, ValueError, OverflowError):
        return False
    return True
