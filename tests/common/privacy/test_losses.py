import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss

from common.privacy.losses import addition_delta, composed_epsilon, removal_delta

WORKLOADS = [(1.0, 0.1), (0.6, 0.3), (5.0, 0.01), (1.0, 0.9), (3.0, 1e-4)]
EPSILONS = np.linspace(-3, 5, 161)


@pytest.mark.parametrize(("noise_multiplier", "sampling_rate"), WORKLOADS)
def test_removal_agrees_with_dp_accounting(noise_multiplier: float, sampling_rate: float) -> None:
    mechanism = GaussianPrivacyLoss(noise_multiplier, sampling_prob=sampling_rate, adjacency_type=AdjacencyType.REMOVE)
    expected = mechanism.get_delta_for_epsilon(EPSILONS)
    assert removal_delta(EPSILONS, noise_multiplier, sampling_rate) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(("noise_multiplier", "sampling_rate"), WORKLOADS)
def test_addition_agrees_with_dp_accounting(noise_multiplier: float, sampling_rate: float) -> None:
    mechanism = GaussianPrivacyLoss(noise_multiplier, sampling_prob=sampling_rate, adjacency_type=AdjacencyType.ADD)
    expected = mechanism.get_delta_for_epsilon(EPSILONS)
    assert addition_delta(EPSILONS, noise_multiplier, sampling_rate) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(("noise_multiplier", "sampling_rate"), WORKLOADS)
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_composition_agrees_with_dp_accounting(noise_multiplier: float, sampling_rate: float, delta: float) -> None:
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier)), 20)
    accountant.compose(GaussianDpEvent(10.0), 4)
    found = composed_epsilon({(noise_multiplier, sampling_rate): 20, (10.0, 1.0): 4}, delta=delta, interval=1e-3)
    assert found == pytest.approx(accountant.get_epsilon(delta), rel=1e-6)
