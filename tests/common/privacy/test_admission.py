from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import PolicyRefused, PrivacyBudgetExhausted
from common.privacy.accountant import EPSILON_MARGIN, epsilon, gaussian_epsilon
from common.privacy.admission import AdmissionFilter, FilterCost, FilterKind
from common.privacy.budget import PrivacyBudget, View
from common.privacy.calibrate import noise_multiplier_for
from common.privacy.events import MechanismEvent, TrustMode

EventMaker = Callable[..., MechanismEvent]
FULL_BATCH = st.tuples(st.floats(3, 60), st.just(1.0), st.integers(1, 5))
SAMPLED = st.tuples(st.floats(0.8, 5), st.floats(0.001, 0.3), st.integers(1, 50))


def admitted(admission: AdmissionFilter, offered: list[MechanismEvent], budget: PrivacyBudget) -> list[MechanismEvent]:
    """What a site ends up charging when it answers whatever still fits."""
    charged: list[MechanismEvent] = []
    for event in offered:
        try:
            admission.admit(charged, event, budget)
        except PrivacyBudgetExhausted:
            continue
        charged.append(event)
    return charged


@pytest.mark.parametrize("target", [0.5, 1.0, 3.0, 8.0])
def test_a_plan_calibrated_to_the_whole_budget_is_admitted_to_its_last_spare_attempt(
    make_event: EventMaker, target: float
) -> None:
    event = make_event(noise_multiplier_for(epsilon=target, delta=1e-5, steps=66, sampling_rate=1.0))
    alone = epsilon([event] * 66, delta=1e-5, view=View.ALONE)
    budget = PrivacyBudget(epsilon=target, epsilon_alone=alone, delta=1e-5)
    assert len(admitted(AdmissionFilter.gaussian(), [event] * 67, budget)) == 66


@settings(deadline=None, max_examples=25)
@given(st.lists(FULL_BATCH, min_size=1, max_size=40))
def test_the_gaussian_filter_never_admits_beyond_the_budget(
    make_event: EventMaker, budget: PrivacyBudget, offered: list[tuple[float, float, int]]
) -> None:
    charged = admitted(AdmissionFilter.gaussian(), [make_event(*one) for one in offered], budget)
    for view in View:
        mu = sum(event.steps / event.noise_multiplier_for(view) ** 2 for event in charged) ** 0.5
        assert gaussian_epsilon(mu, budget.delta) + EPSILON_MARGIN <= budget.limit(view) + 1e-9


@settings(deadline=None, max_examples=10)
@given(st.lists(st.one_of(FULL_BATCH, SAMPLED), min_size=1, max_size=20))
def test_the_rdp_filter_never_admits_beyond_the_budget(
    make_event: EventMaker, budget: PrivacyBudget, offered: list[tuple[float, float, int]]
) -> None:
    charged = admitted(AdmissionFilter.rdp(budget), [make_event(*one) for one in offered], budget)
    for view in View:
        assert epsilon(charged, delta=budget.delta, view=view) <= budget.limit(view) + 1e-9


def test_the_refusal_names_both_views_and_their_limits(make_event: EventMaker, budget: PrivacyBudget) -> None:
    with pytest.raises(PrivacyBudgetExhausted) as refused:
        AdmissionFilter.gaussian().admit([make_event(11.4)] * 66, make_event(11.4), budget)
    assert "epsilon would reach 3.00" in refused.value.fact
    assert "of 3.000 and epsilon_alone would reach 5." in refused.value.fact


def test_the_view_alone_can_refuse_on_its_own(make_event: EventMaker) -> None:
    tight = PrivacyBudget(epsilon=3.0, epsilon_alone=3.0, delta=1e-5)
    with pytest.raises(PrivacyBudgetExhausted):
        AdmissionFilter.gaussian().admit([], make_event(2.0), tight)
    AdmissionFilter.gaussian().admit([], make_event(2.0, mode=TrustMode.LOCAL), tight)


def test_a_plan_with_hardly_any_noise_is_refused_not_a_crash(make_event: EventMaker, budget: PrivacyBudget) -> None:
    with pytest.raises(PrivacyBudgetExhausted):
        AdmissionFilter.gaussian().admit([], make_event(1e-6, steps=2**50), budget)


def test_a_sampled_event_has_no_place_in_a_gaussian_filter(make_event: EventMaker, budget: PrivacyBudget) -> None:
    with pytest.raises(PolicyRefused, match=r"samples at 0\.1"):
        AdmissionFilter.gaussian().admit([], make_event(5.0, 0.1), budget)


def test_a_budget_within_the_margin_admits_nothing(make_event: EventMaker) -> None:
    tiny = PrivacyBudget(epsilon=0.01, epsilon_alone=0.01, delta=1e-5)
    with pytest.raises(PrivacyBudgetExhausted):
        AdmissionFilter.gaussian().admit([], make_event(1e6), tiny)


@pytest.mark.parametrize("slip", [{"kind": FilterKind.GAUSSIAN, "order": 8}, {"kind": FilterKind.RDP, "order": 65}])
def test_an_impossible_filter_is_refused(slip: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="order"):
        AdmissionFilter(**slip)  # type: ignore[arg-type]


def test_an_rdp_filter_needs_its_order() -> None:
    with pytest.raises(ValueError, match="None"):
        AdmissionFilter(kind=FilterKind.RDP)


def test_filters_survive_json(budget: PrivacyBudget) -> None:
    for admission in (AdmissionFilter.gaussian(), AdmissionFilter.rdp(budget)):
        assert AdmissionFilter.from_json(admission.to_json()) == admission


def test_the_running_cost_reaches_the_epsilon_of_the_events(make_event: EventMaker) -> None:
    event = make_event(11.33)
    filter_cost = sum([AdmissionFilter.gaussian().cost(event)] * 66, FilterCost())
    reached = AdmissionFilter.gaussian().reached_epsilon(filter_cost, 1e-5, View.TRUSTED)
    assert reached == pytest.approx(epsilon([event] * 66, delta=1e-5, view=View.TRUSTED), abs=1e-4)


def test_no_cost_reaches_no_epsilon(budget: PrivacyBudget) -> None:
    assert AdmissionFilter.rdp(budget).reached_epsilon(FilterCost(), 1e-5, View.ALONE) == 0.0
