"""What a site declares about a table: which columns there are, what each holds, and what becomes of it.

    version = 1
    [deid]
    mode = "safe_harbor"
    as_of_year = 2026
    [deid.columns.mrn]
    action = "pseudonymise"
    kind = "id"
    role = "patient"
    [deid.columns.diagnosis]
    action = "keep"
    type = "category"
    values = ["benign", "malignant"]
    role = "label"
    [deid.families.measurements]
    columns = ["mean radius", "mean texture"]
    action = "keep"
    type = "number"
    role = "feature"

A column that is declared nowhere is dropped. Only numbers and closed lists of categories can be kept, so no
schema lets free text through. Families are lists, not patterns: a pattern would admit columns nobody looked at.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from common.canonical import digest_json
from common.settings import Settings, read_settings

Mode = Literal["safe_harbor", "expert"]
Action = Literal["keep", "drop", "pseudonymise", "generalise"]
Kind = Literal["id", "date", "year", "zip3", "age"]
ValueType = Literal["number", "category"]
Role = Literal["patient", "label", "feature", "image"]

_KINDS: dict[str, tuple[Kind, ...]] = {"pseudonymise": ("id", "date"), "generalise": ("year", "zip3", "age")}


class ColumnRule(Settings):
    """What becomes of one column.

    Attributes:
        action: Keep it as checked values, drop it, replace its identifiers, or make it coarser.
        kind: For `pseudonymise`: "id" (codes) or "date" (shifted, expert mode only). For `generalise`: "year",
            "zip3" or "age".
        type: For `keep`: finite numbers, or categories of a closed list.
        values: The categories that may pass.
        role: "patient" names whose record it is, "label" is what the model learns, "feature" what it learns from,
            "image" a dropped column that names the picture features are computed from.
    """

    action: Action
    kind: Kind | None = None
    type: ValueType | None = None
    values: tuple[str, ...] = ()
    role: Role | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        kinds = _KINDS.get(self.action, ())
        if kinds and self.kind not in kinds:
            raise ValueError(f"action {self.action!r} needs key 'kind', one of {', '.join(kinds)}")
        if not kinds and self.kind is not None:
            raise ValueError(f"key 'kind' does not go with action {self.action!r}")
        if self.action == "keep" and self.type is None:
            raise ValueError("action 'keep' needs key 'type', one of number, category")
        if self.action != "keep" and self.type is not None:
            raise ValueError(f"key 'type' does not go with action {self.action!r}")
        if (self.type == "category") != bool(self.values):
            raise ValueError("key 'values' lists what may pass: needed for type 'category', and only there")
        if any(not value or value != value.strip() for value in self.values):
            raise ValueError("key 'values' has an empty entry or one with outer blanks")
        if len(set(self.values)) != len(self.values):
            raise ValueError("key 'values' has an entry twice")
        self._check_role()
        return self

    def _check_role(self) -> None:
        if self.role == "patient" and self.kind != "id":
            raise ValueError("role 'patient' needs action 'pseudonymise' with kind 'id'")
        if self.role == "label" and self.type != "category":
            raise ValueError("role 'label' needs action 'keep' with type 'category'")
        if self.role == "image" and self.action != "drop":
            raise ValueError("role 'image' needs action 'drop': a file's name stays with the raw table")
        if self.role == "feature" and self.action != "keep" and self.kind != "age":
            raise ValueError("role 'feature' needs action 'keep', or 'generalise' with kind 'age'")


class ColumnFamily(ColumnRule):
    """One rule for many columns, each named in full."""

    columns: tuple[str, ...] = Field(min_length=1)


class TableSchema(Settings):
    """The declared schema of one table.

    Attributes:
        mode: "safe_harbor" (random codes, years only; 45 CFR 164.514(b)(2)) or "expert" (keyed pseudonyms,
            shifted dates; 164.514(b)(1), where an expert answers for the rest).
        as_of_year: The year that ages are counted from; years of 90 and more before it are pooled. Needed
            when a column is generalised to "year", and a table's year after it is refused.
        columns: Rules by column name.
        families: Rules for lists of columns, by a name of the family's own.
    """

    mode: Mode
    as_of_year: int | None = Field(default=None, ge=1900, le=2200)
    columns: dict[str, ColumnRule] = Field(default_factory=dict)
    families: dict[str, ColumnFamily] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        named = [*self.columns, *(name for family in self.families.values() for name in family.columns)]
        doubled = sorted({name for name in named if named.count(name) > 1})
        if doubled:
            raise ValueError(f"column {doubled[0]!r} is declared twice")
        if any(not name or name != name.strip() for name in named):
            raise ValueError("a column name is empty or has outer blanks")
        for role in ("patient", "label"):
            found = self.named(role)
            if len(found) != 1:
                raise ValueError(f"exactly one column has role {role!r}, not {len(found)}")
        if not self.named("feature") + self.named("image"):
            raise ValueError("at least one column has role 'feature' or 'image', not 0")
        kinds = {rule.kind for rule in self.rules.values()}
        if self.mode == "safe_harbor" and "date" in kinds:
            raise ValueError("kind 'date' needs mode 'expert': safe_harbor lets only years pass, kind 'year'")
        if "year" in kinds and self.as_of_year is None:
            raise ValueError("kind 'year' needs key 'as_of_year' beside 'mode', to pool ages over 89")
        return self

    @property
    def rules(self) -> dict[str, ColumnRule]:
        """Every declared column's rule, in declared order: single columns first, then the families."""
        families = {name: family for family in self.families.values() for name in family.columns}
        return {**self.columns, **families}

    def named(self, role: str) -> tuple[str, ...]:
        """The columns of one role, in declared order."""
        return tuple(name for name, rule in self.rules.items() if rule.role == role)

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of all that is declared; families are digested as the columns they stand for."""
        keys = ("action", "kind", "type", "values", "role")
        rules = [[name, rule.model_dump(mode="json", include=set(keys))] for name, rule in self.rules.items()]
        return digest_json("deid-schema", {"mode": self.mode, "as_of_year": self.as_of_year, "columns": rules})


class SchemaFile(Settings):
    """A file that holds one schema."""

    version: Literal[1]
    deid: TableSchema


def read_schema(path: Path) -> TableSchema:
    """Read a schema from its TOML file; raises ConfigurationError naming the file and the key."""
    return read_settings(path, SchemaFile).deid
