"""Keyed pseudonyms and shifted dates."""

import re
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.deid.pseudonyms import Pseudonyms, shift_date

KEY, OTHER_KEY = bytes(range(32)), bytes(32)


def code(identifier: str, key: bytes = KEY, namespace: str = "patient") -> str:
    return Pseudonyms(key, namespace).codes([identifier])[identifier]


def test_a_pseudonym_is_32_characters_of_base32() -> None:
    assert re.fullmatch(r"[A-Z2-7]{32}", code("MRN-1"))


def test_the_same_key_gives_the_same_pseudonym() -> None:
    assert code("MRN-1") == code("MRN-1")


def test_another_key_gives_another_pseudonym() -> None:
    assert code("MRN-1") != code("MRN-1", OTHER_KEY)


def test_another_namespace_gives_another_pseudonym() -> None:
    assert code("MRN-1") != code("MRN-1", namespace="column/visit")


def test_two_spellings_of_one_number_are_one_patient() -> None:
    assert code("MRN-1") == code("mrn-1")


@given(st.text(min_size=1))
def test_a_pseudonym_stands_for_itself(identifier: str) -> None:
    assert code(code(identifier)) == code(identifier)


def test_the_pseudonym_of_another_key_is_an_identifier_like_any_other() -> None:
    foreign = code("MRN-1", OTHER_KEY)
    assert code(foreign) != foreign


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes, not 31"):
        Pseudonyms(bytes(31), "patient")


def test_dates_of_many_patients_move_within_a_year_and_never_stay() -> None:
    pseudonyms = Pseudonyms(KEY, "patient")
    days = {pseudonyms.shift_days(str(number)) for number in range(20_000)}
    assert days == set(range(-365, 366)) - {0}


def test_the_days_between_two_dates_stay() -> None:
    first, second = shift_date("2019-02-27", 40), shift_date("03/01/2019", 40)
    assert first is not None and second is not None
    assert (date.fromisoformat(second[1:]) - date.fromisoformat(first[1:])).days == 2


def test_a_shifted_date_is_marked_and_not_moved_again() -> None:
    assert shift_date("2019-02-27", 2) == "~2019-03-01"
    assert shift_date("~2019-03-01", 2) == "~2019-03-01"


@pytest.mark.parametrize("text", ["2019-02-30", "27 February", "~soon", "", "0001-01-01"])
def test_what_is_no_date_cannot_be_moved(text: str) -> None:
    assert shift_date(text, -300) is None
