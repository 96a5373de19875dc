"""Which values look like an identifier that a rule should not have let through.

Detectors only raise alarms: a value that none of them knows is no safer for it. What may pass is for the
schema to say.
"""

import re

import polars as pl

LONG_NUMBER = 1e7
"""A whole number of at least eight digits: a record, telephone or insurance number rather than a measurement."""

_PATTERNS = {
    "email": re.compile(r"[\w.+-]+@[\w-]+\.\w"),
    "ssn": re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"),
    "phone": re.compile(r"(?<!\d)(?:\+?1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\d)"),
    "date": re.compile(r"(?<!\d)(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})(?!\d)"),
    "record_number": re.compile(r"\b[A-Za-z]{1,4}[-# ]?\d{5,}"),
    "long_number": re.compile(r"(?<![\d.])\d{8,}(?![\d.])"),
}
ALARM_KINDS = tuple(_PATTERNS)


def alarm_in(text: str) -> str | None:
    """The first kind of identifier that `text` seems to hold, or None."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(text)), None)


def alarms_in(values: pl.Series) -> dict[str, pl.Series]:
    """Which rows of a text column seem to hold an identifier: boolean masks by kind, kinds without one left out."""
    kinds: dict[str, list[str]] = {}
    for value in values.unique().to_list():
        kind = alarm_in(value)
        if kind is not None:
            kinds.setdefault(kind, []).append(value)
    return {kind: values.is_in(found) for kind, found in kinds.items()}


def long_numbers(numbers: pl.Series) -> pl.Series:
    """Which rows of a numeric column hold a whole number of eight digits or more; rows without a number do not."""
    return ((numbers.abs() >= LONG_NUMBER) & (numbers == numbers.floor())).fill_null(False)
