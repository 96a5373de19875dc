"""The integers that are noised and summed: a site's float total on a public grid, and sums modulo 2**32."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MODULUS = 2**32
HALF_RING = 2**31
LARGEST_SCALE = 2**24
SMALLEST_SCALED_CLIP = 2**10
LARGEST_ROUNDING_SHARE = 0.01
SMALLEST_SHARE_STD = 8.0
SMALLEST_CLAMP_IN_CLIPS = 8
TAIL_SIGMAS = 12.0

_BLOCK = 2**15  # coordinates quantised at once: the work stays in the processor's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How floats become integers. Public: every site of a run uses the same grid.

    Attributes:
        scale: Grid units per one unit of the total (s), a power of two from 1 to 2**24, so that scaling is exact.
        clamp: Largest absolute coordinate that one site contributes (B), in grid units, below 2**31.
        dimension: Number of coordinates (d).
        clipping_norm: Largest L2 norm of one patient's contribution (C), in units of the total.
    """

    scale: int
    clamp: int
    dimension: int
    clipping_norm: float

    def __post_init__(self) -> None:
        if not (1 <= self.scale <= LARGEST_SCALE and self.scale.bit_count() == 1):
            raise ValueError(f"a grid's scale is a power of two from 1 to {LARGEST_SCALE}, not {self.scale}")
        if not 1 <= self.clamp < HALF_RING:
            raise ValueError(f"a grid's clamp is from 1 to {HALF_RING - 1}, not {self.clamp}")
        if self.dimension < 1:
            raise ValueError(f"a grid has at least one dimension, not {self.dimension}")
        if not (math.isfinite(self.clipping_norm) and self.clipping_norm > 0):
            raise ValueError(f"a clipping norm is positive and finite, not {self.clipping_norm}")

    @property
    def sensitivity(self) -> float:
        """L2 sensitivity of `quantise` in grid units, sC + √d: see there for the proof."""
        return self.scale * self.clipping_norm + math.sqrt(self.dimension)

    def share_std(self, *, noise_multiplier: float, noise_shares: int) -> float:
        """Standard deviation of one site's noise in grid units, zΔ/√h, if h honest shares make up the promise z."""
        return noise_multiplier * self.sensitivity / math.sqrt(noise_shares)


def choose_grid(
    *,
    dimension: int,
    clipping_norm: float,
    sites: int,
    nominal_patients: int,
    noise_multiplier: float,
    noise_shares: int,
) -> Grid:
    """The finest grid on which the noisy sum of all sites does not wrap around.

    Holds for the result: sites · clamp + 12 zΔ·√(sites/h) < 2**31, where the second term is twelve standard deviations
    of all sites' noise together, so a coordinate of the sum wraps with a chance below 2·exp(-72). The scale is the
    largest power of two up to 2**24 at which the clamp can be ⌈s·C·N₀⌉, which no total of N₀ clipped patients passes.
    If none is small enough and still allowed, the smallest allowed scale is taken and the clamp shrinks to what fits;
    then it may bite, which costs accuracy, never privacy.

    Args:
        dimension: d ≥ 1.
        clipping_norm: C > 0.
        sites: Most sites that one sum holds, ≥ 1.
        nominal_patients: N₀ ≥ 1, public.
        noise_multiplier: z > 0, promised with only h shares of noise counted.
        noise_shares: h, from 1 to `sites`.

    Raises:
        ValueError: If an argument is out of range, or no scale has sC ≥ 2**10 and √d ≤ 0.01·sC and zΔ/√h ≥ 8, or the
            clamp would fall below 8·⌈sC⌉. The message names number and limit.
    """
    _check_arguments(clipping_norm, sites, nominal_patients, noise_multiplier, noise_shares)
    refusal, coarsest = "", None
    for exponent in range(LARGEST_SCALE.bit_length() - 1, -1, -1):
        grid = Grid(scale=2**exponent, clamp=1, dimension=dimension, clipping_norm=clipping_norm)
        refusal = _too_coarse(grid, grid.share_std(noise_multiplier=noise_multiplier, noise_shares=noise_shares))
        if refusal:
            break
        coarsest = grid
        room = _clamp_that_fits(grid, sites, noise_multiplier, noise_shares)
        wanted = grid.scale * clipping_norm * nominal_patients
        if wanted <= room:
            return _with_clamp(grid, math.ceil(wanted))
    if coarsest is None:
        raise ValueError(f"no grid is fine enough: at the largest scale 2**24, {refusal}")
    clamp = _clamp_that_fits(coarsest, sites, noise_multiplier, noise_shares)
    least = SMALLEST_CLAMP_IN_CLIPS * math.ceil(coarsest.scale * clipping_norm)
    if clamp < least:
        raise ValueError(
            f"the sum of {sites} sites does not fit below 2**31: at scale {coarsest.scale} the clamp would be "
            f"{max(clamp, 0)}, and the least is {least} (8 clipping norms)"
        )
    return _with_clamp(coarsest, clamp)


