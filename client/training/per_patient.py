"""The gradients of every patient in one layer, in the three forms whose norms and weighted sums are cheap.

Each form answers two questions: how long is each patient's part, and what is the sum of the parts, each times its
patient's factor. The answers belong together: a factor that was computed from the norms bounds exactly what is summed.

- `Instantiated`: one gradient a patient, as an array. Its norm is the float64 sum of squares of that very array, and
  the weighted sum is taken in float64, so that nothing needs to be known about the rounding that made the array.
- `RankOne`: one position a patient, whose gradient g ⊗ a has the norm |g||a|.
- `OuterProducts`: a sum of outer products over positions t. With A = a·aᵀ and G = g·gᵀ the squared norm is
  Σ A_ts G_ts, which needs no gradient ("ghost norm": Goodfellow 2015, arXiv:1510.01799; Li et al. 2022,
  arXiv:2110.05679; mixed with instantiation, Bu et al. 2022, arXiv:2205.10683).

Why ghost norms are safe here. The sum Σ A_ts G_ts can cancel: a hostile model makes it nearly zero for gradients that
are not, and in float32 a "clipped" patient then contributed 28-35 C. Let S = Σ_t |a_t||g_t|, u = 2⁻⁵³ and n the number
of terms of the longest sum. A and G are formed in float64 from the recorded numbers, so that the computed square
differs from the true one by at most about n·u·S² (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
section 3.1, with |A_ts G_ts| ≤ |a_t||a_s||g_t||g_s|). The norm that clips is

    safe² = max(0, computed) + (κS)²,   κ² = max(1e-8, 4·n·u),

which is never below the true square, and at most 0.005 % too long where S is a hundred times the norm. It also gives
factor · S ≤ C/κ ≤ 1e4 C. The weighted sum is one float64 product over all K positions of the chunk, whose error in
norm is at most K·u·Σ_i factor_i·S_i, hence at most K·u·1e4 C for each patient of the chunk: with the largest K that
is met in practice, 4,096, that is 4.5e-9 C a patient against the worst model, and 4.5e-13·S/norm C against others.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

SAFETY = 1e-8  # κ², relative to S²
UNIT_ROUNDOFF = 2.0**-53
LARGE_PRODUCT = 1 << 19  # multiplications of one patient from which a call of its own costs less than float64
VALUES_AT_ONCE = 1 << 20  # per-record values turned into float64 at a time: they stay in the processor's cache
BLOCK_VALUES = 1 << 16  # of all patients together, where one buffer is written again and again


class PerPatientGradients(Protocol):
    """Parts of P patients in one or two neighbouring parameters of a layer.

    Attributes:
        parameters: How many parameters these are.
    """

    @property
    def parameters(self) -> int: ...

    def squared_norms(self) -> torch.Tensor:
        """Shape (P,), float64: never below the squared norm of the patient's part; NaN or infinite if it has none."""
        ...

    def silence(self, patients: torch.Tensor) -> None:
        """Replace the parts of these patients, bool (P,), by zeros, so that a factor of zero does not meet a NaN."""
        ...

    def add_weighted_sum(self, factors: torch.Tensor, totals: Sequence[torch.Tensor]) -> None:
        """Add the sum over patients of factor times part, float64 (P,), to one float64 array for each parameter."""
        ...


class Instantiated:
    """One array a patient for each parameter."""

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        """Take arrays of shape (P, *parameter)."""
        self._parts = [part.reshape(len(part), -1) for part in parts]

    @property
    def parameters(self) -> int:
        """See `PerPatientGradients`."""
        return len(self._parts)

    @property
    def size_bytes(self) -> int:
        """What the arrays take in memory."""
        return sum(part.nbytes for part in self._parts)

    def squared_norms(self) -> torch.Tensor:
        """See `PerPatientGradients.squared_norms`."""
        return torch.stack([_squares_of_columns(part) for part in self._parts]).sum(0)

    def silence(self, patients: torch.Tensor) -> None:
        """See `PerPatientGradients.silence`."""
        self._parts = [part.masked_fill(patients[:, None], 0.0) for part in self._parts]

    def add_weighted_sum(self, factors: torch.Tensor, totals: Sequence[torch.Tensor]) -> None:
        """See `PerPatientGradients.add_weighted_sum`."""
        for part, total in zip(self._parts, totals, strict=True):
            flat = total.view(-1)
            for columns, block in _in_double(part):
                flat[columns].addmv_(block.mT, factors)


