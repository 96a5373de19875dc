from typing import Any

import pytest
from pydantic import ValidationError

from common.errors import PolicyRefused
from common.plan import TrainingPlan
from common.policy import BudgetLimit, SitePolicy, check_policy
from tests.flows.federation import Federation, make_plan

LIMIT = BudgetLimit(epsilon=3.0, epsilon_alone=6.0, delta=1e-5)


def policy(**rules: Any) -> SitePolicy:
    return SitePolicy.model_validate({"budget": {"ward": LIMIT}, **rules})


def test_a_policy_says_no_more_than_its_budgets_to_be_careful() -> None:
    careful = policy()
    assert (careful.minimum_patients, careful.minimum_cohort, careful.colluding_at_least) == (20, 3, 1)
    assert (careful.maximum_delta, careful.auto_approve) == (1e-5, False)


def test_an_ordinary_plan_is_allowed(made_federation: Federation) -> None:
    check_policy(policy(), made_federation.plan, made_federation.manifest)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"modes": ["local"]}, r"mode 'pooled' is not among the allowed \['local'\]"),
        ({"backbones": ["squeezenet1_1"]}, "backbone 'none' is not among"),
        ({"tasks": ["image-classification"]}, "task 'tabular-classification' is not among"),
        ({"dropout_modes": []}, "dropout mode 'retry' is not among"),
        ({"minimum_cohort": 4}, "a cohort of 3, the policy at least 4"),
        ({"colluding_at_least": 2}, "1 colluding sites, the policy at least 2"),
        ({"maximum_delta": 1e-6}, "delta = 1e-05 exceeds the policy's 1e-06"),
    ],
)
def test_each_rule_refuses_with_the_number_and_its_limit(
    made_federation: Federation, rules: dict[str, Any], said: str
) -> None:
    with pytest.raises(PolicyRefused, match=said):
        check_policy(policy(**rules), made_federation.plan, made_federation.manifest)


def test_a_rule_that_is_just_met_is_met(made_federation: Federation) -> None:
    plan: TrainingPlan = make_plan(delta=1e-5)
    check_policy(policy(minimum_cohort=3, maximum_delta=1e-5), plan, made_federation.manifest)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epsilon": 3.0, "epsilon_alone": 2.9, "delta": 1e-5}, r"epsilon_alone = 2\.9 must be at least epsilon = 3"),
        ({"epsilon": 0, "epsilon_alone": 1, "delta": 1e-5}, "greater than 0"),
        ({"epsilon": 1, "epsilon_alone": 1, "delta": 0}, "greater than 0"),
        ({"epsilon": 1, "delta": 1e-5}, "epsilon_alone"),
    ],
)
def test_an_impossible_budget_is_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        BudgetLimit.model_validate(values)


@pytest.mark.parametrize(
    "rules", [{"budget": {}}, {"minimum_cohort": 2}, {"minimum_patients": 0}, {"colluding_at_least": 0}, {"version": 2}]
)
def test_an_impossible_policy_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        policy(**rules)
