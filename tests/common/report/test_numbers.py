import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.report.numbers import Shown, over_limit, power_of_ten, round_up


@given(st.floats(0, 1000))
def test_a_bound_is_never_rounded_down(value):
    assert float(round_up(value)) >= value - 1e-8


@pytest.mark.parametrize(("value", "text"), [(3.0, "3.00"), (2.871, "2.88"), (0.07, "0.07"), (5.0001, "5.01")])
def test_a_bound_has_two_decimals(value, text):
    assert round_up(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1e-5, "10⁻⁵"), (3.2e-6, "3.2 × 10⁻⁶"), (2e-5, "2 × 10⁻⁵"), (0.01, "0.01")]
)
def test_small_numbers_are_powers_of_ten(value, text):
    assert power_of_ten(value) == text


def test_a_number_carries_its_key_and_raw_value():
    shown = Shown({"privacy": {"epsilon": 2.8731}}).number("privacy.epsilon", "epsilon")
    assert 'data-key="privacy.epsilon"' in shown
    assert 'data-value="2.8731"' in shown
    assert ">2.88<" in shown


def test_what_is_missing_is_unknown_and_not_zero():
    shown = Shown({"sites": [{"epsilon": None}, {}]})
    assert "unknown" in shown.number("sites.0.epsilon")
    assert 'data-value="null"' in shown.number("sites.1.epsilon")
    assert "unknown" in shown.number("sites.7.epsilon")


def test_a_sum_with_an_unknown_part_is_unknown():
    shown = Shown({"sites": [{"records": 3}, {"records": None}]})
    assert shown.value("sum:sites.*.records") is None


def test_sums_counts_and_maxima_are_taken_over_all_elements():
    shown = Shown({"sites": [{"records": 3}, {"records": 4}]})
    assert shown.value("sum:sites.*.records") == 7
    assert shown.value("max:sites.*.records") == 4
    assert shown.value("len:sites") == 2


def test_text_is_escaped_in_content_and_attribute():
    shown = Shown({"name": '"><script>alert(1)</script>'}).number("name")
    assert "<script>" not in shown
    assert '"><' not in shown.replace('"><data', "").removesuffix("</data>")


def test_one_thing_is_singular():
    assert Shown({"sites": [1]}).count("len:sites", "site").endswith(" site")
    assert Shown({"sites": []}).count("len:sites", "site").endswith(" sites")


def test_discretisation_alone_is_not_over_a_limit():
    assert not over_limit(3.0005, 3.0)
    assert over_limit(3.002, 3.0)
