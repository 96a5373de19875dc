import json
from pathlib import Path

import numpy as np
import pytest

from common.crypto.keys import SigningKey
from common.errors import ConfigurationError, TrustError
from common.parameters import parameters_digest
from server.release import read_release, release_model
from tests.flows.federation import Federation, make_plan

PARAMETERS = np.arange(10, dtype=np.float32) / 7


@pytest.fixture
def released(made_federation: Federation, tmp_path: Path) -> Path:
    release_model(
        tmp_path / "model",
        parameters=PARAMETERS,
        plan=made_federation.plan,
        manifest=made_federation.manifest,
        rounds=3,
        key=made_federation.coordinator,
    )
    return tmp_path / "model"


def read(federation: Federation, directory: Path):
    return read_release(directory, plan=federation.plan, key=federation.coordinator.public_key.text)


def test_a_released_model_is_read_back_bit_for_bit(made_federation: Federation, released: Path) -> None:
    np.testing.assert_array_equal(read(made_federation, released), PARAMETERS)


def test_its_card_names_run_plan_manifest_and_digest(made_federation: Federation, released: Path) -> None:
    card = json.loads((released / "card.json").read_bytes())
    assert card["model_digest"] == parameters_digest(PARAMETERS)
    assert card["plan_digest"] == made_federation.plan.digest
    assert card["manifest_digest"] == made_federation.manifest.digest
    assert (card["run_id"], card["rounds"]) == ("demo-1", 3)


def test_its_card_says_under_which_promise_it_was_trained(made_federation: Federation, released: Path) -> None:
    promise = json.loads((released / "card.json").read_bytes())["privacy"]
    assert (promise["epsilon"], promise["delta"], promise["unit"]) == (3.0, 1e-5, "patient")


def test_another_signer_is_refused(made_federation: Federation, released: Path) -> None:
    with pytest.raises(TrustError):
        read_release(released, plan=made_federation.plan, key=SigningKey.generate().public_key.text)


def test_a_changed_card_is_refused(made_federation: Federation, released: Path) -> None:
    card = released / "card.json"
    card.write_bytes(card.read_bytes().replace(b'"rounds":3', b'"rounds":9'))
    with pytest.raises(TrustError):
        read(made_federation, released)


def test_a_changed_parameter_is_refused(made_federation: Federation, released: Path) -> None:
    content = (released / "model.safetensors").read_bytes()
    (released / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TrustError, match="not the one that its card describes"):
        read(made_federation, released)


def test_a_model_of_another_plan_is_refused(made_federation: Federation, released: Path) -> None:
    with pytest.raises(TrustError):
        read_release(released, plan=make_plan(rounds=9), key=made_federation.coordinator.public_key.text)


@pytest.mark.parametrize("name", ["card.json", "signature.json", "model.safetensors"])
def test_a_missing_file_is_named_as_no_model(made_federation: Federation, released: Path, name: str) -> None:
    (released / name).unlink()
    with pytest.raises(ConfigurationError, match="no released model"):
        read(made_federation, released)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"signature": 1}', b'{"signature": "!"}'])
def test_a_malformed_signature_is_refused(made_federation: Federation, released: Path, content: bytes) -> None:
    (released / "signature.json").write_bytes(content)
    with pytest.raises(ConfigurationError):
        read(made_federation, released)
