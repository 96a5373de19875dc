"""One byte string for one meaning: canonical JSON and domain-separated digests."""

import hashlib
from collections.abc import Mapping
from typing import Any

import rfc8785

DIGEST_PREFIX = "sha256:"
ZERO_DIGEST = DIGEST_PREFIX + "0" * 64


def canonical_json(value: Any) -> bytes:
    """The RFC 8785 form of a JSON value; raises ValueError for NaN, infinities and non-JSON types."""
    try:
        return bytes(rfc8785.dumps(value))
    except rfc8785.CanonicalizationError as error:
        raise ValueError(f"no canonical JSON: {error}") from error


def domain_hash(domain: str, payload: bytes) -> bytes:
    """SHA-256 of `fedward/<domain>`, a zero byte and the payload, so that no digest serves two purposes."""
    return hashlib.sha256(b"fedward/" + domain.encode() + b"\0" + payload).digest()


def digest_bytes(domain: str, payload: bytes) -> str:
    """`sha256:<hex>` of a payload under its domain."""
    return DIGEST_PREFIX + domain_hash(domain, payload).hex()


def digest_json(domain: str, value: Mapping[str, Any]) -> str:
    """`sha256:<hex>` of a JSON object's canonical form under its domain."""
    return digest_bytes(domain, canonical_json(value))


def length_prefixed(*parts: bytes) -> bytes:
    """Parts joined, each with its length in 8 bytes in front, so that no two different lists give the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
