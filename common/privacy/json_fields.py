"""Reading JSON objects strictly: every field present, none unknown, each of its type."""

import base64
import binascii
import math
import re
from collections.abc import Mapping
from typing import Any

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def exact_object(value: object, names: frozenset[str], what: str) -> Mapping[str, Any]:
    """The object itself, if its keys are exactly `names`; else ValueError that names the difference."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is a JSON object, not {type(value).__name__}")
    if unknown := sorted(str(name) for name in value.keys() - names):
        raise ValueError(f"{what} has an unknown field: {unknown[0][:40]!r}")
    if missing := sorted(names - value.keys()):
        raise ValueError(f"{what} lacks the field {missing[0]!r}")
    return value


def read_number(value: object, name: str) -> float:
    """A finite JSON number as a float; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is a number, not {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is finite, not {number}")
    return number


def read_whole(value: object, name: str) -> int:
    """A JSON number written without a fraction."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is a whole number, not {value!r}")
    return value


def read_text(value: object, name: str) -> str:
    """A string of 1 to 256 characters."""
    if not isinstance(value, str) or not 0 < len(value) <= 256:
        raise ValueError(f"{name} is a text of 1 to 256 characters, not {type(value).__name__}")
    return value


def read_digest(value: object, name: str) -> str:
    """`sha256:` and 64 lower-case hex digits."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{name} is 'sha256:' and 64 hex digits, not {str(value)[:80]!r}")
    return value


def read_signature(value: object) -> bytes:
    """64 bytes from their one base64 form."""
    text = read_text(value, "sig")
    try:
        signature = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"sig is base64: {error}") from error
    if len(signature) != 64 or base64.b64encode(signature).decode() != text:
        raise ValueError("sig is 64 bytes in their one base64 form")
    return signature
