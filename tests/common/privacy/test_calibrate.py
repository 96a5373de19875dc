import json
import math
from pathlib import Path

import pytest

from common.privacy.accountant import EPSILON_MARGIN, gaussian_mu, repeated_epsilon
from common.privacy.admission import AdmissionFilter, FilterCost
from common.privacy.budget import PrivacyBudget
from common.privacy.calibrate import noise_multiplier_for

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "accounting.json").read_text())
PLANS = [(3.0, 66, 1.0), (1.0, 1, 1.0), (8.0, 66, 1.0), (3.0, 200, 0.1), (1.0, 500, 0.01), (0.02, 10, 1.0)]


@pytest.mark.parametrize(("epsilon", "steps", "sampling_rate"), PLANS)
def test_the_target_is_reached_and_never_passed(epsilon: float, steps: int, sampling_rate: float) -> None:
    def shown(noise_multiplier: float) -> float:
        return repeated_epsilon(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps, delta=1e-5)

    found = noise_multiplier_for(epsilon=epsilon, delta=1e-5, steps=steps, sampling_rate=sampling_rate)
    assert shown(found) <= epsilon < shown(found * (1 - 2e-4))


def test_a_full_batch_plan_gets_the_noise_of_the_exact_conversion() -> None:
    exact = math.sqrt(66) / gaussian_mu(3.0 - EPSILON_MARGIN, 1e-5)
    assert noise_multiplier_for(epsilon=3.0, delta=1e-5, steps=66, sampling_rate=1.0) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("case", VECTORS["calibration"]["cases"])
def test_the_published_noise_comes_out(case: dict[str, float]) -> None:
    found = noise_multiplier_for(
        epsilon=case["epsilon"] + EPSILON_MARGIN,
        delta=case["delta"],
        steps=int(case["steps"]),
        sampling_rate=case["sampling_rate"],
    )
    assert found == pytest.approx(case["noise_multiplier"], rel=2e-3)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"epsilon": 0.01}, "0.01"),
        ({"epsilon": -1.0}, "-1"),
        ({"epsilon": math.nan}, "nan"),
        ({"epsilon": math.inf}, "inf"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"steps": 0}, "steps"),
        ({"sampling_rate": 0.0}, "sampling rate"),
        ({"sampling_rate": 1.5}, "sampling rate"),
    ],
)
def test_an_impossible_target_is_refused_with_its_number(wrong: dict[str, float], named: str) -> None:
    plan = {"epsilon": 3.0, "delta": 1e-5, "steps": 66, "sampling_rate": 1.0} | wrong
    with pytest.raises(ValueError, match=named):
        noise_multiplier_for(**plan)  # type: ignore[arg-type]


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 8.0])
def test_a_gaussian_filter_admits_every_attempt_of_a_plan_that_was_calibrated_to_the_whole_budget(epsilon):
    budget = PrivacyBudget(epsilon=epsilon, epsilon_alone=1e6, delta=1e-5)
    admission = AdmissionFilter.gaussian()
    for steps in (1, 2, 3, 5, 6, 7, 9, 13, 27, 66, 103):
        z = noise_multiplier_for(epsilon=epsilon, delta=1e-5, steps=steps, sampling_rate=1.0)
        cost = FilterCost(trusted=1 / z**2, alone=1 / z**2)
        spent = FilterCost()
        for _ in range(steps):
            admission.check(spent, cost, budget)
            spent += cost
        admission.check(FilterCost(), FilterCost(trusted=steps / z**2, alone=steps / z**2), budget)
