"""What de-identification says about itself: counts and digests, never a value.

Columns that the schema does not declare are counted and not named, since a header may name a person too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.deid.rules import Action, Mode
from common.errors import DataRefused

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnCount:
    """What was done to one declared column.

    Attributes:
        name: As declared.
        action: As declared.
        count: Filled cells of released records that the action kept, removed, replaced or made coarser.
        unreadable: Cells, in all records, that are not what the column was declared to hold.
    """

    name: str
    action: Action
    count: int
    unreadable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeidReport:
    """The outcome of one table.

    Attributes:
        mode: The schema's mode.
        records_in: Records read. Each is exactly one of the next three.
        released: Records of the clean table.
        quarantined: Records held back because a value is not one of the declared or an alarm was raised.
        rejected: Records that cannot be read as declared: no patient, no finite number, no date.
        columns: One count a declared column, in declared order.
        undeclared_columns: How many columns were dropped because nothing declares them.
        alarms: Cells by the reason they quarantine their record; "undeclared_value" is a category that no rule lists.
        schema_digest: Of the declared schema.
        output_digest: Of the clean table's CSV form.
    """

    mode: Mode
    records_in: int
    released: int
    quarantined: int
    rejected: int
    columns: tuple[ColumnCount, ...]
    undeclared_columns: int
    alarms: Mapping[str, int]
    schema_digest: str
    output_digest: str

    def __post_init__(self) -> None:
        ended = (self.released, self.quarantined, self.rejected)
        if min(ended) < 0 or sum(ended) != self.records_in:
            raise ValueError(f"{self.records_in} records came in, but {' + '.join(map(str, ended))} ended")

    def to_json(self) -> dict[str, Any]:
        """The content of `deid.json`, version 1."""
        return {
            "version": VERSION,
            "mode": self.mode,
            "in": self.records_in,
            "released": self.released,
            "quarantined": self.quarantined,
            "rejected": self.rejected,
            "columns": [
                {"name": column.name, "action": column.action, "count": column.count} for column in self.columns
            ],
            "undeclared_columns": self.undeclared_columns,
            "alarms": dict(sorted(self.alarms.items())),
            "schema_digest": self.schema_digest,
            "output_digest": self.output_digest,
        }


def require_registrable(report: DeidReport) -> None:
    """Return only if a table may become a data set: every declared cell reads, and a record was released.

    Raises:
        DataRefused: Naming the first unreadable column and how many of its cells, or that nothing was released.
    """
    for column in report.columns:
        if column.unreadable:
            raise DataRefused(
                f"column {column.name!r}: {column.unreadable} of {report.records_in} records"
                " have no value of the declared kind",
                hint="missing values and NaN are not guessed at: correct or leave out these records",
            )
    if report.released == 0:
        raise DataRefused(
            f"0 of {report.records_in} records were released: {report.quarantined} quarantined",
            hint="compare the schema with the table",
        )
