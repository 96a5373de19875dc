"""What de-identification releases: a table whose patients are codes."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.deid.generalise import OLDEST, OLDEST_AGE
from client.deid.rules import TableSchema
from common.canonical import digest_bytes

_SLICE_RECORDS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class CleanTable:
    """De-identified records, sorted by patient. It has no wire form and cannot be pickled.

    Attributes:
        frame: Patient code, label, then the other declared columns in declared order; no missing cell among
            patient, label and features.
        schema: What the columns were declared to be.
        source_rows: Shape (records,), the row of the raw table each record came from; for what lies beside the table,
            such as an image. It tells the input's order, so it is never written.
    """

    frame: pl.DataFrame
    schema: TableSchema
    source_rows: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"CleanTable(records={self.records}, columns={self.frame.width})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a CleanTable stays at its site")

    @property
    def records(self) -> int:
        """How many records were released."""
        return self.frame.height

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One name a column of `feature_matrix`; a category has one per declared value."""
        rules = self.schema.rules
        names: list[str] = []
        for name in self.schema.named("feature"):
            values = rules[name].values
            names += [f"{name}={value}" for value in values] if values else [name]
        return tuple(names)

    def patient_codes(self) -> list[str]:
        """Whose record each row is."""
        return list(self.frame.get_column(self.schema.named("patient")[0]).to_list())

    def labels(self) -> list[str]:
        """The label of each row, one of the declared values."""
        return list(self.frame.get_column(self.schema.named("label")[0]).to_list())

    def feature_matrix(self) -> NDArray[np.float64]:
        """Shape (records, len(feature_names)): numbers as they are, ages with 90 for "90+", categories one-hot."""
        rules = self.schema.rules
        blocks: list[NDArray[np.float64]] = []
        for name in self.schema.named("feature"):
            column = self.frame.get_column(name)
            values = rules[name].values
            if values:
                blocks += [(column == value).cast(pl.Float64).to_numpy() for value in values]
            elif rules[name].kind == "age":
                blocks.append(column.replace(OLDEST, str(OLDEST_AGE)).cast(pl.Float64).to_numpy())
            else:
                blocks.append(column.to_numpy())
        return np.stack(blocks, axis=1)

    def to_csv(self) -> bytes:
        """The table as CSV in UTF-8: the same table gives the same bytes, and reading them back loses nothing."""
        return b"".join(self._csv_slices())

    @property
    def digest(self) -> str:
        """`sha256:<hex>`, under the domain "deid-output", of the SHA-256 of `to_csv()`."""
        content = hashlib.sha256()
        for piece in self._csv_slices():
            content.update(piece)
        return digest_bytes("deid-output", content.digest())

    def _csv_slices(self) -> Iterator[bytes]:
        for start in range(0, max(1, self.records), _SLICE_RECORDS):
            stream = io.BytesIO()
            self.frame.slice(start, _SLICE_RECORDS).write_csv(stream, include_header=start == 0)
            yield stream.getvalue()
