"""A small hospital table with every kind of column, and what a site needs to de-identify it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from client.data.readers import RawTable
from client.deid.escrow import Escrow
from client.deid.rules import TableSchema
from common.crypto.seal import StorageKey, open_sealed, seal_bytes

KEY = bytes(range(32))

RULES: dict[str, Any] = {
    "mrn": {"action": "pseudonymise", "kind": "id", "role": "patient"},
    "name": {"action": "drop"},
    "birth_date": {"action": "generalise", "kind": "year"},
    "zip": {"action": "generalise", "kind": "zip3"},
    "age": {"action": "generalise", "kind": "age", "role": "feature"},
    "stage": {"action": "keep", "type": "category", "values": ["I", "II", "III"], "role": "feature"},
    "diagnosis": {"action": "keep", "type": "category", "values": ["benign", "malignant"], "role": "label"},
}
FAMILIES: dict[str, Any] = {
    "sizes": {"columns": ["radius", "texture"], "action": "keep", "type": "number", "role": "feature"},
}
RECORD = {
    "mrn": "MRN-4410072215",
    "name": "Octavia Q. Whitcombe",
    "birth_date": "1954-03-02",
    "zip": "02139-4307",
    "age": "71",
    "stage": "II",
    "diagnosis": "malignant",
    "radius": "17.99",
    "texture": "10.38",
    "insurance_id": "HIC-983-22-9917",
}

Rows = Callable[..., RawTable]


@pytest.fixture
def key() -> bytes:
    return KEY


@pytest.fixture
def schema() -> TableSchema:
    return TableSchema.model_validate(
        {"mode": "safe_harbor", "as_of_year": 2026, "columns": RULES, "families": FAMILIES}
    )


@pytest.fixture
def expert_schema() -> TableSchema:
    columns = {**RULES, "birth_date": {"action": "pseudonymise", "kind": "date"}}
    return TableSchema.model_validate({"mode": "expert", "columns": columns, "families": FAMILIES})


@pytest.fixture
def storage_key() -> StorageKey:
    return StorageKey.generate()


@pytest.fixture
def escrow(tmp_path: Path, storage_key: StorageKey) -> Escrow:
    return Escrow(
        tmp_path / "escrow.sealed",
        seal=partial(seal_bytes, key=storage_key, purpose="escrow"),
        unseal=partial(open_sealed, key=storage_key, purpose="escrow"),
    )


@pytest.fixture
def rows() -> Rows:
    """Make a raw table: each argument changes some cells of the one record; a column set to None is left out."""

    def make(*changes: dict[str, str | None]) -> RawTable:
        records = [{**RECORD, **change} for change in changes or ({},)]
        kept = [name for name in records[0] if records[0][name] is not None]
        return RawTable(frame=pl.DataFrame([{name: record[name] for name in kept} for record in records]))

    return make
