"""What the report may say."""

from dataclasses import replace

import pytest

from client.deid.report import ColumnCount, DeidReport, require_registrable
from common.errors import DataRefused

COLUMN = ColumnCount(name="radius", action="keep", count=3, unreadable=0)
REPORT = DeidReport(
    mode="expert",
    records_in=4,
    released=3,
    quarantined=1,
    rejected=0,
    columns=(COLUMN,),
    undeclared_columns=2,
    alarms={"phone": 1},
    schema_digest="sha256:00",
    output_digest="sha256:01",
)


def test_counts_that_do_not_add_up_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"5 records came in, but 3 \+ 1 \+ 0 ended"):
        replace(REPORT, records_in=5)


def test_the_json_form_has_exactly_its_keys() -> None:
    assert REPORT.to_json() == {
        "version": 1,
        "mode": "expert",
        "in": 4,
        "released": 3,
        "quarantined": 1,
        "rejected": 0,
        "columns": [{"name": "radius", "action": "keep", "count": 3}],
        "undeclared_columns": 2,
        "alarms": {"phone": 1},
        "schema_digest": "sha256:00",
        "output_digest": "sha256:01",
    }


def test_a_readable_table_may_be_registered() -> None:
    require_registrable(REPORT)


def test_unreadable_cells_are_refused_by_column_and_count() -> None:
    report = replace(REPORT, quarantined=0, rejected=1, columns=(replace(COLUMN, unreadable=1),))
    with pytest.raises(DataRefused, match="column 'radius': 1 of 4 records"):
        require_registrable(report)


def test_a_table_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(DataRefused, match="0 of 4 records were released: 4 quarantined"):
        require_registrable(replace(REPORT, released=0, quarantined=4))
