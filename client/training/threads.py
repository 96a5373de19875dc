"""Threads that each compute whole pieces of work, side by side, with their share of torch's threads.

torch splits single operations over its threads, which small layers and copies do not repay. Threads with a chunk of
patients each do, because torch and numpy let go of the interpreter while they compute.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")


class Workers:
    """A fixed number of threads; with one, the caller's own. They end when nobody holds the object any more.

    Attributes:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        """Start them: each takes `count` equal parts of the caller's torch threads, at least one."""
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        if count == 1:
            return
        threads, started = torch.get_num_threads(), Barrier(count)

        def settle() -> None:
            torch.get_num_threads()  # torch tells a thread its number when first asked, which would undo the next line
            torch.set_num_threads(max(1, threads // count))

        self._pool = ThreadPoolExecutor(count, thread_name_prefix="clipped-sum", initializer=settle)
        list(self._pool.map(lambda _: started.wait(), range(count)))
        torch.set_num_threads(threads)  # of this thread, where nothing changed, and of threads yet to come

    def map(self, work: Callable[..., _Result], *arguments: Iterable[Any]) -> list[_Result]:
        """What `work` returns for each, in order; an exception is raised here when all have ended."""
        if self._pool is None:
            return list(map(work, *arguments))
        futures = [self._pool.submit(work, *some) for some in zip(*arguments, strict=False)]
        wait(futures)
        return [future.result() for future in futures]
