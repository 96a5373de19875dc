"""`fedward bench simulation`: what a simulated job costs apart from its work, against Flower's engine with Ray.

Both sides run the same ServerApp and ClientApp, as whole commands, in turn, on the same machine. The work is an echo,
so that the time is start-up, message passing and the end.
"""

import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import BackendFailed
from simulations.bench.result import BenchResult, BenchRow, machine
from simulations.ray_backend import require_ray

SITES = 100
ROUNDS = 30
SPEED_UP_GOAL = 10.0
ROUNDS_A_SECOND_GOAL = 300.0
STEADY_ROUNDS = 300

_ORDER = ("inline", "ray", "inline", "ray", "inline")
_COMMAND_TIMEOUT_S = 420.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    seconds: float
    rounds_a_second: float


def run_bench(progress: Callable[[str], None]) -> BenchResult:
    """Time the job over both backends, interleaved; medians are compared.

    Args:
        progress: Told in one line what runs next and what the last one took.

    Raises:
        MissingDependency: If Ray is not installed.
        BackendFailed: If a command fails.
    """
    require_ray()
    runs: dict[str, list[_Run]] = {"inline": [], "ray": []}
    for number, backend in enumerate(_ORDER, start=1):
        progress(f"{number} of {len(_ORDER)}: {backend}, {SITES} sites, {ROUNDS} rounds")
        run = _timed_command(backend, ROUNDS)
        runs[backend].append(run)
        progress(f"{backend} took {run.seconds:.2f} s")
    progress(f"inline, {SITES} sites, {STEADY_ROUNDS} rounds")
    steady = _timed_command("inline", STEADY_ROUNDS)
    ours_s, peer_s = (statistics.median(run.seconds for run in runs[name]) for name in ("inline", "ray"))
    peer_rounds = statistics.median(run.rounds_a_second for run in runs["ray"])
    peer = f"Flower {importlib.metadata.version('flwr')} with Ray {importlib.metadata.version('ray')}"
    job = f"{SITES} sites, {ROUNDS} rounds"
    rows = (
        BenchRow(
            case=f"{job}: how many times faster the whole command is",
            value=round(peer_s / ours_s, 2),
            unit="times",
            peer=peer,
            peer_value=1.0,
            goal_op=">=",
            goal_value=SPEED_UP_GOAL,
            kind="hard",
        ),
        BenchRow(
            case=f"{job}: the whole command",
            value=round(ours_s, 3),
            unit="s",
            peer=peer,
            peer_value=round(peer_s, 3),
            goal_op="<=",
            goal_value=round(peer_s / SPEED_UP_GOAL, 3),
            kind="soft",
        ),
        BenchRow(
            case=f"{SITES} sites: rounds once everything is up",
            value=round(steady.rounds_a_second, 1),
            unit="rounds/s",
            peer=peer,
            peer_value=round(peer_rounds, 2),
            goal_op=">=",
            goal_value=ROUNDS_A_SECOND_GOAL,
            kind="soft",
        ),
    )
    return BenchResult(bench="simulation", machine=machine(), rows=rows)


def _timed_command(backend: str, rounds: int) -> _Run:
    """Run the trivial job in a process of its own, from its start to its exit."""
    command = [sys.executable, "-m", "simulations.bench.trivial", "--backend", backend]
    command += ["--sites", str(SITES), "--rounds", str(rounds)]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=True)
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise BackendFailed(f"the {backend} run ended with exit code {error.returncode}", hint="".join(last)) from error
    seconds = time.perf_counter() - start
    return _Run(seconds=seconds, rounds_a_second=rounds / float(json.loads(done.stdout)["seconds"]))
