"""Who the patients of a simulated hospital are: invented people, so that de-identification has real work.

Names are combined from two short lists; e-mail domains, telephone numbers and insurance numbers come from
ranges that are reserved or never issued. Identities follow from the site's name and the seed alone.
"""

import hashlib
import random
import unicodedata
from collections.abc import Mapping
from datetime import date, timedelta
from types import MappingProxyType
from typing import Any, Final

import polars as pl

AS_OF: Final = date(2026, 1, 1)
YOUNGEST, OLDEST = 24, 95

IDENTITY_COLUMNS: Final = (
    "name",
    "mrn",
    "birth_date",
    "address",
    "zip",
    "phone",
    "email",
    "note",
    "insurance_id",
)
"""The added columns. `insurance_id` is there to be forgotten: `IDENTITY_RULES` does not declare it."""

IDENTITY_RULES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "mrn": {"action": "pseudonymise", "kind": "id", "role": "patient"},
        "name": {"action": "drop"},
        "birth_date": {"action": "generalise", "kind": "year"},
        "address": {"action": "drop"},
        "zip": {"action": "generalise", "kind": "zip3"},
        "phone": {"action": "drop"},
        "email": {"action": "drop"},
        "note": {"action": "drop"},
    }
)
"""A safe-harbor rule for each column that a careful site would think of."""

IDENTIFIER_KINDS: Final = (
    "full name",
    "first and last name",
    "last and first name",
    "mrn",
    "mrn digits",
    "birth date, ISO",
    "birth date, US",
    "address",
    "zip+4",
    "phone",
    "phone, dashes",
    "phone digits",
    "email",
    "insurance id",
    "note",
)
"""What each string of `identifiers_of` is."""

_FIRST = (
    *("Adaeze", "Alasdair", "Amparo", "Anneliese", "Bartholomew", "Birgitta", "Caoimhe", "Casimir", "Dagmar"),
    *("Demetrius", "Eleonora", "Esperanza", "Fenella", "Florian", "Ghislaine", "Gwendolyn", "Hideaki", "Ignatius"),
    *("Ingeborg", "Jacinta", "Kasimira", "Leocadia", "Marguerite", "Mirembe", "Nikolaus", "Octavia", "Percival"),
    *("Philippa", "Quentin", "Rosalind", "Saoirse", "Søren", "Thaddeus", "Tomás", "Ursula", "Valentin", "Wilhelmina"),
)
_LAST = (
    *("Abernathy", "Bäckström", "Castellanos", "Delacroix", "Eisenhauer", "Fitzwilliam", "Grünewald", "Hakimoglu"),
    *("Iwashita", "Jankowska", "Kowalczyk", "Lindqvist", "MacAllister", "Nakamura", "O'Callaghan", "Okonkwo"),
    *("Pemberton", "Quiñones", "Rasmussen", "Sundaresan", "Thibodeaux", "Uzodinma", "Vandermeer", "Whitcombe"),
    *("Xanthopoulos", "Yamaguchi", "Zuckerwise", "Østergaard"),
)
_INITIALS = "ABCDEFGHIJKLMNOPRSTVW"
_STREETS = (
    *("Alder Hollow Road", "Bramblewood Lane", "Copper Kettle Court", "Dovecote Terrace", "Elderflower Avenue"),
    *("Foxglove Crescent", "Gristmill Street", "Hawthorn Ridge Drive", "Ironbridge Parkway", "Juniper Knoll Way"),
)
_ZIP5 = ("02139", "03601", "05901", "10271", "19104", "27710", "48109", "55905", "60637", "82301", "94143", "98195")
_MAIL_DOMAINS = ("mail.example.org", "post.example.net", "inbox.example.com")
_NOTES = (
    "{full} ({mrn}) was seen for follow-up. Reach the patient at {phone}.",
    "Spoke with {first} {last} by telephone, {dashed}. Date of birth confirmed as {us}.",
    "Biopsy discussed with {full}. Record {mrn}, born {iso}. The family was present.",
    "Mx {last} asks for results by e-mail to {email}.",
    "Referral letter for {full}, DOB {us}, sent. Call back on {phone}.",
)
_AREA_CODES = 8 * 9 * 10
_FICTIONAL_LINES = 100


