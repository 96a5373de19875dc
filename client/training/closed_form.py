"""Clipped sums for a linear head, whose per-record gradient (p - y) ⊗ [x, 1] is known without a backward pass.

One record a patient: the norm of an outer product is the product of the norms, and the clipped sum is one matrix
product. Several records: the patient's mean gradient is formed, because a norm put together from inner products
(a Gram matrix) can cancel until nothing is left of a large gradient.

All in float64: products of float32 are exact there, and no finite input overflows. Float32 would be faster, but a
patient who leaves moves all later ones to other places in their chunks, so that the rounding of every chunk may change,
by up to n 2^-24 of its n patients' clipped gradients. For 10,000 patients in chunks of 256 that is 0.15 C, where the
margin is 1e-4 C; in float64 it is 3e-10 C.

A hostile model turns even float64's last bits into another prediction, if a record is large and two logits cancel. So a
record's logits must not depend on its row, or a patient who leaves would move all later ones. BLAS computes the last
rows of a product by other kernels than the rest. Each product therefore has one fixed number of rows, a multiple of
16, filled up with zeros: then all rows came out the same bits in every place (187 shapes of up to 2,049 inputs and 31
classes, OpenBLAS 0.3.31, AVX-512), where without it every second shape had some that did not.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from client.training.batch import PatientBatch
from client.training.engine import clipping_factors, gives_zeros
from common.model import dimension, softmax, split_parameters
from common.plan import ModelSection
from common.processors import usable_threads

CHUNK_RECORDS = 512  # at most, of one record each: their float64 copy stays in the processor's cache
CHUNK_VALUES = 1 << 19  # float64 values of gradients, or of records, held at once where patients have several
CHUNKS_PER_THREAD = 4  # with fewer, starting a thread is not worth it

_PRODUCT = 1 << 18  # multiplications of one matrix product: OpenBLAS starts no threads of its own for so few
_ROW_STEP = 16
_FEWEST_ROWS = 3 * _ROW_STEP  # of one matrix product

_Rows = NDArray[np.int64]
_Sums = NDArray[np.float64]
_Number = TypeVar("_Number", np.float32, np.int64)


class ClosedFormEngine:
    """A `ClippedSumEngine` for `head = "linear"`, in numpy, on as many threads as `OMP_NUM_THREADS` or processors."""

    def __init__(self, model: ModelSection, classes: int) -> None:
        if model.head != "linear":
            raise ValueError(f"the closed form is for a linear head, not {model.head!r}")
        self._model = model
        self._classes = classes
        self._dimension = dimension(model, classes)
        self._threads = usable_threads()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="clipped-sum")  # starts them when needed

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

        def sum_of(chunks: Sequence[_Rows]) -> _Sums:
            total = np.zeros_like(weight)
            for rows in chunks:
                features, labels = _taken(batch.features, rows), _taken(batch.labels, rows)
                if rows.shape[1] == 1:
                    total += _sum_of_outer_products(features[:, 0], labels[:, 0], weight, clipping_norm)
                else:
                    total += _sum_of_means(features, labels, weight, clipping_norm)
            return total

        total = self._on_threads(sum_of, list(_chunks(batch, weight.size)))
        return np.concatenate([total[:, :-1].ravel(), total[:, -1]])

    def _on_threads(self, sum_of: Callable[[Sequence[_Rows]], _Sums], chunks: Sequence[_Rows]) -> _Sums:
        """The sum over all chunks: by one thread, or by several with neighbouring chunks each, added in their order."""
        threads = max(1, min(self._threads, len(chunks) // CHUNKS_PER_THREAD))
        if threads == 1:
            return sum_of(chunks)
        bounds = [len(chunks) * part // threads for part in range(threads + 1)]
        parts = [chunks[start:stop] for start, stop in pairwise(bounds)]
        others = [self._pool.submit(sum_of, part) for part in parts[1:]]
        sums = [sum_of(parts[0]), *(other.result() for other in others)]
        return np.asarray(np.sum(sums, axis=0))


def _chunks(batch: PatientBatch, gradient_values: int) -> Iterator[_Rows]:
    """Rows, of shape (patients, r), of whole patients that have r records each."""
    starts = batch.starts()
    counts = np.diff(starts)
    for count in np.unique(counts):
        first_rows = starts[:-1][counts == count]
        if count == 1:
            product_rows = _product_rows(gradient_values)
            size = CHUNK_RECORDS // product_rows * product_rows
        else:
            size = max(1, CHUNK_VALUES // max(gradient_values, int(count) * batch.features.shape[1]))
        for start in range(0, len(first_rows), size):
            yield first_rows[start : start + size, None] + np.arange(count)


def _product_rows(gradient_values: int) -> int:
    """Rows of every product with a weight of this size, at most `CHUNK_RECORDS`."""
    return min(max(_PRODUCT // gradient_values // _ROW_STEP * _ROW_STEP, _FEWEST_ROWS), CHUNK_RECORDS)


def _taken(values: NDArray[_Number], rows: NDArray[np.int64]) -> NDArray[_Number]:
    """The values of the rows, shape (*rows.shape, …); without a copy where they are neighbours in memory."""
    first, last = rows[0, 0], rows[-1, -1]
    if last - first + 1 == rows.size:
        return values[first : last + 1].reshape(*rows.shape, *values.shape[1:])
    return values[rows]


def _sum_of_outer_products(
    features: NDArray[np.float32], labels: NDArray[np.int64], weight: NDArray[np.float64], clipping_norm: float
) -> NDArray[np.float64]:
    """For patients of one record: features (n, width), labels (n,) and weight to (classes, width + 1)."""
    count, step = len(features), _product_rows(weight.size)
    products = -(-count // step)
    records = np.empty((products * step, features.shape[1] + 1))
    records[:count, :-1] = features
    records[:count, -1] = 1.0
    records[count:] = 0.0
    columns = np.ascontiguousarray(weight.T)
    logits = np.empty((len(records), len(weight)))
    stacked = records.reshape(products, step, -1)
    np.matmul(stacked, columns, out=logits.reshape(products, step, -1))
    residuals = np.ascontiguousarray(logits.T)  # what is done for each record now runs along memory
    residuals -= residuals.max(axis=0)
    np.exp(residuals, out=residuals)
    residuals /= residuals.sum(axis=0)
    residuals[labels, np.arange(count)] -= 1.0
    norms = np.sqrt(np.vecdot(records, records)) * np.sqrt(np.square(residuals).sum(axis=0))
    residuals *= clipping_factors(norms, clipping_norm=clipping_norm)
    sums = residuals.reshape(len(weight), products, step).swapaxes(0, 1) @ stacked  # rows of zeros add nothing
    return np.asarray(sums.sum(axis=0))


def _sum_of_means(
    features: NDArray[np.float32], labels: NDArray[np.int64], weight: NDArray[np.float64], clipping_norm: float
) -> NDArray[np.float64]:
    """For patients of r records: features (n, r, width), labels (n, r) and weight to (classes, width + 1)."""
    records = np.empty((*features.shape[:-1], features.shape[-1] + 1))
    records[..., :-1] = features
    records[..., -1] = 1.0
    residuals = softmax(records @ weight.T)
    residuals -= labels[..., None] == np.arange(len(weight))
    means = residuals.swapaxes(1, 2) @ records / records.shape[1]
    flat = means.reshape(len(means), -1)
    factors = clipping_factors(np.sqrt(np.vecdot(flat, flat)), clipping_norm=clipping_norm)
    return np.asarray(np.tensordot(factors, means, axes=1))
