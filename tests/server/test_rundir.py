import json
import stat

import pytest

from common.crypto.keys import SigningKey
from common.crypto.seal import open_sealed, seal_bytes
from common.errors import ConfigurationError, TrustError
from common.signed import read_signed, write_signed
from server.rundir import RunSettings, load_run
from tests.flows.federation import PASSPHRASE, Federation, make_plan


def test_a_prepared_run_is_opened_again(federation: Federation) -> None:
    run = load_run(federation.root, passphrase=PASSPHRASE)
    assert (run.plan, run.manifest, run.trust) == (federation.plan, federation.manifest, federation.trust)
    assert run.key.public_key == federation.coordinator.public_key
    assert run.settings.keep_models


def test_the_coordinators_key_lies_encrypted_and_for_its_owner_alone(federation: Federation) -> None:
    pem = federation.root / "coordinator.pem"
    assert b"ENCRYPTED" in pem.read_bytes()
    assert stat.S_IMODE(pem.stat().st_mode) == 0o600


def test_a_wrong_passphrase_opens_nothing(federation: Federation) -> None:
    with pytest.raises(TrustError, match="passphrase"):
        load_run(federation.root, passphrase=b"another passphrase for tests")


def test_a_run_from_before_checkpoints_gets_a_key_for_them_and_keeps_it(federation: Federation) -> None:
    (federation.root / "storage.key").unlink()
    made = load_run(federation.root, passphrase=PASSPHRASE).storage
    sealed = seal_bytes(b"state", made, purpose="test")
    again = load_run(federation.root, passphrase=PASSPHRASE).storage
    assert open_sealed(sealed, again, purpose="test") == b"state"


@pytest.mark.parametrize("name", ["plan.json", "manifest.json", "trust.json", "coordinator.pem", "run.json"])
def test_a_missing_file_is_refused(federation: Federation, name: str) -> None:
    (federation.root / name).unlink()
    with pytest.raises(ConfigurationError):
        load_run(federation.root, passphrase=PASSPHRASE)


@pytest.mark.parametrize(
    ("name", "old", "new"), [("plan", '"rounds":3', '"rounds":4'), ("manifest", "demo-1", "demo-2")]
)
def test_a_changed_document_is_refused(federation: Federation, name: str, old: str, new: str) -> None:
    path = federation.root / f"{name}.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(TrustError):
        load_run(federation.root, passphrase=PASSPHRASE)


def test_a_plan_is_no_manifest_though_the_same_key_signed_it(federation: Federation) -> None:
    path = federation.root / "manifest.json"
    signed = json.loads((federation.root / "plan.json").read_bytes())
    path.write_text(json.dumps({"manifest": signed["plan"], "signature": signed["signature"]}))
    with pytest.raises(TrustError):
        read_signed(path, "manifest", federation.coordinator.public_key)


def test_a_key_that_is_not_the_pinned_one_is_refused(federation: Federation) -> None:
    (federation.root / "coordinator.pem").write_bytes(SigningKey.generate().to_pem(PASSPHRASE))
    with pytest.raises(TrustError, match="not the pinned coordinator key"):
        load_run(federation.root, passphrase=PASSPHRASE)


def test_a_document_that_was_signed_by_another_key_is_refused(federation: Federation) -> None:
    write_signed(federation.root / "plan.json", "plan", make_plan().to_json(), SigningKey.generate())
    with pytest.raises(TrustError):
        load_run(federation.root, passphrase=PASSPHRASE)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"plan": {}, "signature": "!"}', b'{"plan": {}}'])
def test_what_is_no_signed_document_is_refused(federation: Federation, content: bytes) -> None:
    (federation.root / "plan.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match="no signed plan can be read"):
        load_run(federation.root, passphrase=PASSPHRASE)


@pytest.mark.parametrize("wrong", [{"round_timeout_s": 0}, {"setup_timeout_s": -1}])
def test_a_timeout_is_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        RunSettings.model_validate(wrong)


def test_what_an_earlier_run_left_is_not_taken_for_this_ones(federation: Federation) -> None:
    for name in ("result.json", "progress.json", "stop", "checkpoint/index.sealed"):
        path = federation.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{}")
    federation.prepare()
    assert not any((federation.root / name).exists() for name in ("result.json", "progress.json", "stop", "checkpoint"))


def test_every_run_has_a_storage_key_of_its_own_that_lies_encrypted_and_for_its_owner_alone(
    federation: Federation,
) -> None:
    path = federation.root / "storage.key"
    first = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    federation.prepare()
    assert path.read_bytes() != first
