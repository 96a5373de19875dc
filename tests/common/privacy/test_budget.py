import math

import pytest

from common.privacy.budget import PrivacyBudget, PrivacyUnit, View


def test_a_budget_survives_json(budget: PrivacyBudget) -> None:
    assert PrivacyBudget.from_json(budget.to_json()) == budget


def test_the_unit_is_the_patient_unless_said(budget: PrivacyBudget) -> None:
    assert budget.unit is PrivacyUnit.PATIENT


def test_each_view_has_its_limit(budget: PrivacyBudget) -> None:
    assert (budget.limit(View.TRUSTED), budget.limit(View.ALONE)) == (3.0, 5.7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf, "epsilon_alone": math.inf},
        {"epsilon_alone": 2.9},
        {"epsilon_alone": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
    ],
)
def test_an_impossible_budget_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        PrivacyBudget(**{"epsilon": 3.0, "epsilon_alone": 5.7, "delta": 1e-5} | wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"extra": 1}, {"epsilon": "3"}, {"unit": "family"}, {"delta": True}])
def test_json_of_another_shape_is_refused(budget: PrivacyBudget, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        PrivacyBudget.from_json(budget.to_json() | wrong)
