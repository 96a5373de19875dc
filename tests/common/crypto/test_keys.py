"""Identities: what a signature binds, what opens a key, and which keys prove nothing."""

import base64
import hashlib
import random
import re

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from common.crypto.keys import KEY_PREFIX, SIGNATURE_BYTES, SigningKey, VerifyKey
from common.errors import TrustError

PASSPHRASE = b"sixteen bytes or more"

# Edwards25519 (RFC 8032, section 5.1): -x² + y² = 1 + D·x²·y² modulo P, prime order ORDER, cofactor 8.
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ORDER = 2**252 + 27742317777372353535851937790883648493


def test_a_signature_verifies_under_its_key_domain_and_payload():
    key = SigningKey.generate()
    key.public_key.verify("plan", b"payload", key.sign("plan", b"payload"))


def test_a_signature_is_plain_ed25519_over_the_domain_separated_sha256():
    key = SigningKey.generate()
    signature = key.sign("plan", b"payload")
    digest = hashlib.sha256(b"fedward/plan\0payload").digest()
    Ed25519PublicKey.from_public_bytes(key.public_key.raw).verify(signature, digest)
    assert len(signature) == SIGNATURE_BYTES


@pytest.mark.parametrize(("domain", "payload"), [("policy", b"payload"), ("plan", b"payloae"), ("plan", b"")])
def test_a_signature_does_not_serve_another_domain_or_payload(domain, payload):
    key = SigningKey.generate()
    with pytest.raises(TrustError):
        key.public_key.verify(domain, payload, key.sign("plan", b"payload"))


def test_a_signature_by_another_key_is_refused_and_the_pinned_fingerprint_named():
    pinned, other = SigningKey.generate().public_key, SigningKey.generate()
    with pytest.raises(TrustError, match=pinned.fingerprint):
        pinned.verify("plan", b"payload", other.sign("plan", b"payload"))


@pytest.mark.parametrize("signature", [b"", b"\0" * 63, b"\0" * 64, b"\0" * 65])
def test_a_signature_of_any_size_is_refused_in_the_same_way(signature):
    with pytest.raises(TrustError):
        SigningKey.generate().public_key.verify("plan", b"payload", signature)


def test_a_public_key_survives_its_text_form():
    key = SigningKey.generate().public_key
    assert VerifyKey.parse(key.text) == key


def test_a_fingerprint_is_eight_groups_of_four_hex_digits():
    assert re.fullmatch(r"([0-9a-f]{4} ){7}[0-9a-f]{4}", SigningKey.generate().public_key.fingerprint)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rsa:AAAA",
        KEY_PREFIX,
        KEY_PREFIX + "not base64!",
        KEY_PREFIX + base64.b64encode(bytes(31)).decode(),
        KEY_PREFIX + base64.b64encode(bytes(33)).decode(),
        KEY_PREFIX + base64.b64encode(b"k" * 32).decode() + "\n",
        KEY_PREFIX + "ü" * 44,
    ],
)
def test_a_text_that_is_no_key_is_refused(text):
    with pytest.raises(ValueError, match="key"):
        VerifyKey.parse(text)


def test_a_key_has_one_spelling_only():
    text = VerifyKey(b"k" * 32).text  # 32 bytes leave two unused bits in the last base64 digit
    assert base64.b64decode(text[len(KEY_PREFIX) : -2] + "t=") == b"k" * 32
    with pytest.raises(ValueError, match="one spelling"):
        VerifyKey.parse(text[:-2] + "t=")


def test_every_encoding_of_a_small_order_point_is_refused():
    encodings = _small_order_encodings()
    assert len(encodings) == 14
    for encoding in encodings:
        with pytest.raises(ValueError, match="small order"):
            VerifyKey(encoding)


def test_openssl_alone_would_let_anybody_sign_for_a_small_order_key():
    identity = bytes([1]) + bytes(31)
    Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"whatever was never signed")


def test_a_private_key_survives_its_encrypted_pem():
    key = SigningKey.generate()
    opened = SigningKey.from_pem(key.to_pem(PASSPHRASE), PASSPHRASE)
    assert opened.public_key == key.public_key


def test_the_pem_is_encrypted():
    assert key_pem_header(SigningKey.generate().to_pem(PASSPHRASE)) == "ENCRYPTED PRIVATE KEY"


@pytest.mark.parametrize("wrong", [b"another passphrase", b""])
def test_a_wrong_passphrase_opens_no_identity(wrong):
    pem = SigningKey.generate().to_pem(PASSPHRASE)
    with pytest.raises(TrustError):
        SigningKey.from_pem(pem, wrong)


def test_a_short_passphrase_is_refused_with_its_length():
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        SigningKey.generate().to_pem(b"x" * 15)


def test_a_pem_without_encryption_is_refused():
    plain = X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(TrustError):
        SigningKey.from_pem(plain, PASSPHRASE)


def test_a_key_of_another_kind_is_no_identity():
    pem = X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSPHRASE),
    )
    with pytest.raises(TrustError, match="not an Ed25519 key"):
        SigningKey.from_pem(pem, PASSPHRASE)


def test_a_signing_key_does_not_print_itself():
    key = SigningKey.generate()
    pem = key.to_pem(PASSPHRASE)
    private = serialization.load_pem_private_key(pem, PASSPHRASE)
    assert private.private_bytes_raw().hex() not in repr(key)
    assert str(private.private_bytes_raw()) not in repr(key)


def key_pem_header(pem):
    return pem.splitlines()[0].decode().strip("-").removeprefix("BEGIN ")


def _small_order_encodings():
    """By slow curve arithmetic: the eight torsion points, each y also plus P where it fits, with both sign bits."""
    torsion = (0, 1)
    draw = random.Random(1)
    while _multiple(4, torsion) == (0, 1):
        torsion = _multiple(ORDER, _point(draw.randrange(P)) or (0, 1))
    heights = {_multiple(step, torsion)[1] for step in range(8)}
    encoded = heights | {height + P for height in heights if height + P < 2**255}
    return {(height | sign << 255).to_bytes(32, "little") for height in encoded for sign in (0, 1)}


def _point(y):
    """A point of height y, or None if there is none."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    return (x, y) if x * x % P == square else None


def _add(a, b):
    shared = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + shared, -1, P) % P
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - shared, -1, P) % P
    return x, y


def _multiple(factor, point):
    result = (0, 1)
    while factor:
        if factor & 1:
            result = _add(result, point)
        point, factor = _add(point, point), factor >> 1
    return result
