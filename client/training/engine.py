"""The clipped sum of per-patient gradients: one interface, and which implementation fits a model."""

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from client.training.batch import PatientBatch
from common.model import dimension
from common.plan import ModelSection

CLIPPING_MARGIN = 1e-4
PARAMETER_LIMIT = 1e4


class ClippedSumEngine(Protocol):
    """Sums what each patient wants of the model, no patient louder than the clipping norm.

    Guarantees, for every batch and every model, also hostile ones:
    - The contribution of one patient is the mean of the cross-entropy gradients of their records, shortened to an L2
      norm of at most C(1 - 1e-4); the norm is a float64 sum of squares over the parts that are summed.
    - A contribution that is NaN or infinite is replaced by zero and leaves the others as they are.
    - With one patient more or less, the other contributions stay the same up to rounding, which the margin of 1e-4 is
      for. The sum is formed in float64.
    - A model that is not finite or exceeds ±`PARAMETER_LIMIT` gives zeros: at that size rounding could outgrow the
      margin, and whether it happens depends on the public model only.
    - An empty batch gives zeros.

    Source: DP-SGD, Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133), with the patient in place of the record.
    """

    def clipped_sum(
        self, parameters: NDArray[np.float32], batch: PatientBatch, *, clipping_norm: float
    ) -> NDArray[np.float64]:
        """The sum over the batch's patients.

        Args:
            parameters: Shape (d,), in the layout of `common.model`.
            batch: Whole patients.
            clipping_norm: C > 0.

        Returns:
            Shape (d,), finite.

        Raises:
            ValueError: If a shape, a type or the number of classes does not fit the model, or C is not positive.
        """
        ...


def choose_engine(
    model: ModelSection, classes: int, *, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> tuple[ClippedSumEngine, str]:
    """The fastest engine that is right for the model, and why in one sentence.

    Raises:
        ConfigurationError: If no engine can train the model, or the device is not there.
    """
    if model.head == "linear":
        from client.training.closed_form import ClosedFormEngine

        return ClosedFormEngine(model, classes), "closed form: the gradient of a linear head is one outer product"
    from client.training.opacus_hooks import OpacusHooksEngine
    from common.model import build_module

    module = build_module(model, classes, np.zeros(dimension(model, classes), dtype=np.float32))
    engine = OpacusHooksEngine(module, inputs=model.inputs, classes=classes, device=device)
    return engine, f"Opacus hooks on {engine.device}: a {model.head!r} head needs the gradient of every record"


def gives_zeros(
    parameters: NDArray[np.float32],
    batch: PatientBatch,
    *,
    dimension: int,
    inputs: tuple[int, ...],
    classes: int,
    clipping_norm: float,
) -> bool:
    """Whether the sum is zero before any gradient is computed; raises ValueError if the arguments do not fit."""
    if parameters.dtype != np.float32 or parameters.shape != (dimension,):
        raise ValueError(f"parameters are float32 of shape ({dimension},), not {parameters.dtype} {parameters.shape}")
    if not (np.isfinite(clipping_norm) and clipping_norm > 0):
        raise ValueError(f"a clipping norm is positive and finite, not {clipping_norm}")
    if batch.classes != classes:
        raise ValueError(f"a batch of {batch.classes} classes does not fit a model of {classes}")
    if batch.patient_count == 0:
        return True
    if batch.features.shape[1:] != inputs:
        raise ValueError(f"features of shape (…, {batch.features.shape[1:]}) do not fit a model of {inputs}")
    return not bool((np.abs(parameters) <= PARAMETER_LIMIT).all())


def clipping_factors(norms: NDArray[np.float64], *, clipping_norm: float) -> NDArray[np.float64]:
    """What to multiply contributions of these norms with, in [0, 1]; 0 only where the norm is NaN or infinite."""
    bound = clipping_norm * (1.0 - CLIPPING_MARGIN)
    return np.where(np.isfinite(norms), bound / np.maximum(norms, bound), 0.0)
