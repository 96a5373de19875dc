import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from common.canonical import canonical_json
from common.crypto.keys import SigningKey
from common.enrolment import (
    Consortium,
    Enrolment,
    node_key_digest,
    node_key_text,
    pem_digest,
    read_consortium,
    read_enrolment,
    same_fingerprint,
    write_consortium,
    write_enrolment,
)
from common.errors import ConfigurationError, TrustError
from common.signed import write_signed
from tests.server.coordinators import CERTIFICATE, make_node_key

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
NODE_KEY, OTHER_NODE_KEY = make_node_key(), make_node_key()


def make_enrolment(**changes: object) -> Enrolment:
    fields = {
        "name": "east",
        "identity_key": KEY.public_key.text,
        "node_key": NODE_KEY,
        "nominal_patients": 100,
    }
    return Enrolment.model_validate({**fields, **changes})


def make_consortium(**changes: object) -> Consortium:
    fields = {
        "coordinator": KEY.public_key.text,
        "gateway": "fed.example.org:443",
        "certificates": CERTIFICATE,
        "sites": {"east": OTHER.public_key.text},
    }
    return Consortium.model_validate({**fields, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "document.json"


def test_an_enrolment_survives_the_disk(path: Path) -> None:
    write_enrolment(path, make_enrolment(), KEY)
    assert read_enrolment(path) == make_enrolment()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_consortium_survives_the_disk(path: Path) -> None:
    write_consortium(path, make_consortium(), KEY)
    assert read_consortium(path) == make_consortium()


def test_nobody_enrols_with_a_key_that_he_does_not_have(path: Path) -> None:
    with pytest.raises(TrustError, match="another identity key"):
        write_enrolment(path, make_enrolment(), OTHER)
    with pytest.raises(TrustError, match="another coordinator"):
        write_consortium(path, make_consortium(), OTHER)
    assert not path.exists()


def test_an_enrolment_forged_under_anothers_identity_is_refused(path: Path) -> None:
    write_signed(path, "enrolment", make_enrolment().model_dump(mode="json"), OTHER)
    with pytest.raises(TrustError):
        read_enrolment(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "west"),
        ("identity_key", OTHER.public_key.text),
        ("node_key", OTHER_NODE_KEY),
        ("nominal_patients", 101),
    ],
    ids=["name", "identity key", "node key", "nominal patients"],
)
def test_an_enrolment_that_was_changed_on_its_way_is_refused(path: Path, field: str, value: object) -> None:
    write_enrolment(path, make_enrolment(), KEY)
    signed = json.loads(path.read_bytes())
    signed["enrolment"][field] = value
    path.write_bytes(canonical_json(signed))
    with pytest.raises(TrustError):
        read_enrolment(path)


def test_a_node_key_swapped_and_signed_anew_has_another_fingerprint() -> None:
    changes = [{"node_key": OTHER_NODE_KEY}, {"name": "west"}, {"identity_key": OTHER.public_key.text}]
    prints = {make_enrolment(**change).fingerprint for change in [{}, *changes]}
    assert len(prints) == 4


def test_a_consortiums_fingerprint_covers_every_key_in_it() -> None:
    changes = [
        {"coordinator": OTHER.public_key.text},
        {"certificates": CERTIFICATE + "\n"},
        {"sites": {}},
        {"sites": {"west": OTHER.public_key.text}},
        {"sites": {"east": KEY.public_key.text}},
    ]
    assert len({make_consortium(**change).fingerprint for change in [{}, *changes]}) == 6


def test_fingerprints_of_enrolment_and_consortium_serve_one_purpose_each() -> None:
    assert make_enrolment().fingerprint != make_consortium().fingerprint


def test_an_enrolment_is_no_consortium(path: Path) -> None:
    write_enrolment(path, make_enrolment(), KEY)
    with pytest.raises(ConfigurationError, match="no signed consortium"):
        read_consortium(path)


@given(st.sampled_from(["", " ", "-", "  - "]), st.booleans())
def test_a_fingerprint_may_be_spelled_in_many_ways(between: str, upper: bool) -> None:
    fingerprint = make_enrolment().fingerprint
    spelled = between.join(fingerprint.split())
    assert same_fingerprint(spelled.upper() if upper else spelled, fingerprint)


