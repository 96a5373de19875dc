"""What lies on a site's disk: bytes that only the site's storage key opens, whole and for one purpose.

A sealed file, version 1 (all sizes in bytes, integers big-endian):

    magic "FWSEAL" 6 | version 1 | wrap nonce 12 | wrapped data key 48 | nonce prefix 7 | chunk | chunk | … | last chunk

Every file has its own random 32-byte data key, wrapped by AES-256-GCM under the storage key with the associated
data `fedward/seal-wrap\\0`, magic, version and purpose. The content is cut every 2**20 bytes; each piece is encrypted
by AES-256-GCM under the data key (16 bytes longer) with the nonce prefix 7 | counter 4 | 1 for the last piece, else 0,
and the associated data header | purpose. Counter and flag are what makes a cut, a swap or an appended piece fail.

Source: the STREAM construction, Hoang, Reyhanitabar, Rogaway, Vizár 2015, section 7 (eprint.iacr.org/2015/189).
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from common.errors import TrustError

CHUNK_BYTES = 2**20
KEY_BYTES = 32
MINIMUM_PASSPHRASE_BYTES = 16

_VERSION = b"\x01"
_SEAL_MAGIC = b"FWSEAL"
_STORAGE_KEY_MAGIC = b"FWSKEY"
_MAGIC_BYTES = 6
_NONCE_BYTES = 12
_PREFIX_BYTES = 7
_TAG_BYTES = 16
_WRAPPED_KEY_BYTES = KEY_BYTES + _TAG_BYTES
_HEADER_BYTES = _MAGIC_BYTES + 1 + _NONCE_BYTES + _WRAPPED_KEY_BYTES + _PREFIX_BYTES

_SALT_BYTES = 16
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 1


class StorageKey:
    """A site's key for everything it keeps. It wraps data keys and encrypts nothing else.

    Its wrap nonces are random, so one key should seal fewer than 2**32 files (NIST SP 800-38D, section 8.3).
    """

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a storage key has {KEY_BYTES} bytes, not {len(raw)}")
        self._raw = raw

    @classmethod
    def generate(cls) -> "StorageKey":
        """A fresh key from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_sealed_bytes(cls, sealed: bytes, passphrase: bytes) -> "StorageKey":
        """Open what `to_sealed_bytes` made; raises TrustError if the passphrase is wrong or a bit changed."""
        _check_start(sealed, magic=_STORAGE_KEY_MAGIC, what="storage key")
        header_bytes = _MAGIC_BYTES + 1 + _SALT_BYTES + _NONCE_BYTES
        header, wrapped = sealed[:header_bytes], sealed[header_bytes:]
        if len(wrapped) != _WRAPPED_KEY_BYTES:
            expected = header_bytes + _WRAPPED_KEY_BYTES
            raise TrustError(f"the sealed storage key has {len(sealed)} bytes, not {expected}")
        salt, nonce = header[_MAGIC_BYTES + 1 : -_NONCE_BYTES], header[-_NONCE_BYTES:]
        try:
            return cls(AESGCM(_stretch(passphrase, salt)).decrypt(nonce, wrapped, header))
        except InvalidTag as error:
            raise TrustError("the storage key does not open with this passphrase, or it was changed") from error

    def to_sealed_bytes(self, passphrase: bytes) -> bytes:
        """The key under a passphrase of at least 16 bytes, 83 bytes.

        Layout: magic "FWSKEY" 6 | version 1 | salt 16 | nonce 12 | AES-256-GCM of the key 48, with all before it as
        associated data. The passphrase is stretched by scrypt with n = 2**14, r = 8, p = 1 (RFC 7914).
        """
        if len(passphrase) < MINIMUM_PASSPHRASE_BYTES:
            raise ValueError(f"a key passphrase has at least {MINIMUM_PASSPHRASE_BYTES} bytes, not {len(passphrase)}")
        salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
        header = _STORAGE_KEY_MAGIC + _VERSION + salt + nonce
        return header + AESGCM(_stretch(passphrase, salt)).encrypt(nonce, self._raw, header)

    def wrap(self, data_key: bytes, *, nonce: bytes, associated_data: bytes) -> bytes:
        """The data key encrypted under this one, 48 bytes."""
        return AESGCM(self._raw).encrypt(nonce, data_key, associated_data)

    def unwrap(self, wrapped: bytes, *, nonce: bytes, associated_data: bytes) -> bytes:
        """The data key again; raises InvalidTag unless key, nonce and associated data are those of `wrap`."""
        return AESGCM(self._raw).decrypt(nonce, wrapped, associated_data)


