"""How a table loses its identities: column by column as declared, then record by record.

A record is rejected if a cell is not what its column was declared to hold, else quarantined if a cell is
outside the declared list or an alarm is raised, else released. Codes are asked for released records only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from client.data.readers import RawTable
from client.deid.clean import CleanTable
from client.deid.detectors import alarms_in, long_numbers
from client.deid.escrow import Escrow
from client.deid.generalise import age_of, year_of, zip3_of
from client.deid.pseudonyms import Pseudonyms, shift_date
from client.deid.report import ColumnCount, DeidReport
from client.deid.rules import ColumnRule, TableSchema

UNDECLARED_VALUE = "undeclared_value"
_PATIENTS = "patient"

Codes = Callable[[str, pl.Series], dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """One column after its rule: what may leave, which rows cannot be read, which raise an alarm and why."""

    output: pl.Series
    unreadable: pl.Series
    alarms: dict[str, pl.Series] = field(default_factory=dict)


def deidentify(
    table: RawTable, schema: TableSchema, *, key: bytes, escrow: Escrow | None
) -> tuple[CleanTable, DeidReport]:
    """Apply a declared schema to a table.

    Guarantee: no column leaves that the schema does not keep, pseudonymise or generalise; the output depends on
    the set of records and not on their order; the same records, schema, key and escrow give the same bytes; the
    output, put through again, comes back unchanged; released + quarantined + rejected = records.

    Args:
        table: What was read.
        schema: What the site declares about it.
        key: The site's pseudonym key, at least 32 bytes; used in mode "expert".
        escrow: Where random codes are kept; needed in mode "safe_harbor".

    Raises:
        DataRefused: If a column that the schema uses is missing.
        ValueError: If mode "safe_harbor" comes without an escrow, or the key is too short.
    """
    codes = _codes_of(schema, key, escrow)
    rules = schema.rules
    patient, label = schema.named("patient")[0], schema.named("label")[0]
    order = [patient, label, *(name for name in rules if name not in (patient, label))]
    kept = [name for name in order if rules[name].action != "drop"]

    checked = {name: _check(table.column(name), rules[name], schema) for name in kept}
    rejected = _any_of([column.unreadable for column in checked.values()], table.records)
    alarmed = _any_of([mask for column in checked.values() for mask in column.alarms.values()], table.records)
    released = ~(rejected | alarmed)

    unreadable = {name: int(column.unreadable.sum()) for name, column in checked.items()}
    alarms = _alarm_counts(checked)
    # Column by column, so that a large table is not held twice.
    columns = {name: checked.pop(name).output.filter(released) for name in kept}
    frame = _pseudonymise(columns, rules, patient, codes, Pseudonyms(key, _PATIENTS))
    rows = _order(frame, patient)
    source_rows = released.arg_true().gather(rows).to_numpy().astype(np.int64)
    clean = CleanTable(frame=frame[rows], schema=schema, source_rows=source_rows)
    return clean, DeidReport(
        mode=schema.mode,
        records_in=table.records,
        released=clean.records,
        quarantined=int((alarmed & ~rejected).sum()),
        rejected=int(rejected.sum()),
        columns=tuple(
            ColumnCount(
                name=name,
                action=rule.action,
                count=_filled(table, name, released),
                unreadable=unreadable.get(name, 0),
            )
            for name, rule in rules.items()
        ),
        undeclared_columns=sum(name not in rules for name in table.frame.columns),
        alarms=alarms,
        schema_digest=schema.digest,
        output_digest=clean.digest,
    )


def _codes_of(schema: TableSchema, key: bytes, escrow: Escrow | None) -> Codes:
    if schema.mode == "expert":
        return lambda namespace, values: Pseudonyms(key, namespace).codes(values.unique().to_list())
    if escrow is None:
        raise ValueError("mode 'safe_harbor' needs an escrow for its random codes")
    return lambda namespace, values: escrow.codes(namespace, values.unique().to_list())


def _check(text: pl.Series, rule: ColumnRule, schema: TableSchema) -> _Checked:
    if rule.type == "number":
        return _check_number(text)
    if rule.type == "category":
        undeclared = ~text.is_in(list(rule.values))
        return _Checked(output=text, unreadable=_none(text), alarms={UNDECLARED_VALUE: undeclared, **alarms_in(text)})
    if rule.kind == "id":
        return _Checked(output=text, unreadable=(text == "") if rule.role == "patient" else _none(text))
    if rule.kind == "date":
        # Moved by the patient's own days once the codes are known; here only read.
        return _map_unique(text, lambda value: value if shift_date(value, 0) is not None else None)
    coarser: dict[str, Callable[[str], str | None]] = {
        "year": lambda value: year_of(value, schema.as_of_year or 0),
        "zip3": zip3_of,
        "age": age_of,
    }
    result = _map_unique(text, coarser[str(rule.kind)])
    unreadable = result.unreadable | (text == "") if rule.role == "feature" else result.unreadable
    return _Checked(output=result.output, unreadable=unreadable, alarms=alarms_in(result.output))


def _check_number(text: pl.Series) -> _Checked:
    # Adding zero makes -0.0 and 0.0 one value with one spelling.
    numbers = text.cast(pl.Float64, strict=False) + 0.0
    return _Checked(
        output=numbers,
        unreadable=~numbers.is_finite().fill_null(False),
        alarms={"long_number": long_numbers(numbers)},
    )


def _map_unique(text: pl.Series, change: Callable[[str], str | None]) -> _Checked:
    """Apply a rule once a distinct value; empty stays empty, None is unreadable."""
    changed = {value: change(value) for value in text.unique().to_list() if value}
    unreadable = text.is_in([value for value, result in changed.items() if result is None])
    return _Checked(output=_replace(text, {"": "", **changed}), unreadable=unreadable)


def _replace(text: pl.Series, mapping: dict[str, str | None]) -> pl.Series:
    return text.replace_strict(list(mapping), list(mapping.values()), return_dtype=pl.String).fill_null("")


def _pseudonymise(
    columns: dict[str, pl.Series], rules: dict[str, ColumnRule], patient: str, codes: Codes, pseudonyms: Pseudonyms
) -> pl.DataFrame:
    """Replace the identifiers of released records; dates move by days that follow from the patient's code."""
    for name, rule in rules.items():
        if rule.kind == "id":
            filled = columns[name].filter(columns[name] != "")
            namespace = _PATIENTS if name == patient else f"column/{name}"
            columns[name] = _replace(columns[name], {"": "", **codes(namespace, filled)})
    dates = [name for name, rule in rules.items() if rule.kind == "date"]
    if dates:
        days = {code: pseudonyms.shift_days(code) for code in columns[patient].unique().to_list()}
        for name in dates:
            moved = [
                shift_date(value, days[code]) or ""
                for value, code in zip(columns[name].to_list(), columns[patient].to_list(), strict=True)
            ]
            columns[name] = pl.Series(name, moved, dtype=pl.String)
    return pl.DataFrame([columns.pop(name).alias(name) for name in list(columns)])


def _order(frame: pl.DataFrame, patient: str) -> pl.Series:
    """Rows in an order that follows from the codes, and among one patient's records from their content."""
    columns = frame.columns if frame.get_column(patient).is_duplicated().any() else [patient]
    return frame.select(pl.arg_sort_by(columns, maintain_order=True)).to_series()


def _any_of(masks: list[pl.Series], records: int) -> pl.Series:
    found = pl.repeat(False, records, dtype=pl.Boolean, eager=True)
    for mask in masks:
        found = found | mask
    return found


def _none(text: pl.Series) -> pl.Series:
    return pl.repeat(False, text.len(), dtype=pl.Boolean, eager=True)


def _filled(table: RawTable, name: str, released: pl.Series) -> int:
    """Filled cells of released records; a dropped column that is already gone has none."""
    if name not in table.frame.columns:
        return 0
    return int((released & (table.column(name) != "")).sum())


def _alarm_counts(checked: dict[str, _Checked]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for column in checked.values():
        for kind, mask in column.alarms.items():
            if mask.any():
                counts[kind] = counts.get(kind, 0) + int(mask.sum())
    return counts
