"""Pair secrets and masks: both sides agree, the sum opens, and nothing less than the sum does."""

import hashlib
import hmac
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from common.crypto.masking import (
    CHUNK_BYTES,
    RunKeys,
    RunPublicKeys,
    apply_masks,
    comes_first,
    encapsulate,
    mask_context,
    pair_secret,
    pair_transcript,
)
from common.errors import TrustError

VECTORS = Path(__file__).parents[2] / "vectors"
MANIFEST = "sha256:" + "a" * 64
CONTEXT = b"one context"
SECRET = hashlib.sha256(b"one pair").digest()

# The u-coordinates of small order, also unreduced (cr.yp.to/ecdh.html#validate; RFC 7748, section 6.1).
P = 2**255 - 19
ORDER_EIGHT = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
SMALL_ORDER = (0, 1, *ORDER_EIGHT, P - 1, P, P + 1)


def vector(name):
    return json.loads((VECTORS / name).read_text())


def slow_hkdf(key_material, info, length, salt=bytes(32)):
    """RFC 5869 from HMAC alone."""
    extracted = hmac.digest(salt, key_material, "sha256")
    blocks, block = b"", b""
    for counter in itertools.count(1):
        if len(blocks) >= length:
            return blocks[:length]
        block = hmac.digest(extracted, block + info + bytes([counter]), "sha256")
        blocks += block


