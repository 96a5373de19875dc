"""The grid: its sensitivity, that sums do not wrap around, and every refusal."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from common.crypto.ring import Grid, choose_grid, dequantise, from_ring, quantise, to_ring

GRID = Grid(scale=2**10, clamp=5000, dimension=6, clipping_norm=1.0)


def choose(**changes):
    arguments = {
        "dimension": 62,
        "clipping_norm": 1.0,
        "sites": 4,
        "nominal_patients": 426,
        "noise_multiplier": 20.0,
        "noise_shares": 3,
    }
    return choose_grid(**(arguments | changes))


def coordinates(limit=8.0):
    return npst.arrays(np.float64, GRID.dimension, elements=st.floats(-limit, limit))


@settings(deadline=None)
@given(total=coordinates(), change=coordinates(limit=1.0))
def test_neighbouring_totals_differ_on_the_grid_by_at_most_the_scaled_distance_and_the_root_of_d(total, change):
    other = total + change
    moved = np.linalg.norm((quantise(total, GRID) - quantise(other, GRID)).astype(np.float64))
    bound = GRID.scale * np.linalg.norm(total - other) + math.sqrt(GRID.dimension)
    assert moved <= bound * (1 + 1e-12)


@settings(deadline=None)
@given(total=coordinates(), direction=coordinates(limit=1.0), length=st.floats(0.0, 1.0))
def test_a_patient_within_the_clipping_norm_moves_the_total_by_at_most_the_sensitivity(total, direction, length):
    norm = np.linalg.norm(direction)
    patient = direction * (length * GRID.clipping_norm / norm) if norm > 1e-6 else np.zeros(GRID.dimension)
    moved = np.linalg.norm((quantise(total, GRID) - quantise(total + patient, GRID)).astype(np.float64))
    assert moved <= GRID.sensitivity * (1 + 1e-12)


def test_the_sensitivity_is_nearly_reached_so_the_root_of_d_is_not_idle():
    dimension = 400
    grid = Grid(scale=1, clamp=100, dimension=dimension, clipping_norm=1.0)
    total = np.full(dimension, 1.0 - 1 / 32)
    patient = np.full(dimension, 1.0 / math.sqrt(dimension))  # norm 1, each coordinate 0.05
    moved = np.linalg.norm(quantise(total + patient, grid) - quantise(total, grid))
    assert grid.scale * grid.clipping_norm < moved <= grid.sensitivity
    assert moved == math.sqrt(dimension)


def test_the_sensitivity_is_the_scaled_clipping_norm_and_the_root_of_d():
    assert Grid(scale=2**12, clamp=1, dimension=16, clipping_norm=0.5).sensitivity == 2**11 + 4


def test_one_noise_share_is_the_promise_over_the_root_of_the_honest_shares():
    grid = Grid(scale=2**12, clamp=1, dimension=16, clipping_norm=0.5)
    assert grid.share_std(noise_multiplier=3.0, noise_shares=4) == 3.0 * 2052 / 2


@settings(deadline=None)
@given(total=coordinates())
def test_quantising_agrees_with_a_loop_in_exact_arithmetic(total):
    slow = [max(-GRID.clamp, min(GRID.clamp, math.trunc(value * 1024))) for value in total.tolist()]
    assert quantise(total, GRID).tolist() == slow


@settings(deadline=None)
@given(total=coordinates(limit=4.0))
def test_a_total_comes_back_within_one_grid_unit(total):
    assert np.abs(dequantise(quantise(total, GRID), GRID) - total).max() < 1 / GRID.scale


def test_a_total_beyond_the_clamp_is_cut_to_it_without_a_warning():
    total = np.array([1e308, -1e308, 4.8828125, -4.8828125, 4.883, 0.0])
    assert quantise(total, GRID).tolist() == [5000, -5000, 5000, -5000, 5000, 0]


def test_quantising_leaves_the_total_as_it_is():
    total = np.linspace(-9.0, 9.0, GRID.dimension)
    before = total.copy()
    quantise(total, GRID)
    assert np.array_equal(total, before)


def test_quantising_works_block_by_block():
    grid = Grid(scale=2**10, clamp=2**20, dimension=100_003, clipping_norm=1.0)
    total = np.random.default_rng(5).normal(scale=100.0, size=grid.dimension)
    assert np.array_equal(quantise(total, grid), np.trunc(total * 1024).astype(np.int64))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_total_that_is_not_finite_is_refused(value):
    total = np.zeros(GRID.dimension)
    total[-1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantise(total, GRID)


@pytest.mark.parametrize("total", [np.zeros(5), np.zeros((1, 6)), np.zeros(6, np.float32), np.zeros(6, np.int64)])
def test_a_total_of_another_shape_or_type_is_refused(total):
    with pytest.raises(ValueError, match="float64 of shape"):
        quantise(total, GRID)


@settings(deadline=None)
@given(values=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20))
def test_the_ring_gives_back_every_centred_integer(values):
    units = np.array(values, dtype=np.int64)
    assert np.array_equal(from_ring(to_ring(units)), units)


@settings(deadline=None)
@given(values=st.lists(st.integers(-(2**62), 2**62), max_size=20))
def test_the_ring_is_arithmetic_modulo_two_to_the_32(values):
    assert to_ring(np.array(values, dtype=np.int64)).tolist() == [value % 2**32 for value in values]


def test_the_ring_refuses_other_types():
    with pytest.raises(ValueError, match="int64"):
        to_ring(np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="uint32"):
        from_ring(np.zeros(3, np.int64))


@st.composite
def federations(draw):
    sites = draw(st.integers(1, 200))
    return {
        "dimension": draw(st.integers(1, 10_000)),
        "clipping_norm": draw(st.floats(0.01, 100.0)),
        "sites": sites,
        "nominal_patients": draw(st.integers(1, 100_000)),
        "noise_multiplier": draw(st.floats(0.3, 100.0)),
        "noise_shares": draw(st.integers(1, sites)),
    }


@settings(deadline=None)
@given(federation=federations())
def test_a_chosen_grid_leaves_room_for_every_site_and_twelve_sigmas_of_their_noise(federation):
    try:
        grid = choose_grid(**federation)
    except ValueError:
        return
    sites, shares = federation["sites"], federation["noise_shares"]
    sigma = federation["noise_multiplier"] * grid.sensitivity * math.sqrt(sites / shares)
    assert sites * grid.clamp + 12 * sigma < 2**31


@settings(deadline=None)
@given(federation=federations(), seed=st.integers(0, 2**32))
def test_a_sum_of_totals_at_the_clamp_with_twelve_sigmas_of_noise_comes_back_from_the_ring(federation, seed):
    try:
        grid = choose_grid(**(federation | {"dimension": 8}))
    except ValueError:
        return
    sites = federation["sites"]
    share = grid.share_std(noise_multiplier=federation["noise_multiplier"], noise_shares=federation["noise_shares"])
    signs = np.random.default_rng(seed).choice([-1, 1], size=8)
    one_site = signs * np.int64(grid.clamp) + signs * np.int64(12 * share / math.sqrt(sites))
    residues = np.zeros(8, np.uint32)
    for _ in range(sites):
        residues += to_ring(one_site)
    assert np.array_equal(from_ring(residues), sites * one_site)


@settings(deadline=None)
@given(federation=federations())
def test_a_chosen_grid_meets_the_three_limits(federation):
    try:
        grid = choose_grid(**federation)
    except ValueError:
        return
    scaled_clip = grid.scale * grid.clipping_norm
    assert scaled_clip >= 2**10
    assert math.sqrt(grid.dimension) <= 0.01 * scaled_clip
    assert grid.share_std(noise_multiplier=federation["noise_multiplier"], noise_shares=federation["noise_shares"]) >= 8


def test_four_hospitals_get_the_finest_grid_on_which_the_clamp_never_bites():
    grid = choose()
    assert (grid.scale, grid.clamp) == (2**20, 2**20 * 426)
    finer = 2**21 * (4 * 426 + 12 * 20 * math.sqrt(4 / 3))
    assert finer > 2**31


def test_the_scale_stops_at_two_to_the_24():
    assert choose(nominal_patients=1, noise_multiplier=0.5, clipping_norm=0.01).scale == 2**24


def test_with_too_many_nominal_patients_the_clamp_shrinks_at_the_coarsest_scale_allowed():
    grid = choose(nominal_patients=10**8)
    assert grid.scale == 2**10
    assert 8 * 2**10 <= grid.clamp < 2**10 * 10**8
    tail = 12 * 20.0 * grid.sensitivity * math.sqrt(4 / 3)
    assert 4 * (grid.clamp + 1) + tail >= 2**31 - 4


def test_eleven_million_coordinates_raise_the_coarsest_scale():
    grid = choose(dimension=11_000_000, nominal_patients=10**6)
    assert grid.scale == 2**19


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clipping_norm": 1e-6}, "16.7772 grid units, and the least is 1024"),
        ({"clipping_norm": 1e-4, "dimension": 10**6}, "√d = 1000 .* 16.7772"),
        ({"clipping_norm": 1e-4, "noise_multiplier": 1e-3}, "a std of 0.97.* and the least is 8"),
        ({"clipping_norm": 1e7, "nominal_patients": 1}, "at scale 1 the clamp would be 0"),
        ({"sites": 10**6, "noise_shares": 10**6}, "the least is 8192"),
    ],
)
def test_a_federation_that_no_grid_fits_is_refused_with_number_and_limit(changes, message):
    with pytest.raises(ValueError, match=message):
        choose(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"dimension": 0},
        {"clipping_norm": 0.0},
        {"clipping_norm": -1.0},
        {"clipping_norm": math.nan},
        {"clipping_norm": math.inf},
        {"sites": 0},
        {"nominal_patients": 0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"noise_shares": 0},
        {"noise_shares": 5},
    ],
)
def test_an_argument_out_of_range_is_refused(changes):
    with pytest.raises(ValueError, match="not"):
        choose(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0},
        {"scale": 3},
        {"scale": 2**25},
        {"clamp": 0},
        {"clamp": 2**31},
        {"dimension": 0},
        {"clipping_norm": 0.0},
        {"clipping_norm": math.nan},
    ],
)
def test_a_grid_out_of_range_cannot_be_made(changes):
    with pytest.raises(ValueError, match="not"):
        Grid(**({"scale": 2, "clamp": 1, "dimension": 1, "clipping_norm": 1.0} | changes))
