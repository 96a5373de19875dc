"""Whose keys count: the file of pinned keys that a site, a coordinator or an auditor holds."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, field_validator

from common.canonical import canonical_json
from common.crypto.keys import VerifyKey
from common.errors import ConfigurationError, TrustError
from common.files import write_atomic
from common.settings import Settings, parse_json_settings


def _is_a_key(text: str) -> str:
    VerifyKey.parse(text)
    return text


IdentityKey = Annotated[str, AfterValidator(_is_a_key)]
"""The text of an identity key in a document: `ed25519:…`, one spelling a key."""


class TrustFile(Settings):
    """Pinned identity keys, exchanged out of band at enrolment."""

    version: Literal[1] = 1
    coordinator: IdentityKey
    sites: dict[str, str]

    @field_validator("sites")
    @classmethod
    def _are_keys(cls, sites: dict[str, str]) -> dict[str, str]:
        for text in sites.values():
            VerifyKey.parse(text)
        return sites

    @property
    def coordinator_key(self) -> VerifyKey:
        """The key that signs plans."""
        return VerifyKey.parse(self.coordinator)

    def site_key(self, name: str) -> VerifyKey:
        """The pinned key of one site; raises TrustError for a stranger."""
        try:
            return VerifyKey.parse(self.sites[name])
        except KeyError as error:
            raise TrustError(f"site {name[:63]!r} is not among the {len(self.sites)} pinned sites") from error


def read_trust(path: Path) -> TrustFile:
    """Read a trust file; raises ConfigurationError if it is missing or malformed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: the file of pinned keys cannot be read") from error
    return parse_json_settings(content, TrustFile, source=str(path))


def write_trust(path: Path, trust: TrustFile) -> None:
    """Write a trust file; public keys only, so anyone may read it."""
    write_atomic(path, trust_bytes(trust), mode=0o644)


def trust_bytes(trust: TrustFile) -> bytes:
    """The content of a trust file."""
    return canonical_json(trust.model_dump(mode="json")) + b"\n"