def slow_mask(secret, context, dimension):
    """The keystream of one pair from AES-256-CTR, chunk by chunk."""
    key = hmac.digest(secret, b"fedward/mask-key\0" + context, "sha256")
    stream = b""
    for index in range(-(-4 * dimension // 2**17)):
        counter_block = index.to_bytes(12, "big") + b"\0\0\0\2"
        stream += Cipher(algorithms.AES(key), modes.CTR(counter_block)).encryptor().update(bytes(2**17))
    return np.frombuffer(stream[: 4 * dimension], "<u4")


def secrets_of(name, names):
    """Pair secrets of one site in a made-up federation; the same from both sides."""
    return {peer: hashlib.sha256("|".join(sorted((name, peer))).encode()).digest() for peer in names if peer != name}


def masked_by(name, names, values, context=CONTEXT):
    return apply_masks(values, own_name=name, pair_secrets=secrets_of(name, names), context=context)


@pytest.fixture(scope="module")
def pair():
    """Two sites' run keys, and what the first sent the second."""
    first, second = RunKeys.generate(), RunKeys.generate()
    secret, ciphertext = encapsulate(second.public)
    return first, second, secret, ciphertext


def transcript_of(first, second, ciphertext, manifest=MANIFEST, names=("east", "west")):
    return pair_transcript(
        manifest_digest=manifest, first=(names[0], first), second=(names[1], second), ciphertext=ciphertext
    )


# Pair secrets


def test_both_sites_derive_the_same_pair_secret(pair):
    first, second, secret, ciphertext = pair
    transcript = transcript_of(first.public, second.public, ciphertext)
    at_first = pair_secret(own=first, peer=second.public, kem_secret=secret, transcript=transcript)
    at_second = pair_secret(
        own=second, peer=first.public, kem_secret=second.decapsulate(ciphertext), transcript=transcript
    )
    assert at_first == at_second
    assert len(at_first) == 32


def test_the_pair_secret_is_hkdf_over_both_secrets_and_the_transcript(pair):
    first, second, secret, _ = pair
    derived = pair_secret(own=first, peer=second.public, kem_secret=secret, transcript=b"seen")
    shared = first.exchange(second.public)
    assert derived == slow_hkdf(shared + secret, b"fedward/pair-secret\0seen", 32)


def test_the_slow_hkdf_and_the_library_give_the_published_answer():
    known = {name: bytes.fromhex(text) for name, text in vector("hkdf_sha256.json").items() if name != "source"}
    assert slow_hkdf(known["ikm"], known["info"], 42, known["salt"]) == known["okm"]
    assert HKDF(SHA256(), 42, known["salt"], known["info"]).derive(known["ikm"]) == known["okm"]


def test_run_keys_agree_with_rfc_7748():
    known = {name: bytes.fromhex(text) for name, text in vector("x25519.json").items() if name != "source"}
    first = RunKeys.from_bytes(b"\x01" + known["first_private"] + bytes(64))
    second = RunKeys.from_bytes(b"\x01" + known["second_private"] + bytes(64))
    assert first.public.x25519 == known["first_public"]
    assert second.public.x25519 == known["second_public"]
    assert first.exchange(second.public) == second.exchange(first.public) == known["shared"]


def test_run_keys_agree_with_a_published_ml_kem_vector():
    known = vector("mlkem768.json")
    keys = RunKeys.from_bytes(b"\x01" + bytes(32) + bytes.fromhex(known["seed"]))
    assert keys.public.mlkem.hex().startswith(known["public_starts"])
    assert keys.public.mlkem.hex().endswith(known["public_ends"])
    assert keys.decapsulate(bytes.fromhex(known["ciphertext"])).hex() == known["shared"]


def test_every_flipped_bit_of_the_ciphertext_changes_the_secret_at_the_second_site(pair):
    _, second, secret, ciphertext = pair
    for position in range(0, 8 * len(ciphertext), 61):
        assert second.decapsulate(flip(ciphertext, position)) != secret


@pytest.mark.parametrize("part", ["first x25519", "first mlkem", "second x25519", "second mlkem", "ciphertext"])
def test_every_flipped_bit_of_a_key_or_ciphertext_changes_the_transcript(pair, part):
    first, second, _, ciphertext = pair
    fields = {
        "first x25519": first.public.x25519,
        "first mlkem": first.public.mlkem,
        "second x25519": second.public.x25519,
        "second mlkem": second.public.mlkem,
        "ciphertext": ciphertext,
    }

    def transcript(fields):
        return transcript_of(
            RunPublicKeys(x25519=fields["first x25519"], mlkem=fields["first mlkem"]),
            RunPublicKeys(x25519=fields["second x25519"], mlkem=fields["second mlkem"]),
            fields["ciphertext"],
        )

    honest = transcript(fields)
    for position in range(0, 8 * len(fields[part]), 7):
        assert transcript(fields | {part: flip(fields[part], position)}) != honest


def test_every_flipped_bit_of_the_transcript_or_the_kem_secret_changes_the_pair_secret(pair):
    first, second, secret, ciphertext = pair
    transcript = transcript_of(first.public, second.public, ciphertext)

    def derive(kem_secret, transcript):
        return pair_secret(own=first, peer=second.public, kem_secret=kem_secret, transcript=transcript)

    derived = {derive(secret, transcript)}
    derived |= {derive(secret, flip(transcript, position)) for position in range(256)}
    derived |= {derive(flip(secret, position), transcript) for position in range(256)}
    assert len(derived) == 513


def test_another_x25519_key_changes_the_pair_secret(pair):
    first, second, secret, _ = pair
    impostor = RunPublicKeys(x25519=RunKeys.generate().public.x25519, mlkem=second.public.mlkem)
    honest = pair_secret(own=first, peer=second.public, kem_secret=secret, transcript=b"seen")
    assert pair_secret(own=first, peer=impostor, kem_secret=secret, transcript=b"seen") != honest


def test_a_transcript_is_the_same_from_both_sides(pair):
    first, second, _, ciphertext = pair
    east, west = ("east", first.public), ("west", second.public)
    seen = [
        pair_transcript(manifest_digest=MANIFEST, first=one, second=other, ciphertext=ciphertext)
        for one, other in ((east, west), (west, east))
    ]
    assert seen[0] == seen[1]


def test_a_transcript_tells_apart_manifests_names_and_who_owns_which_key(pair):
    first, second, _, ciphertext = pair
    seen = {
        transcript_of(first.public, second.public, ciphertext),
        transcript_of(second.public, first.public, ciphertext),
        transcript_of(first.public, second.public, ciphertext, manifest="sha256:" + "b" * 64),
        transcript_of(first.public, second.public, ciphertext, names=("eas", "twest")),
        transcript_of(first.public, second.public, ciphertext, names=("east", "west2")),
    }
    assert len(seen) == 5


def test_a_letter_moved_from_the_manifest_to_a_name_changes_the_transcript(pair):
    first, second, _, ciphertext = pair
    one = transcript_of(first.public, second.public, ciphertext, manifest="sha256:ab", names=("east", "west"))
    other = transcript_of(first.public, second.public, ciphertext, manifest="sha256:a", names=("beast", "west"))
    assert one != other


def test_a_transcript_is_the_digest_of_its_fields_each_after_its_length(pair):
    first, second, _, ciphertext = pair
    fields = [MANIFEST.encode(), b"east", first.public.x25519, first.public.mlkem]
    fields += [b"west", second.public.x25519, second.public.mlkem, ciphertext]
    written = b"fedward/pair-transcript\0" + b"".join(len(field).to_bytes(8, "big") + field for field in fields)
    assert transcript_of(first.public, second.public, ciphertext) == hashlib.sha256(written).digest()


@pytest.mark.parametrize("u", SMALL_ORDER)
def test_an_x25519_key_that_makes_the_secret_zero_is_refused(pair, u):
    first, second, secret, _ = pair
    peer = RunPublicKeys(x25519=u.to_bytes(32, "little"), mlkem=second.public.mlkem)
    with pytest.raises(TrustError, match="small order"):
        pair_secret(own=first, peer=peer, kem_secret=secret, transcript=b"seen")


def test_an_ml_kem_key_with_coefficients_out_of_range_is_refused(pair):
    with pytest.raises(TrustError, match="ML-KEM-768"):
        encapsulate(RunPublicKeys(x25519=pair[0].public.x25519, mlkem=b"\xff" * 1184))


@pytest.mark.parametrize(("x25519", "mlkem"), [(31, 1184), (33, 1184), (0, 1184), (32, 1183), (32, 1568)])
def test_public_keys_of_another_size_are_refused(x25519, mlkem):
    with pytest.raises(TrustError, match="bytes, not"):
        RunPublicKeys(x25519=bytes(x25519), mlkem=bytes(mlkem))


@pytest.mark.parametrize("size", [0, 1087, 1089])
def test_a_ciphertext_of_another_size_is_refused(pair, size):
    with pytest.raises(TrustError, match=f"not {size}"):
        pair[1].decapsulate(bytes(size))


def test_a_short_kem_secret_or_an_empty_transcript_is_refused(pair):
    first, second, secret, _ = pair
    with pytest.raises(ValueError, match="not 31"):
        pair_secret(own=first, peer=second.public, kem_secret=secret[:31], transcript=b"seen")
    with pytest.raises(ValueError, match="transcript"):
        pair_secret(own=first, peer=second.public, kem_secret=secret, transcript=b"")


def test_run_keys_survive_their_bytes(pair):
    _, second, secret, ciphertext = pair
    reopened = RunKeys.from_bytes(second.to_bytes())
    assert reopened.public == second.public
    assert reopened.decapsulate(ciphertext) == secret


@pytest.mark.parametrize("private", [b"", bytes(96), b"\x02" + bytes(96), bytes(98)])
def test_private_keys_of_another_size_or_version_are_refused(private):
    with pytest.raises(TrustError, match="private keys"):
        RunKeys.from_bytes(private)


def test_run_keys_do_not_print_themselves():
    keys = RunKeys.generate()
    assert keys.to_bytes()[1:33].hex() not in repr(keys)
    assert repr(keys.to_bytes()[1:33]) not in repr(keys)


def test_the_name_that_sorts_first_in_utf8_encapsulates():
    assert comes_first("east", "west")
    assert not comes_first("west", "east")
    assert comes_first("Zürich", "aarau")
    assert comes_first("\uffee", "\U00010000")


@pytest.mark.parametrize(("own", "peer"), [("east", "east"), ("", "east"), ("east", "")])
def test_a_pair_has_two_different_names(own, peer):
    with pytest.raises(ValueError, match="two names"):
        comes_first(own, peer)


# Masks


@settings(deadline=None)
@given(sites=st.integers(2, 9), dimension=st.integers(1, 40), data=st.data())
def test_masks_cancel_when_every_site_of_the_cohort_answers(sites, dimension, data):
    roster = [f"site-{number}" for number in range(sites)]
    cohort = data.draw(st.lists(st.sampled_from(roster), min_size=2, unique=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    vectors = {name: rng.integers(0, 2**32, dimension, dtype=np.uint32) for name in cohort}
    total = sum(masked_by(name, cohort, vectors[name]) for name in cohort)
    assert np.array_equal(total, sum(vectors.values()))


def test_masks_cancel_across_chunk_borders():
    names = ["east", "north", "west"]
    dimension = 2 * CHUNK_BYTES // 4 + 7
    total = sum(masked_by(name, names, np.full(dimension, 5, np.uint32)) for name in names)
    assert np.array_equal(total, np.full(dimension, 15, np.uint32))


@pytest.mark.parametrize("missing", ["east", "north", "west"])
def test_with_one_site_missing_the_sum_looks_uniform(missing):
    names, dimension = ["east", "north", "west"], 2**16
    total = sum(masked_by(name, names, np.zeros(dimension, np.uint32)) for name in names if name != missing)
    for column in total.view(np.uint8).reshape(-1, 4).T:
        counts = np.bincount(column, minlength=256)
        expected = dimension / 256
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert chi2.sf(statistic, 255) > 1e-6
        assert chi2.cdf(statistic, 255) > 1e-6


def test_one_sites_masked_vector_alone_looks_uniform():
    masked = masked_by("east", ["east", "north", "west"], np.zeros(2**16, np.uint32))
    counts = np.bincount(masked >> 24, minlength=256)
    assert chi2.sf(((counts - 256.0) ** 2 / 256.0).sum(), 255) > 1e-6


def test_sites_that_name_different_cohorts_do_not_open_the_sum():
    everyone, fewer = ["east", "north", "west"], ["east", "north"]
    values = np.zeros(64, np.uint32)
    total = masked_by("east", everyone, values) + masked_by("north", fewer, values)
    assert np.count_nonzero(total) > 60


def test_one_bit_of_context_changes_the_whole_mask():
    values = np.zeros(1000, np.uint32)
    one = apply_masks(values, own_name="east", pair_secrets={"west": SECRET}, context=b"round 1")
    other = apply_masks(values, own_name="east", pair_secrets={"west": SECRET}, context=b"round 0")
    assert np.count_nonzero(one == other) <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"manifest_digest": "sha256:" + "b" * 64},
        {"kind": "evaluate"},
        {"round_number": 4},
        {"attempt": 2},
        {"cohort": ["east", "west"]},
        {"cohort": ["east", "north", "south"]},
        {"model_digest": "sha256:" + "d" * 64},
    ],
)
def test_every_part_of_what_a_sum_is_changes_its_context(change):
    named = {
        "manifest_digest": MANIFEST,
        "kind": "train",
        "round_number": 3,
        "attempt": 1,
        "cohort": ["east", "north", "west"],
        "model_digest": "sha256:" + "c" * 64,
    }
    assert mask_context(**named) != mask_context(**(named | change))
    assert mask_context(**named) == mask_context(**(named | {"cohort": ["west", "east", "north"]}))


@pytest.mark.parametrize("cohort", [[], ["east"], ["east", "east"], ["east", "west", "east"]])
def test_a_cohort_has_two_sites_each_once(cohort):
    with pytest.raises(ValueError, match="at least two sites"):
        mask_context(
            manifest_digest=MANIFEST, kind="train", round_number=1, attempt=0, cohort=cohort, model_digest=MANIFEST
        )


@pytest.mark.parametrize("dimension", [1, 3, 62, 2**15 - 1, 2**15, 2**15 + 1, 70_001])
def test_a_mask_is_the_ctr_keystream_of_its_round_key(dimension):
    values = np.arange(dimension, dtype=np.uint32)
    mask = slow_mask(SECRET, CONTEXT, dimension)
    added = apply_masks(values, own_name="east", pair_secrets={"west": SECRET}, context=CONTEXT)
    taken = apply_masks(values, own_name="west", pair_secrets={"east": SECRET}, context=CONTEXT)
    assert np.array_equal(added, values + mask)
    assert np.array_equal(taken, values - mask)


@settings(deadline=None)
@given(key=st.binary(min_size=32, max_size=32), nonce=st.binary(min_size=12, max_size=12), size=st.integers(0, 500))
def test_aes_gcm_over_zeros_is_aes_ctr_from_counter_two(key, nonce, size):
    counter = Cipher(algorithms.AES(key), modes.CTR(nonce + b"\0\0\0\2")).encryptor()
    assert AESGCM(key).encrypt(nonce, bytes(size), None)[:size] == counter.update(bytes(size))


def test_the_first_mask_format_is_kept():
    known = vector("masking_v1.json")
    values = np.zeros(known["dimension"], np.uint32)
    masked = apply_masks(
        values,
        own_name=known["own_name"],
        pair_secrets={name: bytes.fromhex(secret) for name, secret in known["pair_secrets"].items()},
        context=bytes.fromhex(known["context"]),
    )
    assert masked[:4].tolist() == known["first_words"]
    assert hashlib.sha256(masked.astype("<u4").tobytes()).hexdigest() == known["sha256"]


def test_masking_leaves_the_vector_and_works_on_a_strided_one():
    values = np.arange(20, dtype=np.uint32)
    masked = apply_masks(values[::2], own_name="east", pair_secrets={"west": SECRET}, context=CONTEXT)
    assert np.array_equal(values, np.arange(20, dtype=np.uint32))
    assert np.array_equal(masked, values[::2] + slow_mask(SECRET, CONTEXT, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair_secrets": {}}, "in the clear"),
        ({"pair_secrets": {"east": SECRET}}, "two names"),
        ({"pair_secrets": {"west": SECRET, "east": SECRET}}, "two names"),
        ({"pair_secrets": {"west": SECRET[:31]}}, "not 31"),
        ({"pair_secrets": {"": SECRET}}, "two names"),
        ({"context": b""}, "context"),
        ({"vector": np.zeros(3, np.int64)}, "uint32"),
        ({"vector": np.zeros((3, 1), np.uint32)}, "shape"),
        ({"vector": np.zeros(0, np.uint32)}, "shape"),
    ],
)
def test_a_vector_that_would_not_be_masked_rightly_does_not_come_back(change, message):
    arguments = {
        "vector": np.zeros(3, np.uint32),
        "own_name": "east",
        "pair_secrets": {"west": SECRET},
        "context": CONTEXT,
    } | change
    with pytest.raises(ValueError, match=message):
        apply_masks(arguments.pop("vector"), **arguments)


def flip(content, position):
    changed = bytearray(content)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)
