"""Who says so: Ed25519 identities that sign domain-separated digests."""

import base64
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.canonical import domain_hash
from common.errors import TrustError

KEY_PREFIX = "ed25519:"
SIGNATURE_BYTES = 64

# Every encoding of a point whose order divides 8, sign bit cleared. OpenSSL accepts such keys, and under them
# one signature fits many messages: whoever enrolled with one could later deny a ledger as anybody's.
_SMALL_ORDER_KEYS = frozenset(
    bytes.fromhex(encoded)
    for encoded in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public identity key.

    Attributes:
        raw: The 32 bytes of the Ed25519 public key; never a point of small order.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(self.raw)}")
        if self.raw[:31] + bytes([self.raw[31] & 0x7F]) in _SMALL_ORDER_KEYS:
            raise ValueError("an Ed25519 public key of small order proves nothing: anybody can sign for it")

    @classmethod
    def parse(cls, text: str) -> "VerifyKey":
        """Read `ed25519:<base64>`; raises ValueError for anything else, also for a second spelling of a key."""
        if not text.startswith(KEY_PREFIX):
            raise ValueError(f"a public key starts with {KEY_PREFIX!r}, not {text[:12]!r}")
        try:
            raw = base64.b64decode(text[len(KEY_PREFIX) :], validate=True)
        except ValueError as error:
            raise ValueError(f"a public key is base64 after {KEY_PREFIX!r}: {error}") from error
        key = cls(raw)
        if key.text != text:
            raise ValueError(f"a public key has one spelling: {key.text!r}, not {text!r}")
        return key

    @property
    def text(self) -> str:
        """`ed25519:<base64>`, the form in every file."""
        return KEY_PREFIX + base64.b64encode(self.raw).decode()

    @property
    def fingerprint(self) -> str:
        """Eight groups of four hex digits of the key's digest: short enough to read out over the phone."""
        shown = domain_hash("fingerprint", self.raw).hex()[:32]
        return " ".join(shown[start : start + 4] for start in range(0, len(shown), 4))

    def verify(self, domain: str, payload: bytes, signature: bytes) -> None:
        """Return only if the signature is this key's over `payload` under `domain`; else raise TrustError."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, domain_hash(domain, payload))
        except InvalidSignature as error:
            raise TrustError(f"{domain}: the signature is not by key {self.fingerprint}") from error


class SigningKey:
    """A private identity key. Its bytes leave memory only as an encrypted PKCS8 PEM."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = VerifyKey(
            private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        )

    @classmethod
    def generate(cls) -> "SigningKey":
        """A fresh key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes) -> "SigningKey":
        """Open an encrypted PEM; raises TrustError if the passphrase or the kind of key is wrong."""
        try:
            private = serialization.load_pem_private_key(pem, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise TrustError("the identity key does not open with this passphrase") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise TrustError("the identity key is not an Ed25519 key")
        return cls(private)

    def to_pem(self, passphrase: bytes) -> bytes:
        """PKCS8 PEM under a passphrase of at least 16 bytes."""
        if len(passphrase) < 16:
            raise ValueError(f"a key passphrase has at least 16 bytes, not {len(passphrase)}")
        return self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase),
        )

    def sign(self, domain: str, payload: bytes) -> bytes:
        """64 bytes of Ed25519 over the domain-separated digest of `payload`."""
        return self._private.sign(domain_hash(domain, payload))
