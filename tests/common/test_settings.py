from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from common.errors import ConfigurationError
from common.plan import TrainingPlan
from common.settings import MAXIMUM_FILE_BYTES, Settings, parse_json_settings, parse_toml, read_settings
from tests.flows.federation import make_plan


class Limit(Settings):
    epsilon: float = Field(gt=0)
    delta: float = 1e-5


class Rules(Settings):
    version: int = 1
    minimum_cohort: int = 3
    budget: dict[str, Limit] = Field(default_factory=dict)
    first: Limit = Limit(epsilon=1.0)


def read(tmp_path: Path, text: str) -> Rules:
    (tmp_path / "rules.toml").write_text(text, encoding="utf-8")
    return read_settings(tmp_path / "rules.toml", Rules)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        read(tmp_path, text)
    assert refused.value.hint or "TOML" in refused.value.fact
    assert refused.value.fact.startswith(f"{tmp_path / 'rules.toml'}: ")
    return refused.value.fact.removeprefix(f"{tmp_path / 'rules.toml'}: ")


def test_a_file_becomes_a_frozen_model(tmp_path: Path) -> None:
    rules = read(tmp_path, "minimum_cohort = 5\n[budget.ward]\nepsilon = 2")
    assert (rules.minimum_cohort, rules.budget["ward"].epsilon) == (5, 2.0)
    with pytest.raises(ValidationError):
        rules.minimum_cohort = 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("minimum_cohrt = 5", "unknown key 'minimum_cohrt'; did you mean 'minimum_cohort'?"),
        ("[first]\nepsilon = 1\ndelt = 1", "unknown key 'first.delt'; did you mean 'delta'?"),
        ("[budget.ward]\nepsilon = 1\nepsilom = 2", "unknown key 'budget.ward.epsilom'; did you mean 'epsilon'?"),
        ("zzz = 5", "unknown key 'zzz'; known keys: budget, first, minimum_cohort, version"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_known_one(tmp_path: Path, text: str, said: str) -> None:
    assert refusal(tmp_path, text) == said


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, "[budget.ward]\ndelta = 1e-6") == "key 'budget.ward.epsilon' is missing"


def test_a_wrong_value_is_named_with_its_key_and_its_limit(tmp_path: Path) -> None:
    assert refusal(tmp_path, "[first]\nepsilon = -1") == "first.epsilon: Input should be greater than 0 (got -1)"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_not_finite_is_refused(tmp_path: Path, value: str) -> None:
    assert f"(got {value})" in refusal(tmp_path, f"[first]\nepsilon = {value}")


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, "minimum_cohrt = 5\n[first]\nepsilon = 0")
    assert "minimum_cohrt" in said
    assert "first.epsilon" in said


def test_a_long_value_is_shortened_in_the_message(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, f"minimum_cohort = '{'x' * 5000}'")) < 200


@pytest.mark.parametrize("content", [b"minimum_cohort = ", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rules.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be read as TOML"):
        read_settings(tmp_path / "rules.toml", Rules)


def test_a_key_of_very_many_parts_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    assert "more than 64 dots" in refusal(tmp_path, "a." * 65 + "a = 1")
    assert "more than 64 dots" in refusal(tmp_path, "[" + "a . " * 65 + "a]")
    assert parse_toml("a." * 64 + "a = 1").keys() == {"a"}
    assert len(parse_toml(f"numbers = [{'0.5, ' * 1000}]")["numbers"]) == 1000


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.toml: no such file"):
        read_settings(tmp_path / "gone.toml", Rules)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_settings(tmp_path, Rules)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "rules.toml").open("wb") as stream:
        stream.truncate(MAXIMUM_FILE_BYTES + 1)
    with pytest.raises(ConfigurationError, match=f"larger than {MAXIMUM_FILE_BYTES} bytes"):
        read_settings(tmp_path / "rules.toml", Rules)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"[" * 100_000, b'{"version": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigurationError, match="the offer: "):
        parse_json_settings(content, Rules, source="the offer")


def test_json_has_the_same_rules_as_toml() -> None:
    with pytest.raises(ConfigurationError, match=r"the offer: unknown key 'versoin'; did you mean 'version'\?"):
        parse_json_settings(b'{"versoin": 1}', Rules, source="the offer")


def test_a_changed_copy_does_not_keep_what_was_worked_out_from_the_old_values() -> None:
    plan = make_plan()
    before = plan.digest
    changed = plan.model_copy(update={"training": plan.training.model_copy(update={"rounds": 9})})
    assert isinstance(changed, TrainingPlan)
    assert changed.digest == make_plan(rounds=9).digest != before
