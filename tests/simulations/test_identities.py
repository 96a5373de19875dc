"""Invented patients."""

import re
from datetime import date

import polars as pl
import pytest

from client.deid.rules import ColumnRule
from simulations.identities import (
    IDENTIFIER_KINDS,
    IDENTITY_COLUMNS,
    IDENTITY_RULES,
    add_identities,
    identifiers_of,
)

FEATURES = pl.DataFrame({"radius": [float(number) for number in range(400)]})
PEOPLE = add_identities(FEATURES, site="north", seed=1)


def test_features_stay_as_they_are() -> None:
    assert PEOPLE.select("radius").equals(FEATURES)


def test_the_same_site_and_seed_give_the_same_people() -> None:
    assert add_identities(FEATURES, site="north", seed=1).equals(PEOPLE)


@pytest.mark.parametrize(("site", "seed"), [("south", 1), ("north", 2)])
def test_another_site_or_seed_gives_other_people(site: str, seed: int) -> None:
    assert not set(add_identities(FEATURES, site=site, seed=seed)["mrn"]) & set(PEOPLE["mrn"])


@pytest.mark.parametrize("column", ["name", "mrn", "phone", "email", "insurance_id"])
def test_nobody_shares(column: str) -> None:
    assert PEOPLE[column].n_unique() == PEOPLE.height


def test_ages_run_from_24_to_95() -> None:
    ages = [(date(2026, 1, 1) - date.fromisoformat(text)).days / 365.25 for text in PEOPLE["birth_date"]]
    assert min(ages) >= 24 and max(ages) <= 95
    assert max(ages) > 89


@pytest.mark.parametrize(
    ("column", "form"),
    [
        ("mrn", r"MRN-\d{10}"),
        ("zip", r"\d{5}-\d{4}"),
        ("phone", r"\([2-9][0-8]\d\) 555-01\d\d"),
        ("insurance_id", r"HIC-9\d\d-\d\d-\d{4}"),
        ("email", r"[a-z]+\.[a-z]+\d{3}@(mail\.example\.org|post\.example\.net|inbox\.example\.com)"),
    ],
)
def test_each_identity_has_its_form(column: str, form: str) -> None:
    assert all(re.fullmatch(form, text) for text in PEOPLE[column])


def test_every_note_repeats_an_identifier() -> None:
    for row in PEOPLE.iter_rows(named=True):
        assert any(text in row["note"] for text in identifiers_of(row)[:-1])


def test_identifiers_are_long_enough_to_be_told_from_chance() -> None:
    for row in PEOPLE.iter_rows(named=True):
        found = identifiers_of(row)
        assert len(found) == len(IDENTIFIER_KINDS)
        assert min(len(text) for text in found) >= 8


def test_the_rules_cover_every_column_but_the_forgotten_one() -> None:
    assert set(IDENTITY_COLUMNS) - set(IDENTITY_RULES) == {"insurance_id"}
    for rule in IDENTITY_RULES.values():
        ColumnRule.model_validate(dict(rule))


def test_a_taken_column_name_is_refused() -> None:
    with pytest.raises(ValueError, match="already have a column 'zip'"):
        add_identities(pl.DataFrame({"zip": ["1"]}), site="north", seed=1)