@given(st.integers(0, 31), st.sampled_from("0123456789abcdef"))
def test_a_fingerprint_with_one_other_digit_is_another(place: int, digit: str) -> None:
    bare = make_enrolment().fingerprint.replace(" ", "")
    given = bare[:place] + digit + bare[place + 1 :]
    assert same_fingerprint(given, bare) == (bare[place] == digit)


def test_a_part_of_a_fingerprint_is_not_that_fingerprint() -> None:
    fingerprint = make_enrolment().fingerprint
    assert not same_fingerprint(fingerprint[:19], fingerprint)
    assert not same_fingerprint("", fingerprint)


@pytest.mark.parametrize("name", ["", "East", "../up", "a" * 64, "-east", "coordinator", "any", "ea\nst"])
def test_a_site_has_a_plain_name_that_is_no_role(name: str) -> None:
    with pytest.raises(ValueError):
        make_enrolment(name=name)


def test_an_identity_under_which_anybody_signs_is_refused() -> None:
    with pytest.raises(ValueError, match="small order"):
        make_enrolment(identity_key="ed25519:" + "A" * 43 + "=")


@pytest.mark.parametrize("patients", [0, -1, 10**9 + 1, float("nan")])
def test_the_nominal_patients_are_a_sensible_number(patients: float) -> None:
    with pytest.raises(ValueError):
        make_enrolment(nominal_patients=patients)


def _openssh(key: object) -> str:
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(encoding, form).decode()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "node_key",
    [
        "",
        "ssh-rsa AAAA",
        _openssh(ec.generate_private_key(ec.SECP256R1())),
        _openssh(ed25519.Ed25519PrivateKey.generate()),
        NODE_KEY[:-8],
    ],
    ids=["empty", "RSA", "P-256", "Ed25519", "cut"],
)
def test_a_node_key_is_ecdsa_on_p384(node_key: str) -> None:
    with pytest.raises(ValueError, match="node key"):
        make_enrolment(node_key=node_key)


def test_a_node_keys_comment_is_left_behind() -> None:
    assert make_enrolment(node_key=f"{NODE_KEY} somebody@somewhere").node_key == NODE_KEY
    assert node_key_text(f"{NODE_KEY} x\n".encode()) == NODE_KEY


def test_a_node_keys_digest_is_that_of_the_pem_that_flower_sends() -> None:
    key = serialization.load_ssh_public_key(NODE_KEY.encode())
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert node_key_digest(NODE_KEY) == make_enrolment().node_digest == pem_digest(pem)


@pytest.mark.parametrize(
    "changes",
    [
        {"gateway": "fed.example.org"},
        {"gateway": "https://fed.example.org:443"},
        {"gateway": "a b:443"},
        {"certificates": "no certificate"},
        {"coordinator": "ed25519:AAAA"},
        {"sites": {"east": "ed25519:AAAA"}},
        {"sites": {"East": OTHER.public_key.text}},
        {"sites": {"east": OTHER.public_key.text, "west": OTHER.public_key.text}},
        {"surprise": 1},
    ],
)
def test_a_consortium_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        make_consortium(**changes)


def test_a_private_key_does_not_slip_into_a_consortium() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="private key"):
        make_consortium(certificates=CERTIFICATE + key.decode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"enrolment": []}',
        b'{"enrolment": {"identity_key": 7}, "signature": ""}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_enrolment_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="no signed enrolment can be read"):
        read_enrolment(path)


def test_an_unknown_key_in_a_signed_enrolment_is_refused(path: Path) -> None:
    write_signed(path, "enrolment", {**make_enrolment().model_dump(mode="json"), "extra": 1}, KEY)
    with pytest.raises(ConfigurationError, match="extra"):
        read_enrolment(path)


def test_a_huge_file_is_not_read(path: Path) -> None:
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 40)
    with pytest.raises(ConfigurationError, match="larger than"):
        read_enrolment(path)
