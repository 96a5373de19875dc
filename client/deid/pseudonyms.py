"""What stands in for an identifier under the site's key, when an expert allows keyed pseudonyms.

A pseudonym is 15 bytes of HMAC-SHA256 of the identifier, then 5 bytes of HMAC-SHA256 of those: 32 characters
of base32. The tail lets the holder of the key tell its own pseudonyms from identifiers, so that a second run
changes nothing; an identifier passes for one with chance 2^-40. Nobody else can link or test a pseudonym.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Iterable
from datetime import date, timedelta

KEY_BYTES = 32
MAXIMUM_SHIFT_DAYS = 365
SHIFTED = "~"
"""Stands before every shifted date, so that none is shifted twice and none is taken for a real one."""

_BODY_BYTES = 15
_TAIL_BYTES = 5
_FORM = re.compile(r"[A-Z2-7]{32}")


class Pseudonyms:
    """Keyed pseudonyms of one namespace: the patients, or another column's identifiers."""

    def __init__(self, key: bytes, namespace: str) -> None:
        """Derive the namespace's keys; raises ValueError if `key` is shorter than 32 bytes."""
        if len(key) < KEY_BYTES:
            raise ValueError(f"a pseudonym key has at least {KEY_BYTES} bytes, not {len(key)}")
        self._body_key, self._tail_key, self._shift_key = (
            hmac.digest(key, f"fedward/deid/{use}/{namespace}".encode(), "sha256") for use in ("body", "tail", "shift")
        )

    def codes(self, identifiers: Iterable[str]) -> dict[str, str]:
        """The pseudonym of each identifier, whatever its case; one of this key and namespace stands for itself."""
        return {identifier: self._code(identifier) for identifier in identifiers}

    def shift_days(self, code: str) -> int:
        """By how many days one patient's dates move: within a year either way, never 0, the same for all of them."""
        drawn = int.from_bytes(hmac.digest(self._shift_key, code.encode(), "sha256")[:16])
        days = drawn % (2 * MAXIMUM_SHIFT_DAYS) - MAXIMUM_SHIFT_DAYS
        return days if days < 0 else days + 1

    def _code(self, identifier: str) -> str:
        if self._is_code(identifier):
            return identifier
        body = hmac.digest(self._body_key, identifier.casefold().encode(), "sha256")[:_BODY_BYTES]
        return base64.b32encode(body + self._tail(body)).decode()

    def _is_code(self, text: str) -> bool:
        if _FORM.fullmatch(text) is None:
            return False
        try:
            raw = base64.b32decode(text)
        except binascii.Error:
            return False
        return hmac.compare_digest(self._tail(raw[:_BODY_BYTES]), raw[_BODY_BYTES:])

    def _tail(self, body: bytes) -> bytes:
        return hmac.digest(self._tail_key, body, "sha256")[:_TAIL_BYTES]


def shift_date(text: str, days: int) -> str | None:
    """An ISO or US date moved by `days`, marked as shifted; a marked one comes back as it is, None is no date."""
    if text.startswith(SHIFTED):
        return text if _parse_date(text.removeprefix(SHIFTED)) is not None else None
    day = _parse_date(text)
    if day is None:
        return None
    try:
        return SHIFTED + (day + timedelta(days=days)).isoformat()
    except OverflowError:
        return None


def _parse_date(text: str) -> date | None:
    american = re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})", text)
    try:
        if american is not None:
            return date(int(american[3]), int(american[1]), int(american[2]))
        return date.fromisoformat(text) if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) else None
    except ValueError:
        return None
