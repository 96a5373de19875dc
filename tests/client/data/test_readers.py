"""What a table on disk must be before it is read, and what the refusal may say."""

import pickle
import traceback
from pathlib import Path

import polars as pl
import pytest

from client.data.readers import RawTable, read_table
from common.errors import DataRefused


def table(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "patients.csv"
    path.write_bytes(content)
    return path


def test_every_cell_is_read_as_text(tmp_path: Path) -> None:
    raw = read_table(table(tmp_path, b"mrn,zip,x\n007,02139,1.50\n"))
    assert raw.frame.rows() == [("007", "02139", "1.50")]


def test_missing_cells_are_empty(tmp_path: Path) -> None:
    raw = read_table(table(tmp_path, b'a,b\n1,\n,""\n3\n'))
    assert raw.frame.rows() == [("1", ""), ("", ""), ("3", "")]


def test_a_byte_order_mark_is_no_part_of_the_first_header(tmp_path: Path) -> None:
    assert read_table(table(tmp_path, b"\xef\xbb\xbfmrn,x\n1,2\n")).column("mrn").to_list() == ["1"]


def test_quoted_cells_may_hold_commas_and_lines(tmp_path: Path) -> None:
    raw = read_table(table(tmp_path, b'mrn,note\n1,"seen, then\nsent home"\n'))
    assert raw.column("note").to_list() == ["seen, then\nsent home"]


def test_columns_come_without_outer_blanks(tmp_path: Path) -> None:
    assert read_table(table(tmp_path, b"mrn,x\n 7 ,2\n")).column("mrn").to_list() == ["7"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty, or without a header"),
        (b"\n\n", "empty, or without a header"),
        (b"mrn,x\n", "0 records, at least 1 is needed"),
        (b"mrn,Ann Whitcombe,mrn\n1,2,3\n", "1 of 3 headers occur more than once"),
        (b"mrn,Ann Whitcombe, mrn\n1,2,3\n", "1 of 3 headers occur more than once"),
        (b"mrn,,x\n1,2,3\n", "1 of 3 columns have no header"),
        (b"mrn,x\n1,Ann Whitcombe,3\n", "not a CSV table"),
        (b'mrn,x\n1,"Ann Whitcombe\n', "not a CSV table"),
        (b"mrn,x\n\xff\xfe,Ann Whitcombe\n", "not CSV"),
        (b"mrn,x\n1,2\n3,4\n5,6\n7,8\n", "4 records, the limit is 3"),
        (b"a,b,c,d,e\n1,2,3,4,5\n", "5 columns, the limit is 4"),
        (b"mrn,x\n" + b"1,2\n" * 30, "126 bytes, the limit is 100"),
    ],
)
def test_what_is_no_table_is_refused_without_showing_a_cell(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataRefused, match=message) as refused:
        read_table(table(tmp_path, content), maximum_bytes=100, maximum_records=3, maximum_columns=4)
    assert "Whitcombe" not in "".join(traceback.format_exception(refused.value))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match=r"patients\.csv: no such file"):
        read_table(tmp_path / "patients.csv")


def test_a_missing_column_is_refused_by_its_declared_name_only(tmp_path: Path) -> None:
    raw = read_table(table(tmp_path, b"Ann Whitcombe,x\n1,2\n"))
    with pytest.raises(DataRefused, match="no column 'mrn'") as refused:
        raw.column("mrn")
    assert "Whitcombe" not in refused.value.fact + refused.value.hint


def test_its_text_form_shows_counts_only(tmp_path: Path) -> None:
    assert repr(read_table(table(tmp_path, b"mrn,x\nsecret,2\n"))) == "RawTable(records=1, columns=2)"


def test_a_raw_table_cannot_be_pickled(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="stays in the process"):
        pickle.dumps(read_table(table(tmp_path, b"mrn,x\n1,2\n")))


@pytest.mark.parametrize("frame", [pl.DataFrame({"x": [1.5]}), pl.DataFrame({"x": ["a", None]})])
def test_a_raw_table_is_text_without_gaps(frame: pl.DataFrame) -> None:
    with pytest.raises(ValueError, match="of a raw table is"):
        RawTable(frame=frame)