class FormedProducts(Instantiated):
    """Σ_t g_t ⊗ a_t, formed for each patient so that the place of the patient changes nothing.

    A batched product in float32 rounds a patient by where the patient stands in memory. Where the gradient cancels
    between positions nothing but that rounding is left, and one patient who leaves then turned everybody else's: the
    sum moved by 208 C with 400 patients of 8 records. Two ways, by size:

    - Large products on a CPU are taken one patient at a time from the same two buffers into the same third: the same
      call on the same numbers at the same addresses, so its result is the patient's alone. The norm is that of what
      came out, which is what is summed.
    - Others are exact products with float64 sums, and the norm has κS in it as in `OuterProducts`, so that a place
      changes a contribution by about T·u·1e4 C at most. S is bounded by Cauchy and Schwarz, S² ≤ Σ|a_t|² Σ|g_t|², and a
      number that goes in is in at most `taps` of the a_t.
    """

    def __init__(self, columns: torch.Tensor, inputs: torch.Tensor, gradients: torch.Tensor, *, taps: int) -> None:
        """Take the vectors a_t, the layer's inputs they are made of, and g of shape (P, groups, T, out).

        Args:
            columns: Shape (P, …): for each patient, in order, the numbers of an array (groups, in, T). May be a view in
                which numbers stand more than once.
            taps: How many of a patient's vectors a_t one number of the inputs is in, at most.
        """
        patients, groups, positions, _ = gradients.shape
        width = columns[0].numel() // (groups * positions)
        self._hidden: torch.Tensor | None = None
        if gradients.device.type == "cpu" and gradients[0].numel() * width >= LARGE_PRODUCT:
            super().__init__([_one_by_one(gradients.mT, columns, width=width)])
            return
        rows = columns.reshape(patients, groups, width, positions).mT
        super().__init__([torch.matmul(gradients.double().mT, rows.double())])
        went_in, came_back = (
            torch.linalg.vector_norm(part.reshape(len(gradients), -1), dim=1, dtype=torch.float64)
            for part in (inputs, gradients)
        )
        safety = taps * max(SAFETY, 4 * positions * UNIT_ROUNDOFF)
        self._hidden = (went_in * came_back).square_() * safety

    def squared_norms(self) -> torch.Tensor:
        """See `PerPatientGradients.squared_norms`; above by what rounding could have hidden."""
        squares = super().squared_norms()
        return squares if self._hidden is None else squares.add_(self._hidden)


class RankOne:
    """g ⊗ [a, 1] for one position a patient: a weight, a bias, or both."""

    def __init__(self, inputs: torch.Tensor, gradients: torch.Tensor, *, weight: bool, bias: bool) -> None:
        """Take a of shape (P, in) and g of shape (P, out)."""
        self._inputs = inputs
        self._gradients = gradients
        self._weight = weight
        self._bias = bias

    @property
    def parameters(self) -> int:
        """See `PerPatientGradients`."""
        return self._weight + self._bias

    def squared_norms(self) -> torch.Tensor:
        """See `PerPatientGradients.squared_norms`."""
        lengths = _squares_of_columns(self._gradients)
        if not self._weight:
            return lengths
        return lengths * _squares_of_columns(self._inputs).add_(float(self._bias))

    def silence(self, patients: torch.Tensor) -> None:
        """See `PerPatientGradients.silence`."""
        self._inputs = self._inputs.masked_fill(patients[:, None], 0.0)
        self._gradients = self._gradients.masked_fill(patients[:, None], 0.0)

    def add_weighted_sum(self, factors: torch.Tensor, totals: Sequence[torch.Tensor]) -> None:
        """See `PerPatientGradients.add_weighted_sum`."""
        gradients = self._gradients.double()
        if self._bias:
            totals[-1].addmv_(gradients.mT, factors)
        if self._weight and self._inputs.shape[1] < gradients.shape[1]:  # there are fewer numbers to weight
            totals[0].addmm_(gradients.mT, self._inputs * factors[:, None])
        elif self._weight:
            totals[0].addmm_((gradients * factors[:, None]).mT, self._inputs.double())


