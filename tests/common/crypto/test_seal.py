"""Sealed files: what opens them, and everything that must not."""

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from common.crypto.seal import CHUNK_BYTES, StorageKey, open_sealed, seal_bytes
from common.errors import TrustError

VECTORS = Path(__file__).parents[2] / "vectors"
PASSPHRASE = b"sixteen bytes or more"
KEY = StorageKey(hashlib.sha256(b"a storage key").digest())
HEADER_BYTES = 74
STEP = CHUNK_BYTES + 16


def content(size):
    """Bytes that repeat nowhere, so that a swapped chunk would be seen."""
    return hashlib.shake_128(b"content").digest(size)


@pytest.mark.parametrize("size", [0, 1, 15, 16, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_what_was_sealed_opens(size):
    assert open_sealed(seal_bytes(content(size), KEY, purpose="features"), KEY, purpose="features") == content(size)


@settings(deadline=None)
@given(plain=st.binary(max_size=300), purpose=st.text(min_size=1, max_size=20))
def test_any_bytes_open_for_any_purpose_they_were_sealed_for(plain, purpose):
    assert open_sealed(seal_bytes(plain, KEY, purpose=purpose), KEY, purpose=purpose) == plain


@pytest.mark.parametrize(("size", "chunks"), [(0, 1), (1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2)])
def test_a_sealed_file_is_longer_by_its_header_and_a_tag_for_each_chunk(size, chunks):
    assert len(seal_bytes(content(size), KEY, purpose="features")) == HEADER_BYTES + size + 16 * chunks


def test_sealing_twice_gives_different_bytes():
    assert seal_bytes(b"same", KEY, purpose="features") != seal_bytes(b"same", KEY, purpose="features")


def test_the_first_file_format_still_opens():
    vector = json.loads((VECTORS / "seal_v1.json").read_text())
    key = StorageKey(bytes.fromhex(vector["storage_key"]))
    assert open_sealed(bytes.fromhex(vector["sealed"]), key, purpose=vector["purpose"]).hex() == vector["plain"]


def test_a_file_written_by_hand_from_the_format_opens():
    raw, data_key, nonce, prefix = bytes(32), b"d" * 32, b"n" * 12, b"p" * 7
    plain, purpose = content(2 * CHUNK_BYTES + 5), b"features"
    wrapped = AESGCM(raw).encrypt(nonce, data_key, b"fedward/seal-wrap\0FWSEAL\x01" + purpose)
    header = b"FWSEAL\x01" + nonce + wrapped + prefix
    cipher = AESGCM(data_key)
    body = b"".join(
        cipher.encrypt(
            prefix + bytes([0, 0, 0, index, index == 2]), plain[index * 2**20 : (index + 1) * 2**20], header + purpose
        )
        for index in range(3)
    )
    assert open_sealed(header + body, StorageKey(raw), purpose="features") == plain


def test_a_file_cut_anywhere_does_not_open():
    sealed = seal_bytes(b"forty patients", KEY, purpose="features")
    for length in range(len(sealed)):
        with pytest.raises(TrustError):
            open_sealed(sealed[:length], KEY, purpose="features")


def test_a_file_with_any_bit_changed_does_not_open():
    sealed = seal_bytes(b"forty patients", KEY, purpose="features")
    for position in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(TrustError):
            open_sealed(bytes(changed), KEY, purpose="features")


@pytest.mark.parametrize("extra", [b"\0", bytes(16), bytes(STEP)])
def test_a_file_with_bytes_appended_does_not_open(extra):
    sealed = seal_bytes(b"forty patients", KEY, purpose="features")
    with pytest.raises(TrustError):
        open_sealed(sealed + extra, KEY, purpose="features")


@pytest.fixture(scope="module")
def four_chunks():
    """Header and chunks of a file of 3 MiB and a bit."""
    sealed = seal_bytes(content(3 * CHUNK_BYTES + 100), KEY, purpose="features")
    body = sealed[HEADER_BYTES:]
    return sealed[:HEADER_BYTES], [body[start : start + STEP] for start in range(0, len(body), STEP)]


@pytest.mark.parametrize(
    "order", [[1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3], [0, 3], [3], [0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3]]
)
def test_chunks_in_another_order_or_number_do_not_open(four_chunks, order):
    header, chunks = four_chunks
    with pytest.raises(TrustError):
        open_sealed(header + b"".join(chunks[index] for index in order), KEY, purpose="features")


def test_the_error_names_the_chunk_that_was_changed(four_chunks):
    header, chunks = four_chunks
    changed = bytes([chunks[2][0] ^ 1]) + chunks[2][1:]
    with pytest.raises(TrustError, match="chunk 3 of 4"):
        open_sealed(header + chunks[0] + chunks[1] + changed + chunks[3], KEY, purpose="features")


def test_a_chunk_of_another_file_of_the_same_key_and_purpose_does_not_open(four_chunks):
    header, chunks = four_chunks
    other = seal_bytes(content(3 * CHUNK_BYTES + 100), KEY, purpose="features")[HEADER_BYTES:]
    with pytest.raises(TrustError):
        open_sealed(header + other[:STEP] + b"".join(chunks[1:]), KEY, purpose="features")


def test_another_storage_key_opens_nothing():
    with pytest.raises(TrustError, match="another key"):
        open_sealed(seal_bytes(b"x", KEY, purpose="features"), StorageKey.generate(), purpose="features")


@pytest.mark.parametrize("purpose", ["feature", "features ", "attempt/run/1/0", "Features"])
def test_a_file_opens_for_its_own_purpose_only(purpose):
    with pytest.raises(TrustError):
        open_sealed(seal_bytes(b"x", KEY, purpose="features"), KEY, purpose=purpose)


def test_a_purpose_is_needed_to_seal_and_to_open():
    with pytest.raises(ValueError, match="purpose"):
        seal_bytes(b"x", KEY, purpose="")
    with pytest.raises(ValueError, match="purpose"):
        open_sealed(seal_bytes(b"x", KEY, purpose="features"), KEY, purpose="")


def test_a_later_format_version_is_named():
    sealed = seal_bytes(b"x", KEY, purpose="features")
    with pytest.raises(TrustError, match="version 2"):
        open_sealed(sealed[:6] + b"\x02" + sealed[7:], KEY, purpose="features")


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_storage_key_has_32_bytes(length):
    with pytest.raises(ValueError, match=f"not {length}"):
        StorageKey(bytes(length))


def test_a_storage_key_survives_its_passphrase():
    key = StorageKey.generate()
    opened = StorageKey.from_sealed_bytes(key.to_sealed_bytes(PASSPHRASE), PASSPHRASE)
    assert open_sealed(seal_bytes(b"x", key, purpose="features"), opened, purpose="features") == b"x"


def test_the_first_storage_key_format_still_opens():
    vector = json.loads((VECTORS / "seal_v1.json").read_text())
    key = StorageKey.from_sealed_bytes(bytes.fromhex(vector["sealed_storage_key"]), vector["passphrase"].encode())
    assert open_sealed(bytes.fromhex(vector["sealed"]), key, purpose=vector["purpose"]).hex() == vector["plain"]


@pytest.mark.parametrize("wrong", [b"", b"another passphrase", PASSPHRASE + b" "])
def test_a_wrong_passphrase_opens_no_storage_key(wrong):
    with pytest.raises(TrustError, match="passphrase"):
        StorageKey.from_sealed_bytes(KEY.to_sealed_bytes(PASSPHRASE), wrong)


def test_a_short_passphrase_is_refused_with_its_length():
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        KEY.to_sealed_bytes(b"x" * 15)


@settings(max_examples=12, deadline=None)
@given(position=st.integers(min_value=0, max_value=8 * 83 - 1))
def test_a_sealed_storage_key_with_a_bit_changed_does_not_open(position):
    changed = bytearray(KEY.to_sealed_bytes(PASSPHRASE))
    changed[position // 8] ^= 1 << position % 8
    with pytest.raises(TrustError):
        StorageKey.from_sealed_bytes(bytes(changed), PASSPHRASE)


@pytest.mark.parametrize("change", [slice(0), slice(5), slice(7), slice(35), slice(82)])
def test_a_cut_storage_key_does_not_open(change):
    with pytest.raises(TrustError):
        StorageKey.from_sealed_bytes(KEY.to_sealed_bytes(PASSPHRASE)[change], PASSPHRASE)


def test_a_sealed_file_is_no_storage_key():
    with pytest.raises(TrustError, match="no storage key"):
        StorageKey.from_sealed_bytes(seal_bytes(b"x", KEY, purpose="features"), PASSPHRASE)


def test_a_storage_key_does_not_print_itself():
    raw = hashlib.sha256(b"a storage key").digest()
    assert raw.hex() not in repr(KEY)
    assert repr(raw) not in repr(KEY)