def quantise(total: NDArray[np.float64], grid: Grid) -> NDArray[np.int64]:
    """Put a site's clipped total on the grid: clamp each coordinate to ±B, truncate toward zero.

    Guarantee: for any two totals a and b, ‖Q(a) - Q(b)‖₂ ≤ s‖a - b‖₂ + √d. If b lacks one patient of a, then
    ‖a - b‖₂ ≤ C, and the L2 sensitivity is `grid.sensitivity` = sC + √d.

    Proof. Scaling by a power of two and clamping at B/s are exact in float64, and clamping never moves two numbers
    apart, so it is enough to look at the truncation of x = s·aᵢ and y = s·bᵢ. If they have opposite signs, then
    |trunc x - trunc y| = |trunc x| + |trunc y| ≤ |x| + |y| = |x - y|. If they have the same sign, each lost part lies
    in [0, 1) on the same side of zero, so |trunc x - trunc y| < |x - y| + 1. Hence each coordinate differs by at most
    s|aᵢ - bᵢ| + 1, and the triangle inequality over d coordinates adds ‖(1, …, 1)‖₂ = √d. ∎

    The error of *forming* a and b in floats is not part of this bound: patients are clipped at C(1 - 1e-4) for it.

    Args:
        total: Shape (d,), float64, every value finite.
        grid: The run's grid.

    Returns:
        Shape (d,), each value within ±B.

    Raises:
        ValueError: If shape or type differ, or a value is NaN or infinite: then the clipping before did not hold, and
            nothing is known about the sensitivity.
    """
    if total.dtype != np.float64 or total.shape != (grid.dimension,):
        raise ValueError(f"a total is float64 of shape ({grid.dimension},), not {total.dtype} of shape {total.shape}")
    limit = grid.clamp / grid.scale
    units = np.empty(grid.dimension, dtype=np.int64)
    bounded = np.empty(min(_BLOCK, grid.dimension), dtype=np.float64)
    for start in range(0, grid.dimension, _BLOCK):
        block = total[start : start + _BLOCK]
        if not np.isfinite(block).all():
            raise ValueError("a total has NaN or infinite coordinates")
        scaled = bounded[: block.size]
        np.clip(block, -limit, limit, out=scaled)
        np.multiply(scaled, grid.scale, out=scaled)
        units[start : start + _BLOCK] = scaled  # assigning floats to integers truncates toward zero
    return units


def dequantise(units: NDArray[np.int64], grid: Grid) -> NDArray[np.float64]:
    """A sum on the grid as floats again, in units of the total; exact below 2**53."""
    return units / np.float64(grid.scale)


def to_ring(units: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Each integer modulo 2**32."""
    if units.dtype != np.int64:
        raise ValueError(f"grid units are int64, not {units.dtype}")
    return units.astype(np.uint32)


def from_ring(residues: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The representative of each residue in [-2**31, 2**31)."""
    if residues.dtype != np.uint32:
        raise ValueError(f"residues are uint32, not {residues.dtype}")
    return residues.view(np.int32).astype(np.int64)


def _check_arguments(
    clipping_norm: float, sites: int, nominal_patients: int, noise_multiplier: float, noise_shares: int
) -> None:
    if not (math.isfinite(clipping_norm) and clipping_norm > 0):
        raise ValueError(f"a clipping norm is positive and finite, not {clipping_norm}")
    if sites < 1:
        raise ValueError(f"a sum has at least one site, not {sites}")
    if nominal_patients < 1:
        raise ValueError(f"the nominal number of patients is at least 1, not {nominal_patients}")
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(f"a noise multiplier is positive and finite, not {noise_multiplier}")
    if not 1 <= noise_shares <= sites:
        raise ValueError(f"the noise shares counted on are from 1 to {sites} sites, not {noise_shares}")


def _too_coarse(grid: Grid, share_std: float) -> str:
    """Why the grid is too coarse for its noise and its clipping norm; empty if it is not."""
    scaled_clip, rounding = grid.scale * grid.clipping_norm, math.sqrt(grid.dimension)
    if scaled_clip < SMALLEST_SCALED_CLIP:
        return f"the clipping norm is {scaled_clip:.6g} grid units, and the least is {SMALLEST_SCALED_CLIP}"
    if rounding > LARGEST_ROUNDING_SHARE * scaled_clip:
        return (
            f"rounding adds √d = {rounding:.6g} to the sensitivity, and the most is {LARGEST_ROUNDING_SHARE} of the "
            f"clipping norm, {LARGEST_ROUNDING_SHARE * scaled_clip:.6g} grid units"
        )
    if share_std < SMALLEST_SHARE_STD:
        return f"a noise share has a std of {share_std:.6g} grid units, and the least is {SMALLEST_SHARE_STD:g}"
    return ""


def _clamp_that_fits(grid: Grid, sites: int, noise_multiplier: float, noise_shares: int) -> int:
    """The largest B that leaves room for the noise of all sites; not positive if that alone does not fit."""
    share_std = grid.share_std(noise_multiplier=noise_multiplier, noise_shares=noise_shares)
    tail = TAIL_SIGMAS * share_std * math.sqrt(sites)
    return (HALF_RING - 1 - math.ceil(min(tail, HALF_RING))) // sites


def _with_clamp(grid: Grid, clamp: int) -> Grid:
    return Grid(scale=grid.scale, clamp=clamp, dimension=grid.dimension, clipping_norm=grid.clipping_norm)
