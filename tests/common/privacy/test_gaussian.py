import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.privacy.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "accounting.json").read_text())
MUS = st.floats(0.05, 20)
DELTAS = st.floats(1e-12, 0.1)


def delta_by_integration(mu: float, epsilon: float) -> float:
    """The definition: mass by which N(mu, 1) exceeds exp(epsilon) N(0, 1), summed over a fine grid."""
    step, start = 1e-3, epsilon / mu + mu / 2
    total = 0.0
    for index in range(20_000):
        x = start + (index + 0.5) * step
        total += math.exp(-((x - mu) ** 2) / 2) - math.exp(epsilon - x**2 / 2)
    return total * step / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("case", VECTORS["gaussian"]["cases"])
def test_the_published_gaussian_values_come_out(case: dict[str, float]) -> None:
    assert gaussian_epsilon(case["mu"], case["delta"]) == pytest.approx(case["epsilon"], rel=1e-6)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.3, 1.0), (1.0, 0.0), (1.0, 4.0), (3.0, 1.0), (3.0, 12.0)])
def test_delta_is_what_its_definition_integrates_to(mu: float, epsilon: float) -> None:
    assert gaussian_delta(mu, epsilon) == pytest.approx(delta_by_integration(mu, epsilon), rel=1e-5)


@given(MUS, DELTAS)
def test_the_conversion_is_rounded_to_the_safe_side(mu: float, delta: float) -> None:
    assert gaussian_delta(mu, gaussian_epsilon(mu, delta)) <= delta


@given(st.floats(0.01, 50), DELTAS)
def test_mu_is_the_inverse_of_epsilon(epsilon: float, delta: float) -> None:
    mu = gaussian_mu(epsilon, delta)
    assert gaussian_epsilon(mu, delta) <= epsilon * (1 + 1e-12)
    assert gaussian_epsilon(mu * (1 + 1e-6), delta) > epsilon


def test_nothing_released_costs_nothing() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == 0.0


@pytest.mark.parametrize("mu", [-1.0, math.nan, math.inf])
def test_an_impossible_mu_is_refused(mu: float) -> None:
    with pytest.raises(ValueError, match="mu lies"):
        gaussian_epsilon(mu, 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_an_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta lies"):
        gaussian_mu(1.0, delta)


@pytest.mark.parametrize("epsilon", [-1.0, math.nan, math.inf])
def test_an_impossible_epsilon_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        gaussian_mu(epsilon, 1e-5)