def seal_bytes(plain: bytes, key: StorageKey, *, purpose: str) -> bytes:
    """Encrypt `plain` so that only `key` opens it, and only for `purpose`.

    The result is 90 bytes longer than `plain`, and 16 more for every started MiB after the first. What it hides is
    the content, never its length.

    Args:
        plain: Any bytes, also none; at most 2**32 MiB.
        key: The site's storage key.
        purpose: What the bytes are, such as `features` or `attempt/<run>/<round>/<attempt>`. A file put in another
            file's place does not open.

    Raises:
        ValueError: If the purpose is empty.
    """
    data_key, nonce, prefix = os.urandom(KEY_BYTES), os.urandom(_NONCE_BYTES), os.urandom(_PREFIX_BYTES)
    wrapped = key.wrap(data_key, nonce=nonce, associated_data=_wrap_data(purpose))
    header = _SEAL_MAGIC + _VERSION + nonce + wrapped + prefix
    associated_data = header + purpose.encode()
    cipher, content = AESGCM(data_key), memoryview(plain)
    count = max(1, -(-len(plain) // CHUNK_BYTES))
    chunks = (
        cipher.encrypt(
            _chunk_nonce(prefix, index, count),
            content[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES],
            associated_data,
        )
        for index in range(count)
    )
    return b"".join((header, *chunks))


def open_sealed(sealed: bytes, key: StorageKey, *, purpose: str) -> bytes:
    """The plain bytes, if every one of them is what `seal_bytes` was given for this key and purpose.

    Nothing comes back before the last chunk has been authenticated.

    Raises:
        ValueError: If the purpose is empty.
        TrustError: If the bytes were cut, extended, reordered or changed, or the key or the purpose is another.
    """
    _check_start(sealed, magic=_SEAL_MAGIC, what="sealed file")
    if len(sealed) < _HEADER_BYTES + _TAG_BYTES:
        raise TrustError(f"{purpose}: {len(sealed)} sealed bytes; the least is {_HEADER_BYTES + _TAG_BYTES}")
    header, body = sealed[:_HEADER_BYTES], memoryview(sealed)[_HEADER_BYTES:]
    nonce, wrapped, prefix = _split_header(header)
    try:
        data_key = key.unwrap(wrapped, nonce=nonce, associated_data=_wrap_data(purpose))
    except InvalidTag as error:
        raise TrustError(f"{purpose}: sealed under another key or for another purpose, or its start changed") from error
    associated_data = header + purpose.encode()
    cipher, step = AESGCM(data_key), CHUNK_BYTES + _TAG_BYTES
    count = -(-len(body) // step)
    chunks: list[bytes] = []
    for index in range(count):
        chunk = body[index * step : (index + 1) * step]
        try:
            chunks.append(cipher.decrypt(_chunk_nonce(prefix, index, count), chunk, associated_data))
        except InvalidTag as error:
            raise TrustError(f"{purpose}: chunk {index + 1} of {count} was cut, moved or changed") from error
    return b"".join(chunks)


def _check_start(sealed: bytes, *, magic: bytes, what: str) -> None:
    if sealed[:_MAGIC_BYTES] != magic:
        raise TrustError(f"this is no {what}: it does not start with {magic.decode()}")
    version = sealed[_MAGIC_BYTES : _MAGIC_BYTES + 1]
    if version != _VERSION:
        shown = version[0] if version else "none"
        raise TrustError(f"the {what} has format version {shown}; this release reads version {_VERSION[0]}")


def _split_header(header: bytes) -> tuple[bytes, bytes, bytes]:
    nonce_end = _MAGIC_BYTES + 1 + _NONCE_BYTES
    return header[_MAGIC_BYTES + 1 : nonce_end], header[nonce_end:-_PREFIX_BYTES], header[-_PREFIX_BYTES:]


def _wrap_data(purpose: str) -> bytes:
    if not purpose:
        raise ValueError("a sealed file has a purpose")
    return b"fedward/seal-wrap\0" + _SEAL_MAGIC + _VERSION + purpose.encode()


def _chunk_nonce(prefix: bytes, index: int, count: int) -> bytes:
    return prefix + index.to_bytes(4, "big") + bytes([index == count - 1])


def _stretch(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=KEY_BYTES, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P).derive(passphrase)
