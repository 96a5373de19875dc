"""What is left of a date, a ZIP code and an age."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.deid.generalise import RESTRICTED_ZIP3, age_of, year_of, zip3_of


@pytest.mark.parametrize("text", ["1954-03-02", "1954", "19540302", "3/2/1954", "03/02/1954", "1954-03-02T10:15:00Z"])
def test_only_the_year_of_a_date_is_left(text: str) -> None:
    assert year_of(text, 2026) == "1954"


@pytest.mark.parametrize(("text", "year"), [("1936-12-31", "90+"), ("1937-01-01", "1937"), ("1870", "90+")])
def test_years_that_tell_an_age_over_89_are_pooled(text: str, year: str) -> None:
    assert year_of(text, 2026) == year


@pytest.mark.parametrize("text", ["54", "March 1954", "2027-01-01", "1750", "02.03.1954", "1954-03", "", "٢٠٢٠-01-01x"])
def test_what_is_no_date_up_to_this_year_has_no_year(text: str) -> None:
    assert year_of(text, 2026) is None


@pytest.mark.parametrize("text", ["02139", "02139-4307", "021394307", "021"])
def test_three_digits_of_a_zip_code_are_left(text: str) -> None:
    assert zip3_of(text) == "021"


def test_the_guidance_restricts_seventeen_areas() -> None:
    assert len(RESTRICTED_ZIP3) == 17


@pytest.mark.parametrize("area", sorted(RESTRICTED_ZIP3))
def test_an_area_of_few_people_becomes_000(area: str) -> None:
    assert zip3_of(f"{area}01-1234") == "000"


@pytest.mark.parametrize("text", ["2139", "0213", "SW1A 1AA", "02139-43", ""])
def test_what_is_no_zip_code_has_no_area(text: str) -> None:
    assert zip3_of(text) is None


@pytest.mark.parametrize(("text", "age"), [("89", "89"), ("89.9", "89"), ("90", "90+"), ("104", "90+"), ("0", "0")])
def test_ages_over_89_are_one_category(text: str, age: str) -> None:
    assert age_of(text) == age


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "151", "old", ""])
def test_what_is_no_age_has_none(text: str) -> None:
    assert age_of(text) is None


@given(st.one_of(st.dates().map(str), st.integers(0, 10**9).map(str), st.floats(0, 150).map(str), st.text()))
def test_generalising_twice_is_generalising_once(text: str) -> None:
    for rule in (lambda value: year_of(value, 2026), zip3_of, age_of):
        once = rule(text)
        assert once is None or rule(once) == once
