import io
import json
from datetime import UTC, datetime

import pytest

from common.journal import FIELDS, Journal


def at_noon() -> datetime:
    return datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)


def logged(event: str, **fields: str | int | list[str]) -> str:
    stream = io.StringIO()
    Journal(stream, clock=at_noon).write(event, **fields)
    return stream.getvalue()


def test_an_event_is_one_json_line_with_time_and_name() -> None:
    assert json.loads(logged("round", site="north", round=3)) == {
        "time": "2026-03-01T12:00:00.250Z",
        "event": "round",
        "site": "north",
        "round": 3,
    }


@pytest.mark.parametrize("field", ["patient", "path", "epsilon", "loss", "records", "key"])
def test_a_field_that_is_not_listed_is_a_slip_and_writes_nothing(field: str) -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match=f"'{field}'"):
        Journal(stream).write("round", **{field: "1"})
    assert stream.getvalue() == ""


def test_no_listed_field_is_about_records() -> None:
    assert not FIELDS & {"patients", "records", "labels", "loss", "norm", "accuracy", "path", "count"}


def test_a_value_cannot_begin_a_second_line() -> None:
    line = logged("refused", error='x"}\n{"event": "forged\u2028"')
    assert line.count("\n") == 1
    assert json.loads(line)["error"].startswith('x"}')


def test_a_long_value_is_cut() -> None:
    assert len(json.loads(logged("refused", error="x" * 5000))["error"]) == 200


def test_every_event_is_flushed_when_it_is_written(tmp_path) -> None:
    with (tmp_path / "log.jsonl").open("w") as stream:
        Journal(stream).write("offer", site="north")
        assert (tmp_path / "log.jsonl").read_text().endswith("\n")