def add_identities(features: pl.DataFrame, *, site: str, seed: int) -> pl.DataFrame:
    """Put an invented person before each row; one row is one patient.

    Guarantee: full names, record numbers, telephone numbers and insurance numbers are unique within a site;
    the same site, seed and number of rows give the same people.

    Args:
        features: Shape (patients, ...); no column may be named as one of `IDENTITY_COLUMNS`.
        site: The hospital's name.
        seed: Any integer.

    Raises:
        ValueError: If a column name is taken, or there are more rows than unique people can be made.
    """
    taken = set(features.columns) & set(IDENTITY_COLUMNS)
    if taken:
        raise ValueError(f"the features already have a column {min(taken)!r}")
    count = features.height
    drawn = random.Random(hashlib.sha256(f"fedward/identities/{site}/{seed}".encode()).digest())
    names = drawn.sample(range(len(_FIRST) * len(_INITIALS) * len(_LAST)), count)
    records = drawn.sample(range(10**9, 10**10), count)
    phones = drawn.sample(range(_AREA_CODES * _FICTIONAL_LINES), count)
    insured = drawn.sample(range(10**8), count)
    people = [
        _person(drawn, name=name, record=record, phone=phone, insured=number)
        for name, record, phone, number in zip(names, records, phones, insured, strict=True)
    ]
    identities = pl.DataFrame(people, schema=dict.fromkeys(IDENTITY_COLUMNS, pl.String), orient="row")
    return identities.hstack(features.get_columns())


def identifiers_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Every string that would tell whose record a row is, in the order of `IDENTIFIER_KINDS`.

    Args:
        row: One row of `add_identities`, by column name; further columns are ignored.
    """
    full, mrn, phone = str(row["name"]), str(row["mrn"]), str(row["phone"])
    first, last = full.split(" ")[0], full.split(" ")[-1]
    digits = "".join(filter(str.isdigit, phone))
    born = date.fromisoformat(str(row["birth_date"]))
    return (
        full,
        f"{first} {last}",
        f"{last}, {first}",
        mrn,
        mrn.removeprefix("MRN-"),
        born.isoformat(),
        born.strftime("%m/%d/%Y"),
        str(row["address"]),
        str(row["zip"]),
        phone,
        f"{digits[:3]}-{digits[3:6]}-{digits[6:]}",
        digits,
        str(row["email"]),
        str(row["insurance_id"]),
        str(row["note"]),
    )


def _person(drawn: random.Random, *, name: int, record: int, phone: int, insured: int) -> tuple[str, ...]:
    """One person in the order of `IDENTITY_COLUMNS`; the numbers are unique within the site."""
    name, initial = divmod(name, len(_INITIALS))
    first, last = _FIRST[name % len(_FIRST)], _LAST[name // len(_FIRST)]
    full = f"{first} {_INITIALS[initial]}. {last}"
    mrn = f"MRN-{record}"
    area, line = divmod(phone, _FICTIONAL_LINES)
    # Area codes are 2-9, 0-8, 0-9; lines 0100 to 0199 of exchange 555 are kept for fiction.
    code, line_number = f"{area // 90 + 2}{area // 10 % 9}{area % 10}", f"{100 + line:04}"
    shown, dashed = f"({code}) 555-{line_number}", f"{code}-555-{line_number}"
    born = AS_OF - timedelta(days=drawn.randrange(YOUNGEST * 366, OLDEST * 365))
    email = f"{_ascii(first)}.{_ascii(last)}{record % 1000:03}@{drawn.choice(_MAIL_DOMAINS)}"
    note = drawn.choice(_NOTES).format(
        full=full,
        first=first,
        last=last,
        mrn=mrn,
        phone=shown,
        dashed=dashed,
        us=born.strftime("%m/%d/%Y"),
        iso=born.isoformat(),
        email=email,
    )
    address = f"{drawn.randrange(101, 9999)} {drawn.choice(_STREETS)}"
    zip_code = f"{drawn.choice(_ZIP5)}-{drawn.randrange(1000, 9999)}"
    # Numbers that begin with 9 were never given out as social security numbers.
    insurance = f"HIC-9{insured // 10**6:02}-{insured // 10**4 % 100:02}-{insured % 10**4:04}"
    return full, mrn, born.isoformat(), address, zip_code, shown, email, note, insurance


def _ascii(name: str) -> str:
    """A name as it stands in an e-mail address."""
    plain = unicodedata.normalize("NFKD", name.lower().replace("ø", "o"))
    return "".join(character for character in plain if character.isascii() and character.isalpha())
