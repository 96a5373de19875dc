"""What the way between a coordinator and its nodes costs: seconds an exchange, and memory of courier and coordinator.

Agents give every message back, so that the time is the transport's own. Our nodes go through gateway, courier and the
agent's socket; the stock node is Flower's SuperNode and ClientApp, which goes to SuperLink itself, past the gateway.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Final

from common.crypto.keys import SigningKey
from common.files import write_atomic
from common.logs import log_tail
from server.outcome import read_outcome
from server.pki import loopback_files
from server.superlink import FlowerDirectory, free_port, installed_program, submit_run
from server.upstate import UpState
from simulations.bench.deployment_app import Job, Moved, read_moved, write_job
from simulations.bench.deployment_ground import Courier, Ground, ground
from simulations.bench.deployment_memory import forget_peak, memory_of

TRIVIAL_BYTES: Final = 1024
UPDATE_BYTES: Final = 44_000_000
JOB_TIMEOUT_S: Final = 900.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanges:
    """Seconds of single exchanges, ours and stock Flower's in turn in one run."""

    ours_s: list[float]
    stock_s: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """Large messages from several sites.

    Attributes:
        round_s: Seconds of each round.
        idle_bytes: The largest courier's resident memory before the first message.
        peak_bytes: The same at its peak while messages pass.
        after_bytes: The same after the last message.
        superlink_bytes: SuperLink's peak.
    """

    round_s: list[float]
    idle_bytes: int
    peak_bytes: int
    after_bytes: int
    superlink_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """The coordinator's memory.

    Attributes:
        peak_bytes: The ServerApp's most resident memory with few and with many sites.
        held_bytes: What it held before.
        superlink_bytes: SuperLink's peak.
    """

    peak_bytes: list[int]
    held_bytes: int
    superlink_bytes: int


def measure_exchanges(rounds: int, progress: Progress, *, stock: bool = True) -> Exchanges:
    """One of our nodes and a stock one, asked in turn; without a stock one ours alone."""
    progress(f"exchange: {rounds} rounds of our courier" + (" and of a stock SuperNode, in turn" if stock else ""))
    with ground() as place:
        couriers, state = _served(place, 2 if stock else 1)
        with _nodes(place, couriers[:1]):
            for courier in couriers[1:]:
                _start_stock(place, courier, state)
            moved = _moved(place, Job(nodes=len(couriers), size_bytes=TRIVIAL_BYTES, rounds=rounds))
    return Exchanges(ours_s=moved.ours_s, stock_s=moved.stock_s)


def measure_updates(rounds: int, progress: Progress, *, sites: int = 4, size_bytes: int = UPDATE_BYTES) -> Updates:
    """Several of our nodes, asked at once: each gets a message of that size and sends one back."""
    progress(f"updates: {rounds} rounds of {size_bytes / 1e6:g} MB there and back, {sites} sites")
    with ground() as place:
        couriers, _ = _served(place, sites)
        with _nodes(place, couriers) as processes:
            superlink = place.process_of("flower-superlink")
            idle = max(memory_of(process).resident_bytes for process in processes)
            for process in processes:
                forget_peak(process)
            moved = _moved(place, Job(nodes=sites, size_bytes=size_bytes, rounds=rounds))
            found = [memory_of(process) for process in processes]
            return Updates(
                round_s=moved.ours_s,
                idle_bytes=idle,
                peak_bytes=max(memory.peak_bytes for memory in found),
                after_bytes=max(memory.resident_bytes for memory in found),
                superlink_bytes=memory_of(superlink).peak_bytes,
            )


def measure_sums(few: int, many: int, progress: Progress, *, size_bytes: int = UPDATE_BYTES) -> Sums:
    """The ServerApp's memory while it sums the updates of few sites, then of many, in one run."""
    progress(f"sums: {size_bytes / 1e6:g} MB updates of {few} sites, then of {many}")
    with ground() as place:
        couriers, _ = _served(place, many)
        with _nodes(place, couriers):
            superlink = place.process_of("flower-superlink")
            moved = _moved(place, Job(nodes=many, size_bytes=size_bytes, rounds=2, parts=(few, many)))
            return Sums(
                peak_bytes=moved.peak_bytes,
                held_bytes=moved.held_bytes,
                superlink_bytes=memory_of(superlink).peak_bytes,
            )


def median(seconds: list[float]) -> float:
    """The median; raises ValueError for an empty list."""
    if not seconds:
        raise ValueError("nothing was measured")
    return statistics.median(seconds)


def log_of_run(place: Ground) -> str:
    """The end of what the executor and the ServerApp wrote."""
    return log_tail(FlowerDirectory(root=place.server.flower).log("superexec"))


def _served(place: Ground, nodes: int) -> tuple[list[Courier], UpState]:
    """Couriers of nodes that are enrolled, and the running coordinator."""
    couriers = place.enrol({f"node-{number:02d}": SigningKey.generate() for number in range(nodes)})
    state = place.serve()
    text = (resources.files("simulations") / "bench" / "fab" / "pyproject.toml").read_text(encoding="utf-8")
    bundle = FlowerDirectory(root=place.server.flower).bundle / "pyproject.toml"
    write_atomic(bundle, text.replace("bench.trivial_app", "bench.deployment_app").encode())
    return couriers, state


@contextmanager
def _nodes(place: Ground, couriers: list[Courier]) -> Iterator[list[int]]:
    """Couriers with agents that give everything back; the ids of the couriers' processes."""
    for courier in couriers:
        command = (sys.executable, "-P", "-m", "simulations.bench.deployment_echo", str(courier.socket))
        place.start(f"agent-{courier.name}", *command)
    place.wait_until(lambda: all(courier.socket.exists() for courier in couriers), "the agents to listen")
    processes = [place.start_courier(courier).pid for courier in couriers]
    place.wait_until(lambda: all(map(place.is_connected, couriers)), "the couriers to be connected")
    yield processes


def _start_stock(place: Ground, courier: Courier, state: UpState) -> None:
    """Flower's SuperNode as its documentation starts it."""
    command = [installed_program("flower-supernode"), "--superlink", state.superlink, "--isolation", "subprocess"]
    command += ["--root-certificates", str(loopback_files(place.server.pki).authority)]
    command += ["--auth-supernode-private-key", str(courier.directory / "node.key")]
    command += ["--host", "127.0.0.1", "--port", str(free_port())]
    place.start("supernode", *command)


def _moved(place: Ground, job: Job) -> Moved:
    run_dir = place.root / "job"
    run_dir.mkdir()
    write_job(run_dir, job)
    submit_run(FlowerDirectory(root=place.server.flower), run_dir=run_dir)
    place.wait_until(lambda: read_outcome(run_dir) is not None, "the job to end", timeout_s=JOB_TIMEOUT_S)
    outcome = read_outcome(run_dir)
    if outcome is not None:
        outcome.raise_error(log=log_of_run(place))
    return read_moved(run_dir)
