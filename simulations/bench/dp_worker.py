"""The process in which one case of `fedward bench dp` is measured; prints one JSON document.

    python -m simulations.bench.dp_worker time CASE REPEATS      seconds of each piece of work, all contestants in turn
    python -m simulations.bench.dp_worker memory CASE NAME       bytes that a step needs at its peak
    python -m simulations.bench.dp_worker cuda CASE REPEATS      the GPU beside the CPU

Threads are what `OMP_NUM_THREADS` says, for torch, numpy and Fedward's engine.
"""

import ctypes
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import opacus  # noqa: F401  # before memory is measured
import torch

from client.device import DeviceName
from simulations.bench.dp_cases import CASES, Case
from simulations.bench.dp_contestants import CLIPPING_NORM, CONTESTANTS, contestants_of, engine_for, flat_parameters

LEAST_SECONDS = 0.03  # of one measurement: short work is done several times


def timings(case: Case, repeats: int) -> dict[str, list[float]]:
    """Seconds of one piece of work, `repeats` times for each contestant, in turn, each time after one unmeasured."""
    works = {name: CONTESTANTS[name](case).work for name in contestants_of(case)}
    counts = {name: _how_often(work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            work()  # the one before has left its threads busy and the caches full
            seconds[name].append(_seconds(work, counts[name]))
    return seconds


def memory_growth(case: Case, name: str) -> int:
    """Bytes that a step needs at its peak, beyond what the process holds between steps.

    The contestant has done a step before, so that no library loads its kernels while it is watched, and has let go of
    its gradients. Freed memory is given back, or it would hide growth. Only the first contestant of a process is
    measured right.
    """
    contestant = CONTESTANTS[name](case)
    contestant.work()
    contestant.rest()
    _give_back_freed_memory()
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    contestant.work()
    return _status_bytes("VmHWM") - before


def agreement(case: Case, device: DeviceName) -> float:
    """Largest difference between a device's clipped sum and the CPU's, relative to the sum's norm."""
    parameters, data = flat_parameters(case.build()), case.data()
    sums = [
        engine_for(case, device=place).clipped_sum(parameters, data, clipping_norm=CLIPPING_NORM)
        for place in ("cpu", device)
    ]
    return float(np.linalg.norm(sums[1] - sums[0]) / np.linalg.norm(sums[0]))


def throughput(case: Case, device: DeviceName, repeats: int) -> float:
    """Records a second of the clipped sum alone, by the median."""
    parameters, data = flat_parameters(case.build()), case.data()
    engine = engine_for(case, device=device)

    def work() -> None:
        engine.clipped_sum(parameters, data, clipping_norm=CLIPPING_NORM)

    work()
    return case.records / float(np.median([_seconds(work, 1) for _ in range(repeats)]))


def main(arguments: Sequence[str]) -> None:
    """Measure what the arguments say and print it."""
    what, case, last = arguments[0], CASES[arguments[1]], arguments[2]
    warnings.simplefilter("ignore")  # Opacus warns that records need no gradient, at every step
    if os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    found: dict[str, object]
    if what == "time":
        found = {
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.is_available(),
            "seconds": timings(case, int(last)),
        }
    elif what == "memory":
        found = {"bytes": memory_growth(case, last)}
    else:
        found = {
            "device": torch.cuda.get_device_name(),
            "difference": agreement(case, "cuda"),
            "records_a_second": {place: throughput(case, place, int(last)) for place in ("cuda", "cpu")},
        }
    sys.stdout.write(json.dumps(found) + "\n")


def _how_often(work: Callable[[], None]) -> int:
    work()
    return max(1, round(LEAST_SECONDS / _seconds(work, 1)))


def _seconds(work: Callable[[], None], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - start) / count


def _give_back_freed_memory() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps of freed memory would hide growth


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main(sys.argv[1:])
