"""DP-SGD at one site: a fixed number of steps, each with the site's own full noise."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from client.training.batch import PatientBatch
from client.training.engine import ClippedSumEngine
from common.crypto.ring import Grid, dequantise, quantise

PatientSampler = Callable[[int, float], NDArray[np.int64]]
NoiseSource = Callable[[int, float], NDArray[np.int64]]


def local_training(
    engine: ClippedSumEngine,
    parameters: NDArray[np.float32],
    batch: PatientBatch,
    *,
    steps: int,
    sampling_rate: float,
    learning_rate: float,
    clipping_norm: float,
    nominal_patients: int,
    noise_multiplier: float,
    grid: Grid,
    sample: PatientSampler,
    draw_noise: NoiseSource,
) -> NDArray[np.float32]:
    """How far the site moves the global model: weights after the steps minus weights before.

    Each step is one subsampled Gaussian mechanism with noise multiplier z: the clipped sum over a Poisson sample of the
    patients is put on the integer grid, integer noise of std zΔ is added, and the result is divided by qN₀, which is
    public. The number of steps and of noise draws is fixed; a step without patients moves by noise alone. What
    happens to a sum after its noise is post-processing.
    Source: Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133); the weight change as update, McMahan et al. 2017
    (arXiv:1602.05629).

    Args:
        parameters: Shape (d,), the global model.
        steps: ≥ 1.
        sampling_rate: q in (0, 1], the chance of each patient to be in a step; at 1 everybody is and `sample` rests.
        clipping_norm: C > 0; must be the grid's.
        nominal_patients: N₀ ≥ 1 of this site, public.
        noise_multiplier: z > 0.
        sample: Population size and rate to the chosen indices, from the operating system's randomness.
        draw_noise: Size and std in grid units to fresh integers, from the operating system's randomness.

    Returns:
        Shape (d,); private by the noise of its steps.

    Raises:
        ValueError: If a number is out of range, or grid and model or clipping norm differ.
    """
    if steps < 1 or nominal_patients < 1 or not 0 < sampling_rate <= 1 or not noise_multiplier > 0:
        raise ValueError("steps and nominal_patients are at least 1, sampling_rate in (0, 1], noise_multiplier above 0")
    if grid.clipping_norm != clipping_norm or parameters.shape != (grid.dimension,):
        raise ValueError("the grid is for another model or another clipping norm, so its sensitivity is not this one's")
    start = parameters.astype(np.float64)
    # Kept apart from the model: beside large weights a small step is rounded away, and one site is left alone in a sum.
    change = np.zeros_like(start)
    for _ in range(steps):
        chosen = batch
        if sampling_rate < 1:
            chosen = batch.select(sample(batch.patient_count, sampling_rate))
        total = engine.clipped_sum((start + change).astype(np.float32), chosen, clipping_norm=clipping_norm)
        units = quantise(total, grid)
        units += draw_noise(grid.dimension, noise_multiplier * grid.sensitivity)
        step = dequantise(units, grid)
        step *= learning_rate / (sampling_rate * nominal_patients)
        change -= step
    return change.astype(np.float32)
