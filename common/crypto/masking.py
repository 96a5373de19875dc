"""Masks that hide one site's vector and vanish from the sum: pair secrets and their keystreams.

Two sites of a run agree on a pair secret by X25519 and ML-KEM-768 together, so that it stays secret while either of
the two holds. Of each pair, the site whose name sorts first (by UTF-8 bytes) encapsulates to the other's ML-KEM key
and later *adds* the pair's mask; the second subtracts it. Both run keys and the ciphertext travel in signed messages;
the signatures are checked before anything here is called.

    pair secret = HKDF-SHA256(X25519 secret | ML-KEM secret, no salt, info = "fedward/pair-secret\\0" | transcript)
    round key   = HMAC-SHA256(pair secret, "fedward/mask-key\\0" | context)
    keystream   = for chunk i of 2**17 bytes: AES-256-CTR under the round key from the counter block
                  i (12 bytes, big-endian) | 00000002, read as little-endian 32-bit words

Sources: Bonawitz et al. 2017 (doi:10.1145/3133956.3133982) for pairwise masks; RFC 7748, FIPS 203 and RFC 5869 for the
parts; NIST SP 800-38D for why AES-GCM over zeros yields exactly that keystream, which is its fastest form here.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from common.canonical import canonical_json, domain_hash, length_prefixed
from common.errors import TrustError

X25519_BYTES = 32
MLKEM_PUBLIC_BYTES = 1184
MLKEM_SEED_BYTES = 64
MLKEM_CIPHERTEXT_BYTES = 1088
SECRET_BYTES = 32
CHUNK_BYTES = 2**17  # part of the format: both sites of a pair must cut alike

_TAG_BYTES = 16
_PRIVATE_VERSION = b"\x01"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPublicKeys:
    """What a site publishes for one run. Comes from the network, so a wrong size is a TrustError.

    Attributes:
        x25519: 32 bytes (RFC 7748).
        mlkem: The 1184-byte encapsulation key of ML-KEM-768 (FIPS 203).
    """

    x25519: bytes
    mlkem: bytes

    def __post_init__(self) -> None:
        _check_size("an X25519 public key", self.x25519, X25519_BYTES)
        _check_size("an ML-KEM-768 public key", self.mlkem, MLKEM_PUBLIC_BYTES)


class RunKeys:
    """A site's two private keys for one run; made at its setup, forgotten at its end.

    Attributes:
        public: The matching public keys.
    """

    def __init__(self, x25519: X25519PrivateKey, mlkem: MLKEM768PrivateKey) -> None:
        self._x25519 = x25519
        self._mlkem = mlkem
        self.public = RunPublicKeys(
            x25519=x25519.public_key().public_bytes_raw(), mlkem=mlkem.public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls) -> "RunKeys":
        """Fresh keys from the operating system's randomness."""
        return cls(X25519PrivateKey.generate(), MLKEM768PrivateKey.generate())

    @classmethod
    def from_bytes(cls, private: bytes) -> "RunKeys":
        """Read what `to_bytes` made; raises TrustError for another size or version."""
        _check_size("a run's private keys", private, 1 + X25519_BYTES + MLKEM_SEED_BYTES)
        if private[:1] != _PRIVATE_VERSION:
            raise TrustError(f"a run's private keys have version {private[0]}; this release reads version 1")
        x25519, seed = private[1 : 1 + X25519_BYTES], private[1 + X25519_BYTES :]
        return cls(X25519PrivateKey.from_private_bytes(x25519), MLKEM768PrivateKey.from_seed_bytes(seed))

    def to_bytes(self) -> bytes:
        """Version 1 | X25519 private key 32 | ML-KEM seed d ‖ z 64. Secret: the caller seals it before it is stored."""
        return _PRIVATE_VERSION + self._x25519.private_bytes_raw() + self._mlkem.private_bytes_raw()

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The 32-byte secret that the pair's first site encapsulated to this one.

        A changed ciphertext of the right size yields another secret, not an error (FIPS 203, implicit rejection);
        its sender's signature is what finds it.

        Raises:
            TrustError: If the ciphertext has not 1088 bytes.
        """
        _check_size("an ML-KEM-768 ciphertext", ciphertext, MLKEM_CIPHERTEXT_BYTES)
        return self._mlkem.decapsulate(ciphertext)

    def exchange(self, peer: RunPublicKeys) -> bytes:
        """The X25519 secret with a peer, 32 bytes; raises TrustError for a point that makes it all zero."""
        try:
            return self._x25519.exchange(X25519PublicKey.from_public_bytes(peer.x25519))
        except ValueError as error:
            raise TrustError("a peer's X25519 key has small order: the secret would be all zero") from error


def comes_first(own_name: str, peer_name: str) -> bool:
    """Whether `own_name` is its pair's first site, which encapsulates and adds; refuses a pair of one."""
    if not own_name or not peer_name or own_name == peer_name:
        raise ValueError(f"a pair has two names, not {own_name!r} and {peer_name!r}")
    return own_name.encode() < peer_name.encode()


