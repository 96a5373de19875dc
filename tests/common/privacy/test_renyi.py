import json
import math
from pathlib import Path

import numpy as np
import pytest

from common.privacy.renyi import (
    ORDERS,
    WHOLE_ORDERS,
    gaussian_rdp,
    gaussian_rdp_curve,
    rdp_noise_guess,
    rdp_to_epsilon,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "accounting.json").read_text())
WORKLOADS = [(1.0, 0.1), (0.7, 0.01), (3.0, 0.5), (2.0, 0.001), (1.0, 0.999)]


def moment_by_integration(order: float, noise_multiplier: float, sampling_rate: float) -> float:
    """The definition: E over N(0, z^2) of ((1-q) + q N(1, z^2)/N(0, z^2))^order."""
    x = np.linspace(-20 * noise_multiplier, order + 20 * noise_multiplier, 400_001)
    ratio = 1 - sampling_rate + sampling_rate * np.exp((2 * x - 1) / (2 * noise_multiplier**2))
    density = np.exp(-(x**2) / (2 * noise_multiplier**2)) / (noise_multiplier * math.sqrt(2 * math.pi))
    return float(np.sum(density * ratio**order) * (x[1] - x[0]))


@pytest.mark.parametrize(("noise_multiplier", "sampling_rate"), WORKLOADS)
@pytest.mark.parametrize("order", [2, 3, 8])
def test_the_divergence_is_what_its_definition_integrates_to(
    noise_multiplier: float, sampling_rate: float, order: int
) -> None:
    found = gaussian_rdp(order, noise_multiplier=noise_multiplier, sampling_rate=sampling_rate)
    expected = math.log(moment_by_integration(order, noise_multiplier, sampling_rate)) / (order - 1)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize(("noise_multiplier", "sampling_rate"), WORKLOADS)
def test_the_curve_agrees_with_single_whole_orders(noise_multiplier: float, sampling_rate: float) -> None:
    curve = dict(
        zip(
            ORDERS.tolist(),
            gaussian_rdp_curve(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate).tolist(),
            strict=True,
        )
    )
    single = {
        order: gaussian_rdp(order, noise_multiplier=noise_multiplier, sampling_rate=sampling_rate)
        for order in WHOLE_ORDERS
    }
    assert [curve[order] for order in WHOLE_ORDERS] == pytest.approx(list(single.values()), rel=1e-12)


@pytest.mark.parametrize("order", [1.5, 2.5, 7.3])
def test_between_whole_orders_the_curve_stays_above_the_truth(order: float) -> None:
    curve = gaussian_rdp_curve(noise_multiplier=1.0, sampling_rate=0.1)
    truth = math.log(moment_by_integration(order, 1.0, 0.1)) / (order - 1)
    assert curve[np.argmin(np.abs(ORDERS - order))] >= truth


@pytest.mark.parametrize("case", VECTORS["rdp"]["cases"])
def test_the_published_conversion_comes_out(case: dict[str, float]) -> None:
    curve = gaussian_rdp_curve(noise_multiplier=case["noise_multiplier"], sampling_rate=case["sampling_rate"])
    assert rdp_to_epsilon(curve, case["delta"]) == pytest.approx(case["epsilon"], abs=1e-3)


def test_a_guess_reaches_its_target() -> None:
    guess = rdp_noise_guess(epsilon=2.0, delta=1e-5, steps=500, sampling_rate=0.05)
    curve = 500 * gaussian_rdp_curve(noise_multiplier=guess, sampling_rate=0.05)
    assert rdp_to_epsilon(curve, 1e-5) <= 2.0


def test_only_orders_of_the_table_are_known() -> None:
    with pytest.raises(ValueError, match="65"):
        gaussian_rdp(65, noise_multiplier=1.0, sampling_rate=1.0)
