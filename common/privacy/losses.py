"""Privacy loss distributions of Gaussian steps, composed by dp-accounting.

dp-accounting evaluates the hockey stick divergence of a Poisson sampled Gaussian point by point; here it is one array
expression, handed to the same connect-the-dots discretisation (Doroshenko et al. 2022, arXiv:2207.04380), which is an
upper bound on any grid. With p0 = N(0, z^2), p1 = N(1, z^2) and p = (1-q) p0 + q p1, removing a patient compares p
with p0 and adding one p0 with p.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# Beyond ten standard deviations lies less than 1e-23 of a Gaussian; the discretisation counts it as unbounded loss.
_TAIL = 10.0


def composed_epsilon(steps: Mapping[tuple[float, float], int], *, delta: float, interval: float) -> float:
    """Epsilon at delta, under add/remove-one, of all steps together.

    Args:
        steps: (noise multiplier, sampling rate) to how many steps of it; at least one.
        delta: In (0, 1).
        interval: Of the discretised losses, > 0.

    Returns:
        An upper bound; infinity if the discretisation is too coarse for delta.
    """
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    total: Any = None
    for (noise_multiplier, sampling_rate), count in steps.items():
        losses: Any
        if sampling_rate == 1:
            std = noise_multiplier / math.sqrt(count)
            losses = from_gaussian_mechanism(std, value_discretization_interval=interval)
        else:
            losses = _sampled_losses(noise_multiplier, sampling_rate, interval).self_compose(count)
        total = losses if total is None else total.compose(losses)
    return float(total.get_epsilon_for_delta(delta))


def removal_delta(epsilons: FloatArray, noise_multiplier: float, sampling_rate: float) -> FloatArray:
    """Hockey stick divergence of p from p0 at each epsilon, any sign."""
    from scipy.special import log_ndtr, ndtr

    z, q = noise_multiplier, sampling_rate
    ratio = np.expm1(epsilons) / q + 1
    reachable = ratio > 0
    # From this outcome on the loss exceeds epsilon.
    outcome = z**2 * np.log(np.where(reachable, ratio, 1.0)) + 0.5
    sampled = (1 - q) * ndtr(-outcome / z) + q * ndtr((1 - outcome) / z)
    above = sampled - np.exp(epsilons + log_ndtr(-outcome / z))
    return np.clip(np.where(reachable, above, -np.expm1(epsilons)), 0.0, 1.0)


def addition_delta(epsilons: FloatArray, noise_multiplier: float, sampling_rate: float) -> FloatArray:
    """Hockey stick divergence of p0 from p at each epsilon, any sign."""
    from scipy.special import log_ndtr, ndtr

    z, q = noise_multiplier, sampling_rate
    ratio = np.expm1(-epsilons) / q + 1
    reachable = ratio > 0
    # Up to this outcome the loss exceeds epsilon.
    outcome = z**2 * np.log(np.where(reachable, ratio, 1.0)) + 0.5
    log_sampled = np.logaddexp(math.log1p(-q) + log_ndtr(outcome / z), math.log(q) + log_ndtr((outcome - 1) / z))
    above = ndtr(outcome / z) - np.exp(epsilons + log_sampled)
    return np.clip(np.where(reachable, above, 0.0), 0.0, 1.0)


def _sampled_losses(noise_multiplier: float, sampling_rate: float, interval: float) -> Any:
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap as connect_dots
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    least = _removal_loss(-_TAIL * noise_multiplier, noise_multiplier, sampling_rate)
    most = _removal_loss(1 + _TAIL * noise_multiplier, noise_multiplier, sampling_rate)
    low, high = math.floor(least / interval), math.ceil(most / interval)
    grid = np.arange(low, high + 1, dtype=np.float64) * np.float64(interval)
    removed = connect_dots(interval, low, high, removal_delta(grid, noise_multiplier, sampling_rate))
    added = connect_dots(interval, -high, -low, addition_delta(-grid[::-1], noise_multiplier, sampling_rate))
    return PrivacyLossDistribution(removed, added)


def _removal_loss(outcome: float, noise_multiplier: float, sampling_rate: float) -> float:
    unsampled = (2 * outcome - 1) / (2 * noise_multiplier**2)
    return float(np.logaddexp(math.log1p(-sampling_rate), math.log(sampling_rate) + unsampled))
