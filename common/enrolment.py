"""How a site and a coordinator come to know each other's keys: two signed documents and a fingerprint for each.

A site writes `enrolment.json` and the coordinator `consortium.json`. The files may travel by any way; what makes them
true is that people read the fingerprint of the one they hold to the other side, on the telephone.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_pem_x509_certificate
from pydantic import Field, field_validator

from common.canonical import canonical_json, domain_hash
from common.crypto.keys import SigningKey, VerifyKey
from common.errors import ConfigurationError, TrustError
from common.plan import RESERVED_NAMES
from common.settings import MAXIMUM_FILE_BYTES, Settings, parse_json_settings
from common.signed import read_signed, write_signed
from common.trust import IdentityKey, TrustFile

ENROLMENT_DOMAIN: Final = "enrolment"
CONSORTIUM_DOMAIN: Final = "consortium"
PUBLIC: Final = 0o644
SiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Document = TypeVar("Document", "Enrolment", "Consortium")
_GROUPS, _GROUP = 8, 4


class Enrolment(Settings):
    """What a site lets be known of itself; signed with the identity key that it names.

    Attributes:
        name: The site, as every document will call it.
        identity_key: `ed25519:…`; signs the agent's messages and its ledger.
        node_key: OpenSSH public key, ECDSA on P-384; opens the transport to the courier and proves nothing more.
        nominal_patients: A public, rounded number of patients, decided by people; never a count of the records.
    """

    version: Literal[1] = 1
    name: SiteName
    identity_key: IdentityKey
    node_key: str = Field(max_length=1000)
    nominal_patients: int = Field(ge=1, le=10**9)

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in RESERVED_NAMES:
            raise ValueError(f"the names {', '.join(sorted(RESERVED_NAMES))} are reserved")
        return name

    @field_validator("node_key")
    @classmethod
    def _is_a_node_key(cls, text: str) -> str:
        return node_key_text(text.encode())

    @property
    def fingerprint(self) -> str:
        """Of name and both keys; 128 bits. The rest is the site's word: the identity key in it signs all of it."""
        return _fingerprint(ENROLMENT_DOMAIN, [self.name, self.identity_key, self.node_key])

    @property
    def node_digest(self) -> str:
        """Which node key it is, as the gateway names it: `node_key_digest`."""
        return node_key_digest(self.node_key)


class Consortium(Settings):
    """Whom a coordinator enrolled, and where its gateway is; signed by the coordinator.

    Attributes:
        coordinator: `ed25519:…`, the key that signs plans.
        gateway: `host:port` that couriers call.
        certificates: PEM of the authority that the gateway's certificate is checked against.
        sites: Identity key by name.
    """

    version: Literal[1] = 1
    coordinator: IdentityKey
    gateway: str = Field(pattern=r"^[A-Za-z0-9.\-\[\]:]{1,253}:[0-9]{1,5}$")
    certificates: str = Field(max_length=1 << 16)
    sites: dict[SiteName, str]

    @field_validator("certificates")
    @classmethod
    def _is_a_certificate(cls, text: str) -> str:
        load_pem_x509_certificate(text.encode())
        if "PRIVATE KEY" in text:
            raise ValueError("a private key stands beside the certificate")
        return text

    @field_validator("sites")
    @classmethod
    def _are_identities(cls, sites: dict[str, str]) -> dict[str, str]:
        for text in sites.values():
            VerifyKey.parse(text)
        if len(set(sites.values())) != len(sites):
            raise ValueError("two sites share one identity key")
        return sites

    @property
    def trust(self) -> TrustFile:
        """The pinned keys alone."""
        return TrustFile(coordinator=self.coordinator, sites=self.sites)

    @property
    def fingerprint(self) -> str:
        """Of the coordinator's key, its authority's certificate and every site's name and key; 128 bits."""
        sites = [[name, key] for name, key in sorted(self.sites.items())]
        return _fingerprint(CONSORTIUM_DOMAIN, [self.coordinator, self.certificates, sites])


def write_enrolment(path: Path, enrolment: Enrolment, key: SigningKey) -> None:
    """Sign and write an enrolment; raises TrustError if `key` is not the one that it names."""
    if key.public_key.text != enrolment.identity_key:
        raise TrustError(f"{enrolment.name}: the enrolment names another identity key")
    write_signed(path, ENROLMENT_DOMAIN, enrolment.model_dump(mode="json"), key, mode=PUBLIC)


def read_enrolment(path: Path) -> Enrolment:
    """Read an enrolment; whose it is, only its fingerprint tells.

    Raises:
        ConfigurationError: If there is none or it is malformed. TrustError: If its own key did not sign it.
    """
    return _read(path, ENROLMENT_DOMAIN, Enrolment, "identity_key")


def write_consortium(path: Path, consortium: Consortium, key: SigningKey) -> None:
    """Sign and write a consortium; raises TrustError if `key` is not the coordinator's."""
    if key.public_key.text != consortium.coordinator:
        raise TrustError("the consortium names another coordinator")
    write_signed(path, CONSORTIUM_DOMAIN, consortium.model_dump(mode="json"), key, mode=PUBLIC)


def read_consortium(path: Path) -> Consortium:
    """Read a consortium; whose it is, only its fingerprint tells. Raises as `read_enrolment`."""
    return _read(path, CONSORTIUM_DOMAIN, Consortium, "coordinator")


def same_fingerprint(given: str, wanted: str) -> bool:
    """Whether two spellings are one fingerprint: blanks, dashes and case do not count."""
    return _bare(given) == _bare(wanted)


def node_key_text(openssh: bytes) -> str:
    """The one spelling of an OpenSSH public key, without its comment; raises ValueError if it is not ECDSA on P-384."""
    try:
        key = serialization.load_ssh_public_key(openssh)
    except Exception as error:  # the parser's errors are of many kinds
        raise ValueError("a node key is an OpenSSH public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("a node key is ECDSA on the curve P-384 (ecdsa-sha2-nistp384)")
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return text.decode()


def node_key_digest(node_key: str) -> str:
    """`sha256:<hex>` of a node key's PEM, the form in which Flower's Fleet API carries it."""
    key = serialization.load_ssh_public_key(node_key.encode())
    return pem_digest(key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def pem_digest(pem: bytes) -> str:
    """`sha256:<hex>` of a public key's PEM."""
    return f"sha256:{sha256(pem).hexdigest()}"


def _read(path: Path, domain: str, model: type[Document], key_field: str) -> Document:
    try:
        if path.stat().st_size > MAXIMUM_FILE_BYTES:
            raise ConfigurationError(f"{path}: larger than {MAXIMUM_FILE_BYTES} bytes")
        claimed = json.loads(path.read_bytes())[domain][key_field]
        key = VerifyKey.parse(claimed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: no signed {domain} can be read") from error
    document = parse_json_settings(canonical_json(read_signed(path, domain, key)), model, source=str(path))
    if getattr(document, key_field) != claimed:
        raise TrustError(f"{path}: the {domain} was exchanged while it was read")
    return document


def _fingerprint(domain: str, parts: list[Any]) -> str:
    shown = domain_hash(f"{domain}-fingerprint", canonical_json(parts)).hex()[: _GROUPS * _GROUP]
    return " ".join(shown[start : start + _GROUP] for start in range(0, len(shown), _GROUP))


def _bare(text: str) -> str:
    return text.replace(" ", "").replace("-", "").lower()
