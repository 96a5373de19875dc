"""How many threads may compute at once."""

import os


def usable_threads() -> int:
    """As many as numpy and torch use: what `OMP_NUM_THREADS` says, or the processors that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
