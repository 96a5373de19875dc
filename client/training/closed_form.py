"""Clipped sums for a linear head, whose per-record gradient (p - y) ⊗ [x, 1] is known without a backward pass.

One record a patient: the norm of an outer product is the product of the norms, and the clipped sum is one matrix
product. Several records: the patient's mean gradient is formed, because a norm put together from inner products
(a Gram matrix) can cancel until nothing is left of a large gradient. All in float64: products of float32 are exact
there, and no finite input overflows.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from client.training.batch import PatientBatch
from client.training.engine import clipping_factors, gives_zeros
from common.model import dimension, softmax, split_parameters
from common.plan import ModelSection

CHUNK_RECORDS = 256  # of one record each: their float64 copy stays in the processor's cache
CHUNK_VALUES = 1 << 19  # float64 values of gradients, or of records, held at once where patients have several


class ClosedFormEngine:
    """A `ClippedSumEngine` for `head = "linear"`, in numpy."""

    def __init__(self, model: ModelSection, classes: int) -> None:
        if model.head != "linear":
            raise ValueError(f"the closed form is for a linear head, not {model.head!r}")
        self._model = model
        self._classes = classes
        self._dimension = dimension(model, classes)

    def clipped_sum(
        self, parameters: NDArray[np.float32], batch: PatientBatch, *, clipping_norm: float
    ) -> NDArray[np.float64]:
        """See `ClippedSumEngine.clipped_sum`."""
        if gives_zeros(
            parameters,
            batch,
            dimension=self._dimension,
            inputs=self._model.inputs,
            classes=self._classes,
            clipping_norm=clipping_norm,
        ):
            return np.zeros(self._dimension)
        parts = split_parameters(self._model, self._classes, parameters)
        weight = np.column_stack([parts["head.weight"], parts["head.bias"]]).astype(np.float64)
        total = np.zeros_like(weight)
        for features, labels in _chunks(batch, gradient_values=weight.size):
            records = _with_one(features)
            residuals = softmax(records @ weight.T)
            residuals -= labels[..., None] == np.arange(self._classes)
            if labels.shape[1] == 1:
                total += _sum_of_outer_products(records[:, 0], residuals[:, 0], clipping_norm)
            else:
                total += _sum_of_means(records, residuals, clipping_norm)
        return np.concatenate([total[:, :-1].ravel(), total[:, -1]])


def _chunks(batch: PatientBatch, *, gradient_values: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Features (patients, r, width) and labels (patients, r) of whole patients that have r records each."""
    starts = batch.starts()
    counts = np.diff(starts)
    for count in np.unique(counts):
        first_rows = starts[:-1][counts == count]
        record_values = int(count) * batch.features.shape[1]
        size = CHUNK_RECORDS if count == 1 else max(1, CHUNK_VALUES // max(gradient_values, record_values))
        for start in range(0, len(first_rows), size):
            rows = first_rows[start : start + size, None] + np.arange(count)
            first, last = rows[0, 0], rows[-1, -1]
            if last - first + 1 == rows.size:  # neighbours in memory: no copy
                run = slice(first, last + 1)
                yield batch.features[run].reshape(*rows.shape, -1), batch.labels[run].reshape(rows.shape)
            else:
                yield batch.features[rows], batch.labels[rows]


def _with_one(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """The records in float64 with a last coordinate of 1, whose weight is the bias."""
    records = np.empty((*features.shape[:-1], features.shape[-1] + 1))
    records[..., :-1] = features
    records[..., -1] = 1.0
    return records


def _sum_of_outer_products(
    records: NDArray[np.float64], residuals: NDArray[np.float64], clipping_norm: float
) -> NDArray[np.float64]:
    """For patients of one record: records (n, width + 1) and residuals (n, classes) to (classes, width + 1)."""
    norms = _row_norms(records) * _row_norms(residuals)
    residuals *= clipping_factors(norms, clipping_norm=clipping_norm)[:, None]
    return np.asarray(residuals.T @ records)


def _sum_of_means(
    records: NDArray[np.float64], residuals: NDArray[np.float64], clipping_norm: float
) -> NDArray[np.float64]:
    """For patients of r records: (n, r, width + 1) and (n, r, classes) to (classes, width + 1)."""
    means = residuals.swapaxes(1, 2) @ records / records.shape[1]
    factors = clipping_factors(_row_norms(means.reshape(len(means), -1)), clipping_norm=clipping_norm)
    return np.asarray(np.tensordot(factors, means, axes=1))


def _row_norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The L2 norm of each row, by products of a row with itself, which is faster than `einsum`."""
    return np.asarray(np.sqrt((rows[:, None, :] @ rows[:, :, None])[:, 0, 0]))
