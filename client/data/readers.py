"""How a table on the site's disk becomes a `RawTable`.

Every cell is read as text: whether a column holds numbers is for the declared schema to say, and a leading
zero of a ZIP code or a record number survives. Messages name the file, a number and a limit, never a cell
or a header: both may name a patient.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import polars as pl

from common.errors import DataRefused

MAXIMUM_TABLE_BYTES = 1 << 30
MAXIMUM_RECORDS = 5_000_000
MAXIMUM_COLUMNS = 10_000
_MAXIMUM_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class RawTable:
    """Records as they were read, identities included. It has no wire form and cannot be pickled.

    Attributes:
        frame: One row a record; every column is text, a missing cell is the empty string.
    """

    frame: pl.DataFrame

    def __post_init__(self) -> None:
        if any(kind != pl.String for kind in self.frame.dtypes):
            raise ValueError("every column of a raw table is text")
        if any(column.null_count() for column in self.frame):
            raise ValueError("a missing cell of a raw table is the empty string, not null")

    def __repr__(self) -> str:
        return f"RawTable(records={self.records}, columns={self.frame.width})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RawTable stays in the process that read it")

    @property
    def records(self) -> int:
        """How many rows the table has."""
        return self.frame.height

    def column(self, name: str) -> pl.Series:
        """One column's text without outer blanks; raises DataRefused if the table has no such column."""
        if name not in self.frame.columns:
            raise DataRefused(f"the table has no column {name!r}", hint="the schema declares one: correct either")
        return self.frame.get_column(name).str.strip_chars()


def read_table(
    path: Path,
    *,
    maximum_bytes: int = MAXIMUM_TABLE_BYTES,
    maximum_records: int = MAXIMUM_RECORDS,
    maximum_columns: int = MAXIMUM_COLUMNS,
) -> RawTable:
    """Read one CSV file: UTF-8, comma separated, a header line, at least one record.

    Raises:
        DataRefused: If the file is missing, empty, no regular file, not CSV in UTF-8, past a limit, or has a
            header that is empty or occurs twice.
    """
    if not path.is_file():
        raise DataRefused(f"{path.name}: no such file", hint="give the path of a CSV file")
    size_bytes = path.stat().st_size
    if size_bytes > maximum_bytes:
        raise DataRefused(f"{path.name}: {size_bytes} bytes, the limit is {maximum_bytes}", hint="split the table")
    with path.open("rb") as stream:
        _check_header(stream.read(_MAXIMUM_HEADER_BYTES), path.name, maximum_columns)
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except pl.exceptions.PolarsError:
        # The parser quotes the cells it failed on; neither its text nor its trace may travel further.
        raise DataRefused(
            f"{path.name}: not a CSV table in UTF-8",
            hint="every line has as many cells as the header, and quotes are closed",
        ) from None
    if frame.height == 0:
        raise DataRefused(f"{path.name}: 0 records, at least 1 is needed")
    if frame.height > maximum_records:
        raise DataRefused(f"{path.name}: {frame.height} records, the limit is {maximum_records}", hint="split it")
    return RawTable(frame=frame.with_columns(pl.all().fill_null("")))


def _check_header(start: bytes, name: str, maximum_columns: int) -> None:
    """Refuse what the parser would mend silently: doubled, empty and uncountable headers."""
    try:
        # The cut may fall inside a character; a header that reaches it is refused below.
        text = start.decode("utf-8-sig", errors="strict" if len(start) < _MAXIMUM_HEADER_BYTES else "ignore")
        header = next(csv.reader(io.StringIO(text, newline="")), [])
    except (UnicodeDecodeError, csv.Error):
        raise DataRefused(f"{name}: the header is not CSV in UTF-8") from None
    if not any(cell.strip() for cell in header):
        raise DataRefused(f"{name}: empty, or without a header line")
    if len(header) > maximum_columns:
        raise DataRefused(f"{name}: {len(header)} columns, the limit is {maximum_columns}")
    empty = sum(not cell.strip() for cell in header)
    if empty:
        raise DataRefused(f"{name}: {empty} of {len(header)} columns have no header")
    doubled = len(header) - len({cell.strip() for cell in header})
    if doubled:
        raise DataRefused(f"{name}: {doubled} of {len(header)} headers occur more than once")