class PositionLayout(Protocol):
    """How a layer's inputs, shape (n, …), become the vectors a_t, in the two orders that are quick to make."""

    def rows(self, inputs: torch.Tensor) -> torch.Tensor:
        """By patient: shape (P, groups, T, in)."""
        ...

    def matrices(self, inputs: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All K = P·T positions in one row: (groups, in, K), and g (P, groups, T, out) as (groups, out, K) likewise."""
        ...


class OuterProducts:
    """Σ_t g_t ⊗ a_t over the positions of a patient, never formed for one patient alone."""

    def __init__(self, layout: PositionLayout, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take the layer's inputs, shape (n, …), and g of shape (P, groups, T, out).

        The vectors a are made twice, for the norms and for the sum, because to keep them costs more memory than all
        the rest.
        """
        self._layout = layout
        self._inputs = inputs
        self._gradients = gradients

    @property
    def parameters(self) -> int:
        """See `PerPatientGradients`."""
        return 1

    def squared_norms(self) -> torch.Tensor:
        """See `PerPatientGradients.squared_norms`; a bound that is above by what rounding could have hidden."""
        rows = self._layout.rows(self._inputs)
        positions = rows.shape[-2]
        each = rows[0].numel() + self._gradients[0].numel() + 2 * len(rows[0]) * positions**2
        step = 1 << max(0, (VALUES_AT_ONCE // each).bit_length() - 1)
        blocks = zip(torch.split(rows, step), torch.split(self._gradients, step), strict=True)
        return torch.cat([self._squared_norms(a.double(), g.double()) for a, g in blocks])

    def _squared_norms(self, inputs: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        terms = inputs.shape[-1] + gradients.shape[-1] + inputs.shape[-2] ** 2
        input_products, gradient_products = _gram(inputs), _gram(gradients)
        diagonals = torch.diagonal(input_products, dim1=-2, dim2=-1) * torch.diagonal(
            gradient_products, dim1=-2, dim2=-1
        )
        spread = diagonals.sqrt().sum(-1)
        squares = input_products.mul_(gradient_products).sum((-2, -1)).clamp_(min=0.0)
        return squares.add_(spread.square_(), alpha=max(SAFETY, 4 * terms * UNIT_ROUNDOFF)).sum(1)

    def silence(self, patients: torch.Tensor) -> None:
        """See `PerPatientGradients.silence`."""
        self._gradients = self._gradients.masked_fill(patients[:, None, None, None], 0.0)
        records = patients.repeat_interleave(len(self._inputs) // len(patients))
        self._inputs = self._inputs.masked_fill(records.view(-1, *[1] * (self._inputs.dim() - 1)), 0.0)

    def add_weighted_sum(self, factors: torch.Tensor, totals: Sequence[torch.Tensor]) -> None:
        """See `PerPatientGradients.add_weighted_sum`."""
        weighted = self._gradients * factors[:, None, None, None]
        inputs, gradients = self._layout.matrices(self._inputs, weighted)
        total = totals[0].view(len(gradients), gradients.shape[1], inputs.shape[1])
        step = max(1, VALUES_AT_ONCE // inputs.shape[1])
        for group, (left, right) in enumerate(zip(gradients, inputs, strict=True)):
            for some_left, some_right in zip(
                torch.split(left, step, dim=1), torch.split(right, step, dim=1), strict=True
            ):
                total[group].addmm_(some_left, some_right.double().mT)


class EmbeddingRows:
    """Σ_t g_t at the row that position t looked up: outer products with unit vectors, which are never formed."""

    def __init__(self, indices: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take indices of shape (P, T) and g of shape (P, T, width), zero where the row is not trained."""
        self._indices = indices
        self._gradients = gradients.double()

    @property
    def parameters(self) -> int:
        """See `PerPatientGradients`."""
        return 1

    def squared_norms(self) -> torch.Tensor:
        """See `PerPatientGradients.squared_norms`."""
        same_row = self._indices[:, :, None] == self._indices[:, None, :]
        products = _gram(self._gradients)
        spread = torch.diagonal(products, dim1=-2, dim2=-1).sqrt().sum(-1)
        squares = (products * same_row).sum((-2, -1)).clamp_(min=0.0)
        terms = self._gradients.shape[-1] + self._indices.shape[1] ** 2
        return squares.add_(spread.square_(), alpha=max(SAFETY, 4 * terms * UNIT_ROUNDOFF))

    def silence(self, patients: torch.Tensor) -> None:
        """See `PerPatientGradients.silence`."""
        self._gradients = self._gradients.masked_fill(patients[:, None, None], 0.0)

    def add_weighted_sum(self, factors: torch.Tensor, totals: Sequence[torch.Tensor]) -> None:
        """See `PerPatientGradients.add_weighted_sum`."""
        weighted = self._gradients * factors[:, None, None]
        totals[0].index_add_(0, self._indices.reshape(-1), weighted.reshape(-1, weighted.shape[-1]))


def _one_by_one(left: torch.Tensor, columns: torch.Tensor, *, width: int) -> torch.Tensor:
    """left·aᵀ for each patient: (P, groups, out, T) and columns of (groups, in, T) to (P, groups, out, in)."""
    patients, groups, height, positions = left.shape
    products = left.new_empty((patients, groups, height, width))
    shapes = ((groups, height, positions), (groups, width, positions), (groups, height, width))
    gradients, vectors, result = (torch.empty(shape, dtype=left.dtype) for shape in shapes)
    filled = vectors.view(columns.shape[1:])
    for some_left, some_columns, product in zip(left, columns, products, strict=True):
        gradients.copy_(some_left)
        filled.copy_(some_columns)
        torch.bmm(gradients, vectors.mT, out=result)
        product.copy_(result)
    return products


def _in_double(rows: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The columns of a matrix in float64, some at a time: all from one buffer, so use each before the next."""
    count, width = rows.shape
    step = max(1, min(width, BLOCK_VALUES // max(1, count)))
    buffer = rows.new_empty((count, step), dtype=torch.float64)
    for start in range(0, width, step):
        columns = slice(start, min(start + step, width))
        block = buffer[:, : columns.stop - start]
        yield columns, block.copy_(rows[:, columns])


def _squares_of_columns(rows: torch.Tensor) -> torch.Tensor:
    """Squared length of each row, in float64."""
    if not rows.shape[1]:
        return rows.new_zeros(len(rows), dtype=torch.float64)
    squares: torch.Tensor = sum(_squares(block) for _, block in _in_double(rows))  # type: ignore[assignment]
    return squares


def _squares(rows: torch.Tensor) -> torch.Tensor:
    """Squared length of each row of a float64 matrix."""
    lengths: torch.Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths.square_()


def _gram(rows: torch.Tensor) -> torch.Tensor:
    """All inner products of positions: (…, T, width) to (…, T, T)."""
    if rows.dim() == 4 and rows.shape[1] == 1:  # the batched product of three dimensions takes strided rows as they are
        return torch.bmm(rows[:, 0], rows[:, 0].mT)[:, None]
    return torch.matmul(rows, rows.mT)
