"""What a declared schema may say."""

from pathlib import Path
from typing import Any

import pytest

from client.deid.rules import TableSchema, read_schema
from common.errors import ConfigurationError
from common.settings import parse_settings

PATIENT = {"action": "pseudonymise", "kind": "id", "role": "patient"}
LABEL = {"action": "keep", "type": "category", "values": ["no", "yes"], "role": "label"}
FEATURE = {"action": "keep", "type": "number", "role": "feature"}
COLUMNS: dict[str, Any] = {"mrn": PATIENT, "sick": LABEL, "weight": FEATURE}


def declared(mode: str = "safe_harbor", **columns: Any) -> TableSchema:
    found = {name: rule for name, rule in {**COLUMNS, **columns}.items() if rule is not None}
    return parse_settings({"mode": mode, "columns": found}, TableSchema, source="deid.toml")


def test_a_schema_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "deid.toml"
    path.write_text(
        """
        version = 1
        [deid]
        mode = "safe_harbor"
        as_of_year = 2026
        columns.mrn = {action = "pseudonymise", kind = "id", role = "patient"}
        columns.born = {action = "generalise", kind = "year"}
        columns.sick = {action = "keep", type = "category", values = ["no", "yes"], role = "label"}
        [deid.families.sizes]
        columns = ["mean radius", "mean texture"]
        action = "keep"
        type = "number"
        role = "feature"
        """
    )
    schema = read_schema(path)
    assert schema.named("feature") == ("mean radius", "mean texture")
    assert list(schema.rules) == ["mrn", "born", "sick", "mean radius", "mean texture"]


def test_an_unknown_key_is_refused_with_file_key_and_nearest_match(tmp_path: Path) -> None:
    path = tmp_path / "deid.toml"
    path.write_text('version = 1\n[deid]\nmode = "expert"\n[deid.columns.mrn]\naction = "drop"\nrolle = "patient"\n')
    with pytest.raises(ConfigurationError, match=r"deid\.toml.*deid\.columns\.mrn\.rolle.*did you mean 'role'"):
        read_schema(path)


def test_a_schema_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deid.toml"
    path.write_text('version = 2\n[deid]\nmode = "expert"\n')
    with pytest.raises(ConfigurationError, match="version"):
        read_schema(path)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"action": "keep"}, "columns.extra: action 'keep' needs key 'type'"),
        ({"action": "keep", "type": "category"}, "columns.extra: key 'values' lists what may pass"),
        ({"action": "keep", "type": "number", "values": ["1"]}, "columns.extra: key 'values' lists what may pass"),
        (
            {"action": "keep", "type": "category", "values": ["a", "a"]},
            "columns.extra: key 'values' has an entry twice",
        ),
        ({"action": "keep", "type": "category", "values": [" a"]}, "columns.extra: key 'values' has an empty entry"),
        ({"action": "keep", "type": "text"}, "columns.extra.type"),
        ({"action": "pseudonymise"}, "columns.extra: action 'pseudonymise' needs key 'kind', one of id, date"),
        ({"action": "generalise"}, "columns.extra: action 'generalise' needs key 'kind', one of year, zip3, age"),
        ({"action": "generalise", "kind": "id"}, "columns.extra: action 'generalise' needs key 'kind'"),
        ({"action": "drop", "kind": "id"}, "columns.extra: key 'kind' does not go with action 'drop'"),
        ({"action": "drop", "type": "number"}, "columns.extra: key 'type' does not go with action 'drop'"),
        ({"action": "hide"}, "columns.extra.action"),
        ({"action": "keep", "type": "number", "role": "patient"}, "columns.extra: role 'patient' needs action"),
        ({"action": "keep", "type": "number", "role": "label"}, "columns.extra: role 'label' needs action 'keep'"),
        ({"action": "drop", "role": "feature"}, "columns.extra: role 'feature' needs action 'keep'"),
        ({"action": "generalise", "kind": "year"}, "kind 'year' needs key 'as_of_year'"),
        ({"action": "pseudonymise", "kind": "date"}, "kind 'date' needs mode 'expert'"),
    ],
)
def test_a_misdeclared_column_is_refused_with_its_key(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        declared(extra=rule)
    assert "deid.toml: " in refused.value.fact
    assert message in refused.value.fact


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mrn": None}, "exactly one column has role 'patient', not 0"),
        ({"second": PATIENT}, "exactly one column has role 'patient', not 2"),
        ({"sick": None}, "exactly one column has role 'label', not 0"),
        ({"second": LABEL}, "exactly one column has role 'label', not 2"),
        ({"weight": None}, "at least one column has role 'feature' or 'image', not 0"),
        ({" mrn": {"action": "drop"}}, "a column name is empty or has outer blanks"),
    ],
)
def test_a_schema_without_its_roles_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        declared(**changed)
    assert message in refused.value.fact


def test_a_column_is_declared_once() -> None:
    document = {"mode": "expert", "columns": COLUMNS, "families": {"more": {"columns": ["weight"], **FEATURE}}}
    with pytest.raises(ConfigurationError, match="column 'weight' is declared twice"):
        parse_settings(document, TableSchema, source="deid.toml")


def test_an_expert_may_shift_dates() -> None:
    assert declared("expert", seen={"action": "pseudonymise", "kind": "date"}).rules["seen"].kind == "date"


def test_the_digest_follows_what_is_declared() -> None:
    assert declared().digest == declared().digest
    assert declared().digest != declared(height=FEATURE).digest


def test_a_family_is_digested_as_its_columns() -> None:
    family = {"mode": "safe_harbor", "columns": {"mrn": PATIENT, "sick": LABEL}}
    family["families"] = {"any": {"columns": ["weight"], **FEATURE}}
    assert TableSchema.model_validate(family).digest == declared().digest
