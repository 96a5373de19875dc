"""How dates, ZIP codes and ages lose the detail that singles people out.

Source: 45 CFR 164.514(b)(2)(i)(B) and (C), and the HHS guidance on de-identification of 26 November 2012.
Each function is a projection: what it returned comes back unchanged. None means that the value cannot be
read as what it was declared to be.
"""

import math
import re
from typing import Final

OLDEST: Final = "90+"
OLDEST_AGE: Final = 90
UNKNOWN_AREA: Final = "000"

RESTRICTED_ZIP3: Final = frozenset(
    {"036", "059", "063", "102", "203", "556", "692", "790", "821", "823", "830", "831", "878", "879", "884"}
    | {"890", "893"}
)
"""The 17 three-digit areas of at most 20,000 people in the 2000 Census, as the HHS guidance lists them."""

_YEAR_FORMS = (
    re.compile(r"(\d{4})(?:-(\d{2})-(\d{2})(?:[T ][\d:.]+(?:Z|[+-]\d{2}:?\d{2})?)?)?"),
    re.compile(r"(\d{4})(\d{2})(\d{2})"),
    re.compile(r"(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})"),
)
_ZIP_FORM = re.compile(r"(\d{3})(?:\d{2}(?:-?\d{4})?)?")
_EARLIEST_YEAR = 1850


def year_of(text: str, as_of_year: int) -> str | None:
    """The year of a date (ISO, compact ISO, or US month first), or "90+" where it tells an age over 89.

    Whoever is born in a year may be as old as the difference to `as_of_year`, so years from 90 back are pooled.
    """
    if text == OLDEST:
        return OLDEST
    for form in _YEAR_FORMS:
        match = form.fullmatch(text)
        if match is not None:
            year = int(match["year"] if "year" in form.groupindex else match[1])
            if not _EARLIEST_YEAR <= year <= as_of_year:
                return None
            return OLDEST if as_of_year - year >= OLDEST_AGE else str(year)
    return None


def zip3_of(text: str) -> str | None:
    """The first three digits of a ZIP or ZIP+4 code, or "000" where too few people share them."""
    match = _ZIP_FORM.fullmatch(text)
    if match is None:
        return None
    return UNKNOWN_AREA if match[1] in RESTRICTED_ZIP3 else match[1]


def age_of(text: str) -> str | None:
    """Whole years of age, rounded down; "90+" above 89."""
    if text == OLDEST:
        return OLDEST
    try:
        age = float(text)
    except ValueError:
        return None
    if not math.isfinite(age) or not 0 <= age <= 150:
        return None
    return OLDEST if age >= OLDEST_AGE else str(math.floor(age))
