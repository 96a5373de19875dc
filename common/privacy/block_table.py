"""How blocks of neighbouring integers are drawn with chances proportional to a Gaussian's, from a table of aliases.

The chances are integers over 2^150, and the thresholds of the aliases 128-bit integers: off by at most 2^-127 together.
No floating point but the scale itself, taken as the rational number that it is. Source: Walker 1977
(doi:10.1145/355744.355749).
"""

import math
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

BLOCKS = 256

_WEIGHT_BITS = 150
_THRESHOLD_BITS = 128
_DIGITS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTable:
    """How blocks are drawn for one scale: column c at random, then c itself below its threshold and else its alias.

    Attributes:
        std: The noise scale, taken as the rational number that the float is.
        shift: log2 of the block width w.
        high: Shape (256,), uint32, the upper 32 bits of each 128-bit threshold.
        low: The lower 96 bits.
        alias: Shape (256,), int64.
    """

    std: float
    shift: int
    high: npt.NDArray[np.uint32]
    low: tuple[int, ...]
    alias: npt.NDArray[np.int64]


@lru_cache(maxsize=32)
def block_table(std: float) -> BlockTable:
    """The table for a scale in (0, 2^40], in integers from decimal numbers of 60 digits."""
    shift = max(0, math.frexp(std)[1] - 4)
    with localcontext(Context(prec=_DIGITS)):
        weights = [
            int((-((Decimal(block << shift) / Decimal(std)) ** 2) / 2).exp() * 2**_WEIGHT_BITS)
            for block in range(BLOCKS)
        ]
    thresholds, alias = _aliases(weights)
    below = _THRESHOLD_BITS - 32
    return BlockTable(
        std=std,
        shift=shift,
        high=np.array([threshold >> below for threshold in thresholds], dtype=np.uint32),
        low=tuple(threshold & ((1 << below) - 1) for threshold in thresholds),
        alias=np.array(alias, dtype=np.int64),
    )


def _aliases(weights: list[int]) -> tuple[list[int], list[int]]:
    """Threshold in units of 2^-128 and alias of each column, rounded down from what is exact."""
    capacity = sum(weights)
    remaining = [weight * len(weights) for weight in weights]
    thresholds, alias = [0] * len(weights), list(range(len(weights)))
    short = [column for column, left in enumerate(remaining) if left < capacity]
    full = [column for column, left in enumerate(remaining) if left >= capacity]
    while short:
        column, donor = short.pop(), full[-1]
        thresholds[column] = (remaining[column] << _THRESHOLD_BITS) // capacity
        alias[column] = donor
        remaining[donor] -= capacity - remaining[column]
        if remaining[donor] < capacity:
            short.append(full.pop())
    return thresholds, alias
