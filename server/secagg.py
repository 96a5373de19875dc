"""The sum of one attempt: it opens when every site of the cohort has answered, else it stays sealed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.crypto.ring import Grid, dequantise, from_ring
from common.errors import SecureSumAborted


class SealedSum:
    """Adds masked vectors as they come, so that no more than one is held; shows nothing before the last."""

    def __init__(self, *, cohort: Sequence[str], context: str, grid: Grid) -> None:
        self._waiting = set(cohort)
        self._context = context
        self._grid = grid
        self._total = np.zeros(grid.dimension, dtype=np.uint32)

    @property
    def missing(self) -> list[str]:
        """The sites that have not answered."""
        return sorted(self._waiting)

    def add(self, site: str, *, context: str, vector: NDArray[np.uint32]) -> None:
        """Add one site's vector; raises SecureSumAborted for a stranger, a second answer or another context."""
        if site not in self._waiting:
            raise SecureSumAborted(f"{site} is not awaited in this sum")
        if context != self._context:
            raise SecureSumAborted(f"{site} masked its update for another attempt, cohort or model")
        if vector.shape != self._total.shape:
            raise SecureSumAborted(f"{site} sent {vector.size} coordinates, the model has {self._total.size}")
        self._total += vector
        self._waiting.remove(site)

    def open(self) -> NDArray[np.float64]:
        """The sum over the whole cohort, shape (d,); raises SecureSumAborted while anyone is missing."""
        if self._waiting:
            raise SecureSumAborted(f"{len(self._waiting)} sites are missing: the masks do not cancel")
        return dequantise(from_ring(self._total), self._grid)
