"""JSON documents that carry a signature: one file, so that document and signature never part."""

import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

from common.canonical import canonical_json
from common.crypto.keys import SigningKey, VerifyKey
from common.errors import ConfigurationError
from common.files import write_atomic


def write_signed(path: Path, domain: str, document: dict[str, Any], key: SigningKey, *, mode: int = 0o600) -> None:
    """Write `{"<domain>": document, "signature": base64}`, signed over the document's canonical form."""
    signature = b64encode(key.sign(domain, canonical_json(document))).decode()
    write_atomic(path, canonical_json({domain: document, "signature": signature}) + b"\n", mode=mode)


def read_signed(path: Path, domain: str, key: VerifyKey) -> dict[str, Any]:
    """Read what `write_signed` wrote.

    Raises:
        ConfigurationError: If there is no such document. TrustError: If `key` did not sign it.
    """
    try:
        signed = json.loads(path.read_bytes())
        document, signature = signed[domain], b64decode(signed["signature"], validate=True)
        content = canonical_json(document)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: no signed {domain} can be read") from error
    key.verify(domain, content, signature)
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: the {domain} is no JSON object")
    return document
