from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from common.errors import PolicyRefused
from common.plan import TrainingPlan
from common.policy import BudgetLimit, SitePolicy, check_hours, check_policy, local_time, policy_verdicts
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
    "rules", [{"minimum_cohort": 2}, {"minimum_patients": 0}, {"colluding_at_least": 0}, {"version": 2}]
)
def test_an_impossible_policy_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        policy(**rules)


def test_a_policy_may_grant_no_budget_at_all() -> None:
    assert SitePolicy().budget == {}


def test_every_rule_is_heard_before_a_plan_is_judged(made_federation: Federation) -> None:
    strict = policy(modes=["local"], minimum_cohort=4)
    verdicts = list(policy_verdicts(strict, made_federation.plan, made_federation.manifest))
    assert [verdict.rule for verdict in verdicts if not verdict.allowed] == ["modes", "minimum_cohort"]
    assert {"tasks", "backbones", "dropout_modes", "colluding_at_least", "maximum_delta"} < {
        verdict.rule for verdict in verdicts
    }


def at(time: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-02T{time}:00+01:00")


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        (["08:00-18:00"], ["08:00", "12:30", "17:59"], ["07:59", "18:00", "00:00"]),
        (["20:00-06:00"], ["20:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "19:59"]),
        (["22:00-24:00", "12:00-13:00"], ["22:00", "23:59", "12:00"], ["00:00", "13:00", "21:59"]),
        (["00:00-24:00"], ["00:00", "12:00", "23:59"], []),
        ([], ["00:00", "12:00"], []),
    ],
)
def test_hours_begin_with_their_first_minute_and_end_before_their_last(
    hours: list[str], inside: list[str], outside: list[str]
) -> None:
    rules = policy(hours=hours)
    for time in inside:
        check_hours(rules, at(time))
    for time in outside:
        with pytest.raises(PolicyRefused, match=f"it is {time} here"):
            check_hours(rules, at(time))


def test_hours_are_of_the_clock_that_they_are_asked_with() -> None:
    """The same moment in another zone is another hour."""
    check_hours(policy(hours=["12:00-13:00"]), at("12:30"))
    with pytest.raises(PolicyRefused, match="it is 11:30 here"):
        check_hours(policy(hours=["12:00-13:00"]), datetime.fromisoformat("2026-03-02T11:30:00+00:00"))


def test_the_machines_time_has_its_zone() -> None:
    assert local_time().utcoffset() is not None


@pytest.mark.parametrize(
    "hours", ["20-06", "20:00", "24:00-06:00", "20:60-21:00", "8:00-9:00", "08:00-08:00", "08:00-24:01", ""]
)
def test_what_is_no_span_of_hours_is_refused(hours: str) -> None:
    with pytest.raises(ValidationError, match="hours"):
        policy(hours=[hours])


@pytest.mark.parametrize("name", ["auto_approve_up_to_epsilon", "auto_approve_up_to_epsilon_alone"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        policy(**{name: 0})
