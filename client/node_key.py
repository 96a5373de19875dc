"""The node key: made, written, read, spelled. It opens the transport to a site's courier and proves no more."""

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.enrolment import node_key_text
from common.errors import ConfigurationError
from common.files import write_atomic

NODE_KEY_FILE: Final = "node.key"
_PUBLIC: Final = 0o644


def make_node_key() -> ec.EllipticCurvePrivateKey:
    """A fresh key of the kind that Flower's gateway takes: ECDSA on P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The node's key; raises ConfigurationError if it cannot be read or is not ECDSA on P-384."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except Exception as error:  # the parser's errors are of many kinds
        raise ConfigurationError(f"{path}: no OpenSSH private key without a passphrase can be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigurationError(f"{path}: a node key is ECDSA on the curve P-384 (ecdsa-sha2-nistp384)")
    return key


def public_text(key: ec.EllipticCurvePrivateKey) -> str:
    """The one spelling of its public key, as enrolments name it."""
    openssh = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return node_key_text(key.public_key().public_bytes(*openssh))


def read_public_key(path: Path) -> str:
    """The one spelling of a public key file; raises ConfigurationError if it holds no node key."""
    try:
        return node_key_text(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: no public node key can be read") from error


def public_path(path: Path) -> Path:
    """Where the public key of a key file lies."""
    return path.with_suffix(".pub")


def write_node_key(path: Path, key: ec.EllipticCurvePrivateKey, *, name: str) -> None:
    """Write a key for its owner alone, and its public key beside it with the site's name as its comment."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_atomic(path, private)
    write_atomic(public_path(path), f"{public_text(key)} fedward-{name}\n".encode(), mode=_PUBLIC)
