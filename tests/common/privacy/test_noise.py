import inspect
import math
import random

import numpy as np
import pytest
from scipy import stats

from common.privacy import noise
from common.privacy.noise import MOST_COORDINATES, discrete_gaussian, poisson_sample

# Two sided; a right sampler fails one of these tests about once in a million runs.
LEVEL = 1e-6


def discrete_gaussian_chances(std: float, reach: int) -> np.ndarray:
    """The definition, normalised over a range far wider than any draw."""
    k = np.arange(-reach, reach + 1)
    weights = np.exp(-(k**2) / (2 * std**2))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("std", [0.8, 3.0, 8.5])
def test_draws_follow_the_discrete_gaussian(std: float) -> None:
    size, edge = 20_000, round(3 * std)
    chances = discrete_gaussian_chances(std, 200)[200 - edge : 200 + edge + 1]
    drawn = discrete_gaussian(size, std)
    counts = np.array([np.sum(drawn == k) for k in range(-edge, edge + 1)])
    observed = np.append(counts, size - counts.sum())
    expected = size * np.append(chances, 1 - chances.sum())
    assert stats.chisquare(observed, expected).pvalue > LEVEL


def test_moments_of_wide_noise_are_those_of_its_scale() -> None:
    size, std = 20_000, 123_456.7
    drawn = discrete_gaussian(size, std)
    assert abs(drawn.mean()) < stats.norm.isf(LEVEL / 2) * std / math.sqrt(size)
    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], size - 1)
    assert low < (size - 1) * drawn.var(ddof=1) / std**2 < high


def test_neighbouring_coordinates_are_uncorrelated() -> None:
    drawn = discrete_gaussian(20_000, 1000.0) / 1000.0
    assert abs(np.mean(drawn[1:] * drawn[:-1])) < stats.norm.isf(LEVEL / 2) / math.sqrt(19_999)


def test_seeding_every_known_generator_changes_nothing() -> None:
    def seeded_draw() -> tuple[list[int], list[int]]:
        import torch

        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        return discrete_gaussian(16, 1e6).tolist(), poisson_sample(256, 0.5).tolist()

    first, second = seeded_draw(), seeded_draw()
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_no_function_takes_a_seed_or_a_generator() -> None:
    for function in (noise.discrete_gaussian, noise.poisson_sample):
        assert not {"seed", "rng", "generator", "random_state"} & set(inspect.signature(function).parameters)


def test_no_coordinate_needs_no_noise() -> None:
    assert discrete_gaussian(0, 5.0).shape == (0,)


@pytest.mark.parametrize("size", [-1, MOST_COORDINATES + 1])
def test_a_size_beyond_the_limit_is_refused_with_it(size: int) -> None:
    with pytest.raises(ValueError, match="100000"):
        discrete_gaussian(size, 5.0)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf, 2.0**41])
def test_an_impossible_scale_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        discrete_gaussian(1, std)


def test_the_number_taken_is_binomial() -> None:
    taken = sum(poisson_sample(1_000_000, 0.1).size for _ in range(5))
    assert stats.binomtest(taken, 5_000_000, 0.1).pvalue > LEVEL


def test_every_index_is_taken_equally_often() -> None:
    counts = np.zeros(50)
    for _ in range(4000):
        counts[poisson_sample(50, 0.2)] += 1
    assert stats.chi2.sf(np.sum((counts - 800) ** 2 / (4000 * 0.2 * 0.8)), 50) > LEVEL


def test_indices_are_ascending_int64_within_the_population() -> None:
    taken = poisson_sample(3_000_000, 0.001)
    assert taken.dtype == np.int64
    assert np.all(np.diff(taken) > 0)
    assert taken[0] >= 0
    assert taken[-1] < 3_000_000


def test_rate_one_takes_everybody() -> None:
    assert poisson_sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]


def test_an_empty_population_gives_an_empty_sample() -> None:
    assert poisson_sample(0, 0.5).shape == (0,)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        poisson_sample(5, rate)


def test_a_negative_population_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        poisson_sample(-1, 0.5)
