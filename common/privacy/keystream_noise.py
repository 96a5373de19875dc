"""Discrete Gaussian noise for large vectors: rejection sampling in integers, vectorised, from an AES keystream.

The integers 0, 1, 2, … are cut into 256 blocks of w neighbours, w = 2^e the largest power of two up to std / 8, or 1. A
candidate is a block b with a chance proportional to exp(-(bw)^2 / 2 std^2), an offset r uniform below w, and a sign. It
is accepted with chance exp(-g), g = r (2bw + r) / 2 std^2, which is at most 1, and a negative zero never. What is
accepted is k = bw + r with its sign, and the product of the two chances is proportional to exp(-k^2 / 2 std^2).

Error. The blocks end at 256 w >= 16 std, beyond which the discrete Gaussian has less than 2 exp(-128) < 2^-183. The
chances of the blocks are integers over 2^150, drawn by a table of aliases whose thresholds are 128-bit integers: off by
at most 2^-127 together. Acceptance is decided exactly. So one coordinate lies within a total variation distance of
2^-120 of the discrete Gaussian, 2^27 of them within 2^-93, and a mechanism that is (epsilon, delta) with exact noise
is (epsilon, delta + (1 + e^epsilon) 2^-93) with this. The keystream adds what tells AES-256 from random: under its
standard assumption at most N^2 / 2^129 for N blocks, 2^-73 for 2^27 coordinates.

Floating point decides nothing here (Mironov 2012, doi:10.1145/2382196.2382264): in float64 exp(-g), with g at most 4,
is off by less than 2^-45, and wherever the uniform number lies nearer than 2^-39 to it, the draw is decided by rational
numbers and as many further random bits as that takes.

Sources: the discrete Gaussian and its tail, Canonne, Kamath, Steinke 2020 (arXiv:2004.00010); proposals from a step
function above the density, Devroye 1986, "Non-Uniform Random Variate Generation", chapter VIII.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.privacy.block_table import BLOCKS, BlockTable, block_table
from common.processors import usable_threads

LARGEST_STD = 2.0**40
CANDIDATES = 1 << 15  # at once: their arrays stay in the processor's cache
SLACK = 0.01  # in units of 2^-32, the uniform number's resolution: far above float64's error, and as rare to meet
THREAD_COORDINATES = 1 << 20  # for fewer a thread of its own does not pay

_OFFSET_BIT = 9  # of a candidate's first word: 8 bits choose a column, the next is the sign, then up to 37 the offset
_TAG_BYTES = 16


def keystream_gaussian(size: int, std: float) -> npt.NDArray[np.int64]:
    """Independent draws from the discrete Gaussian, each within a total variation distance of 2^-120 of it.

    The keystream is AES-256-CTR under a key that the operating system draws for this call and that lives in memory only
    as long. Large vectors are drawn by several threads, each under a key of its own. About 0.015 microseconds a
    coordinate and processor, and 10 milliseconds for a scale not seen before.

    Args:
        size: How many, at least 0. The result takes 8 bytes of each, all else less than 4 MB for each thread.
        std: Scale on the grid, in (0, 2^40].

    Returns:
        Shape (size,).

    Raises:
        ValueError: If a number is outside its range.
    """
    if size < 0:
        raise ValueError(f"noise has at least 0 coordinates, not {size}")
    if not 0 < std <= LARGEST_STD:
        raise ValueError(f"a noise scale lies in (0, 2^40], not {std}")
    table = block_table(std)
    drawn = np.empty(size, dtype=np.int64)
    threads = max(1, min(usable_threads(), size // THREAD_COORDINATES))
    if threads == 1:
        _fill(drawn, table)
        return drawn
    bounds = [size * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        parts = [pool.submit(_fill, drawn[start:stop], table) for start, stop in pairwise(bounds)]
        for part in parts:
            part.result()
    return drawn


def accepted(
    table: BlockTable, words: npt.NDArray[np.uint64], *, slack: float = SLACK, room: "Room | None" = None
) -> npt.NDArray[np.int64]:
    """The accepted among one candidate for each pair of random words, in their order.

    Args:
        table: For the scale wanted.
        words: Shape (2, n), uniform.
        slack: From `SLACK` up; at 2^32 every acceptance is decided by rational numbers.
        room: For at least n candidates; what it holds is lost.
    """
    count = words.shape[1]
    room = (room or Room(count)).of(count)
    first, halves = words[0], words[1].view(np.uint32)
    magnitude, offset, other = room.integers
    keep, some, more = room.flags
    _draw_blocks(table, first, halves[0::2], room)
    magnitude <<= table.shift
    np.right_shift(first, np.uint64(_OFFSET_BIT), out=offset.view(np.uint64))
    offset &= (1 << table.shift) - 1
    _accept(table, halves[1::2], slack, room)
    magnitude += offset
    negative = other
    np.right_shift(first, np.uint64(_OFFSET_BIT - 1), out=negative.view(np.uint64))
    negative &= 1
    np.not_equal(magnitude, 0, out=some)
    np.equal(negative, 0, out=more)
    some |= more
    keep &= some
    np.negative(negative, out=negative)
    magnitude ^= negative  # two's complement: -k is the complement of k, plus one
    magnitude -= negative
    return magnitude[keep]


class Room:
    """Arrays for the candidates of one call: made anew for each they cost as much as what is written into them.

    Attributes:
        integers: Magnitudes, offsets and a third, shape (n,), int64.
        floats: Shape (n,), float64.
        words: Shape (n,), uint32.
        flags: What is accepted, and two others, shape (n,), bool.
    """

    def __init__(self, count: int) -> None:
        self.integers = [np.empty(count, dtype=np.int64) for _ in range(3)]
        self.floats = np.empty(count)
        self.words = np.empty(count, dtype=np.uint32)
        self.flags = [np.empty(count, dtype=np.bool_) for _ in range(3)]

    def of(self, count: int) -> "Room":
        """Its first part, for so many candidates."""
        part = object.__new__(Room)
        part.integers = [values[:count] for values in self.integers]
        part.floats, part.words = self.floats[:count], self.words[:count]
        part.flags = [values[:count] for values in self.flags]
        return part


def lies_below_exp(first: int, gamma: Fraction) -> bool:
    """Whether a uniform number, whose first 32 bits are given, lies below exp(-gamma), gamma >= 0; exact.

    Further bits come from the operating system. Each partial sum of the series of exp(-gamma) from gamma terms on lies
    on the other side of the limit than the one before.
    """
    numerator, bits = first, 32
    partial, term, order = Fraction(1), Fraction(1), 0
    while True:
        before = partial
        order += 1
        term *= -gamma / order
        partial += term
        if order < gamma:
            continue
        low, high = min(before, partial), max(before, partial)
        if Fraction(numerator + 1, 1 << bits) <= low:
            return True
        if Fraction(numerator, 1 << bits) >= high:
            return False
        if order % 8 == 0:  # the bounds are close by now, so the bits known may be what is missing
            numerator = (numerator << 32) | int.from_bytes(os.urandom(4), "big")
            bits += 32


def _fill(drawn: npt.NDArray[np.int64], table: BlockTable) -> None:
    """Draw every coordinate of an array, under a key of its own."""
    stream, room = _Keystream(), Room(min(CANDIDATES, len(drawn) + len(drawn) // 8 + 16))
    filled = 0
    while filled < len(drawn):
        missing = len(drawn) - filled
        words = stream.words(min(CANDIDATES, missing + missing // 8 + 16))
        found = accepted(table, words, room=room)[:missing]
        drawn[filled : filled + len(found)] = found
        filled += len(found)


class _Keystream:
    """AES-256-CTR under a fresh key, by way of AES-GCM over zeros, its fastest form (NIST SP 800-38D, section 6.5)."""

    def __init__(self) -> None:
        self._encrypt_into = AESGCM(os.urandom(32)).encrypt_into
        self._calls = 0
        self._zeros = memoryview(bytes(16 * CANDIDATES))
        self._buffer = bytearray(16 * CANDIDATES + _TAG_BYTES)

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """Shape (2, count), valid until the next call; count at most `CANDIDATES`."""
        size = 16 * count
        self._encrypt_into(
            self._calls.to_bytes(12, "big"), self._zeros[:size], None, memoryview(self._buffer)[: size + _TAG_BYTES]
        )
        self._calls += 1
        return np.frombuffer(self._buffer, dtype=np.uint64, count=2 * count).reshape(2, count)


def _draw_blocks(table: BlockTable, first: npt.NDArray[np.uint64], uniform: npt.NDArray[np.uint32], room: Room) -> None:
    """Write each candidate's block where magnitudes go: its column where the uniform 128-bit number is below, of which
    32 are drawn, and else the alias.
    """
    (block, column, _), (own, tie, _) = room.integers, room.flags
    np.bitwise_and(first, np.uint64(BLOCKS - 1), out=column.view(np.uint64))
    high = table.high.take(column, out=room.words, mode="clip")  # they are in range; the other modes copy once more
    np.less(uniform, high, out=own)
    np.equal(uniform, high, out=tie)
    for place in np.flatnonzero(tie):
        own[place] = int.from_bytes(os.urandom(12), "big") < table.low[column[place]]
    table.alias.take(column, out=block, mode="clip")
    np.copyto(block, column, where=own)


def _accept(table: BlockTable, uniform: npt.NDArray[np.uint32], slack: float, room: Room) -> None:
    """Flag the candidates with u 2^-32, with further bits, below exp(-r (2 start + r) / 2 std^2).

    Integers below 2^46 are exact in float64; two products, a quotient and the square of std, each rounded once, and
    exp to within 2 units in the last place are off by less than 2^-45 at exponents of at most 4.
    """
    (start, offset, sums), exponent, (keep, near, _) = room.integers, room.floats, room.flags
    np.add(start, start, out=sums)
    sums += offset
    np.copyto(exponent, sums)
    exponent *= offset
    exponent *= -0.5 / table.std**2 if table.shift else 0.0
    chance = np.exp(exponent, out=exponent)
    chance *= 2.0**32
    chance -= uniform
    np.greater(chance, 0.5, out=keep)
    chance -= 0.5
    np.abs(chance, out=chance)
    np.less_equal(chance, 0.5 + slack, out=near)
    for doubtful in np.flatnonzero(near):
        r, begin = int(offset[doubtful]), int(start[doubtful])
        gamma = Fraction(r * (2 * begin + r)) / (2 * Fraction(table.std) ** 2)
        keep[doubtful] = lies_below_exp(int(uniform[doubtful]), gamma)