def encapsulate(peer: RunPublicKeys) -> tuple[bytes, bytes]:
    """A fresh secret of 32 bytes and the 1088-byte ciphertext that carries it to `peer`.

    Raises:
        TrustError: If the peer's ML-KEM key has coefficients out of range (FIPS 203, section 7.2).
    """
    try:
        return MLKEM768PublicKey.from_public_bytes(peer.mlkem).encapsulate()
    except ValueError as error:
        raise TrustError("a peer's ML-KEM-768 key is not a valid encoding") from error


def pair_transcript(
    *, manifest_digest: str, first: tuple[str, RunPublicKeys], second: tuple[str, RunPublicKeys], ciphertext: bytes
) -> bytes:
    """32 bytes that stand for everything a pair's two sites must have seen alike.

    Either site may be given as `first`. Each of the eight fields is preceded by its length in 8 bytes, so no two
    different pairs share a transcript.
    """
    ordered = (first, second) if comes_first(first[0], second[0]) else (second, first)
    fields = [manifest_digest.encode()]
    for name, keys in ordered:
        fields += [name.encode(), keys.x25519, keys.mlkem]
    fields.append(ciphertext)
    return domain_hash("pair-transcript", length_prefixed(*fields))


def pair_secret(*, own: RunKeys, peer: RunPublicKeys, kem_secret: bytes, transcript: bytes) -> bytes:
    """32 bytes that only the pair's two sites know, bound to `transcript`.

    Raises:
        ValueError: If the ML-KEM secret has not 32 bytes or the transcript is empty.
        TrustError: If the peer's X25519 key has small order.
    """
    if len(kem_secret) != SECRET_BYTES:
        raise ValueError(f"an ML-KEM-768 secret has {SECRET_BYTES} bytes, not {len(kem_secret)}")
    if not transcript:
        raise ValueError("a pair secret is bound to a transcript")
    info = b"fedward/pair-secret\0" + transcript
    return HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=None, info=info).derive(own.exchange(peer) + kem_secret)


def mask_context(
    *, manifest_digest: str, kind: str, round_number: int, attempt: int, cohort: Sequence[str], model_digest: str
) -> bytes:
    """32 bytes that name one sum: another cohort, attempt or model has other masks, and mixed sums stay sealed."""
    if len(set(cohort)) != len(cohort) or len(cohort) < 2:
        raise ValueError(f"a cohort has at least two sites, each once, not {sorted(cohort)}")
    named = {
        "manifest": manifest_digest,
        "kind": kind,
        "round": round_number,
        "attempt": attempt,
        "cohort": sorted(cohort),
        "model": model_digest,
    }
    return domain_hash("mask-context", canonical_json(named))


def apply_masks(
    vector: NDArray[np.uint32], *, own_name: str, pair_secrets: Mapping[str, bytes], context: bytes
) -> NDArray[np.uint32]:
    """A site's vector with one mask for each peer, added or subtracted modulo 2**32.

    Guarantee: the sum over all sites that name each other under one context is the sum of their vectors. While any
    of them is missing, what the others sent is jointly uniform to everyone who lacks their pair secrets.

    One context serves one vector only. Two vectors under the same masks would show their difference by a subtraction,
    and AES-GCM's nonces count from zero under each round key, so nothing but the context keeps keystreams apart. It
    must name the run, round, attempt, cohort and model (`mask_context`), and a site that answers an attempt again
    sends the bytes it stored.

    Args:
        vector: Shape (d,), d ≥ 1; left as it is.
        own_name: This site.
        pair_secrets: 32 bytes for each peer of the cohort, by its name; at least one peer.
        context: Not empty.

    Raises:
        ValueError: If there is no peer, the own name is among them, a secret has not 32 bytes, the context is empty,
            or the vector is not uint32 of one dimension.
    """
    if vector.dtype != np.uint32 or vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"a masked vector is uint32 of shape (d,), not {vector.dtype} of shape {vector.shape}")
    if not pair_secrets:
        raise ValueError("no peer, no mask: the vector would leave in the clear")
    if not context:
        raise ValueError("a mask has a context")
    labelled_context = b"fedward/mask-key\0" + context
    streams = []
    for peer, secret in pair_secrets.items():
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"a pair secret has {SECRET_BYTES} bytes, not {len(secret)}")
        round_key = hmac.digest(secret, labelled_context, "sha256")
        combine = np.add if comes_first(own_name, peer) else np.subtract
        streams.append((AESGCM(round_key).encrypt_into, combine))

    masked = np.array(vector, order="C")
    words = min(CHUNK_BYTES // 4, masked.size)
    zeros, buffer = memoryview(bytes(4 * words)), memoryview(bytearray(4 * words + _TAG_BYTES))
    for index, start in enumerate(range(0, masked.size, words)):
        part = masked[start : start + words]
        size_bytes = 4 * part.size
        plain, keystream = zeros[:size_bytes], buffer[: size_bytes + _TAG_BYTES]
        mask = np.frombuffer(buffer, dtype="<u4", count=part.size)
        nonce = index.to_bytes(12, "big")
        for encrypt_into, combine in streams:
            encrypt_into(nonce, plain, None, keystream)
            combine(part, mask, out=part)
    return masked


def _check_size(what: str, value: bytes, expected: int) -> None:
    if len(value) != expected:
        raise TrustError(f"{what} has {expected} bytes, not {len(value)}")
