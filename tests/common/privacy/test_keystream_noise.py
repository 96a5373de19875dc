import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.privacy import keystream_noise
from common.privacy.block_table import BLOCKS, BlockTable, block_table
from common.privacy.keystream_noise import SLACK, accepted, keystream_gaussian, lies_below_exp

STDS = [1e-300, 0.3, 3.0, 7.999, 8.0, 8.5, 123_456.7, 2.0**40]


def block_chances(table: BlockTable) -> list[Fraction]:
    """The chance of each block, from the table alone."""
    chances = [Fraction(0)] * BLOCKS
    for column in range(BLOCKS):
        threshold = Fraction((int(table.high[column]) << 96) + table.low[column], 2**128)
        chances[column] += threshold / BLOCKS
        chances[int(table.alias[column])] += (1 - threshold) / BLOCKS
    return chances


def random_words(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 2**64, (2, count), dtype=np.uint64)


@pytest.mark.parametrize("std", STDS)
def test_the_table_draws_each_block_with_its_chance_to_the_120th_bit(std: float) -> None:
    table = block_table(std)
    with localcontext(Context(prec=80)):
        exponents = [-((Decimal(block << table.shift) / Decimal(std)) ** 2) / 2 for block in range(BLOCKS)]
        weights = [Fraction(int(exponent.exp() * 2**200), 2**200) for exponent in exponents]
    total = sum(weights)
    distance = sum(abs(chance - weight / total) for chance, weight in zip(block_chances(table), weights, strict=True))
    assert distance / 2 < Fraction(1, 2**126)


@settings(deadline=None, max_examples=30)
@given(st.floats(5e-324, 2.0**40))
def test_blocks_reach_sixteen_deviations_and_no_block_is_wider_than_an_eighth(std: float) -> None:
    table = block_table(std)
    assert BLOCKS << table.shift >= 16 * std
    assert table.shift == 0 or 2.0**table.shift <= std / 8


def beside_the_chance(std: float, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Words whose uniform number lies `step` steps of 2^-32 from the chance, and the chance's fraction of a step."""
    table, words = block_table(std), random_words(2000)
    halves = words[1].view(np.uint32)
    column = (words[0] & np.uint64(255)).astype(np.int64)
    start = np.where(halves[0::2] < table.high[column], column, table.alias[column]) << table.shift
    offset = ((words[0] >> np.uint64(9)) & np.uint64((1 << table.shift) - 1)).astype(np.int64)
    words, start, offset = np.ascontiguousarray(words[:, offset > 0]), start[offset > 0], offset[offset > 0]
    chances = np.exp(-(2.0 * start + offset) * offset / (2 * std**2)) * 2**32
    words[1].view(np.uint32)[1::2] = np.clip(np.floor(chances) + step, 0, 2**32 - 1).astype(np.uint32)
    return words, chances % 1


@pytest.mark.parametrize("std", [8.5, 123_456.7, 2.0**40])
def test_floats_decide_as_rational_numbers_do(std: float) -> None:
    table, words = block_table(std), random_words(2000)
    np.testing.assert_array_equal(accepted(table, words), accepted(table, words, slack=2.0**32), strict=True)


@pytest.mark.parametrize("std", [20.0, 123_456.7, 2.0**40])
@pytest.mark.parametrize(("step", "kept"), [(-2, True), (-1, True), (1, False), (2, False)])
def test_one_step_beside_the_chance_the_decision_is_right(std: float, step: int, kept: bool) -> None:
    words, _ = beside_the_chance(std, step)
    assert len(accepted(block_table(std), words)) == (words.shape[1] if kept else 0)


@pytest.mark.parametrize("std", [123_456.7, 2.0**40])
@pytest.mark.parametrize(("low", "high"), [(0.01, 0.1), (0.4, 0.6), (0.9, 0.99)])
def test_within_the_step_of_the_chance_further_bits_decide_and_never_floats(
    std: float, low: float, high: float
) -> None:
    words, fractions = beside_the_chance(std, 0)
    chosen = (low < fractions) & (fractions < high)
    words, expected = np.ascontiguousarray(words[:, chosen]), 20 * fractions[chosen].sum()
    found = sum(len(accepted(block_table(std), words)) for _ in range(20))
    assert abs(found - expected) < 6 * np.sqrt(20 * (fractions * (1 - fractions))[chosen].sum())


@pytest.mark.parametrize("std", STDS)
def test_floating_point_is_off_by_far_less_than_the_slack(std: float) -> None:
    """The largest exponent of a scale, and the widest offset, against 40 digits."""
    table = block_table(std)
    start, offset = (BLOCKS - 1) << table.shift, (1 << table.shift) - 1
    if not table.shift:
        return
    found = math.exp(float((2 * start + offset) * offset) * (-0.5 / std**2))
    with localcontext(Context(prec=40)):
        exact = (-Decimal((2 * start + offset) * offset) / (2 * Decimal(std) ** 2)).exp()
        assert abs(Decimal(found) - exact) < Decimal(2) ** -45 < Decimal(SLACK) / 2**32


@settings(deadline=None)
@given(first=st.integers(0, 2**32 - 1), gamma=st.fractions(0, 4, max_denominator=10**9))
def test_a_uniform_number_is_compared_as_decimals_compare_it(first: int, gamma: Fraction) -> None:
    with localcontext(Context(prec=60)):
        scaled = (-Decimal(gamma.numerator) / Decimal(gamma.denominator)).exp() * 2**32
    if int(scaled) != first:
        assert lies_below_exp(first, gamma) is (first < scaled)


def test_where_the_first_bits_do_not_tell_further_ones_decide_by_chance() -> None:
    gamma = Fraction(1, 3)
    scaled = math.exp(-1 / 3) * 2**32
    first, rest = int(scaled), scaled % 1
    found = sum(lies_below_exp(first, gamma) for _ in range(4000))
    assert abs(found - 4000 * rest) < 5 * math.sqrt(4000 * rest * (1 - rest))


def test_on_a_tie_with_a_threshold_further_bits_decide_by_chance() -> None:
    table = block_table(3.0)
    column = next(c for c in range(BLOCKS) if int(table.alias[c]) != c and c > 0 and 0.2 < table.low[c] / 2**96 < 0.8)
    words = np.full((2, 4000), column, dtype=np.uint64)
    halves = words[1].view(np.uint32)
    halves[0::2], halves[1::2] = table.high[column], 0
    found = accepted(table, words)
    chance = table.low[column] / 2**96
    assert set(found.tolist()) == {column, int(table.alias[column])}
    assert abs(np.sum(found == column) - 4000 * chance) < 5 * math.sqrt(4000 * chance * (1 - chance))


def test_every_candidate_without_an_offset_is_accepted_but_negative_zeros() -> None:
    words = random_words(5000)
    found = accepted(block_table(3.0), words)
    negative = (words[0] >> np.uint64(8)) & np.uint64(1)
    assert 4000 < len(found) < 5000
    assert len(found) >= 5000 - negative.sum()


def test_a_call_spans_chunks_without_repeating_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystream_noise, "CANDIDATES", 64)
    drawn = keystream_gaussian(1000, 2.0**40)
    assert len(set(drawn.tolist())) > 990


def test_threads_draw_every_coordinate_and_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystream_noise, "THREAD_COORDINATES", 300)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    drawn = keystream_gaussian(1000, 2.0**40)
    assert len(set(drawn.tolist())) > 990
