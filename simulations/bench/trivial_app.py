"""A federated job that does nothing but move bytes, so that its time is the backend's own."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.app import answer
from common.canonical import canonical_json
from common.errors import BackendFailed
from common.files import write_atomic
from server.app import run_directory
from server.exchange import GridExchange
from server.outcome import outcome_written

JOB_FILE = "job.json"
RESULT_FILE = "result.json"

server_app = ServerApp()
client_app = ClientApp()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrivialJob:
    """What to move.

    Attributes:
        sites: Nodes that take part.
        rounds: Exchanges with every node.
        size_bytes: Length of each body.
        longest_pause_s: Longest wait between two looks for replies.
    """

    sites: int
    rounds: int
    size_bytes: int
    longest_pause_s: float


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Send every node the same bytes in each round and check that they come back."""
    run_dir = run_directory(context)
    with outcome_written(run_dir):
        job = TrivialJob(**json.loads((run_dir / JOB_FILE).read_bytes()))
        exchange = GridExchange(grid, longest_pause_s=job.longest_pause_s)
        nodes = exchange.wait_for_nodes(job.sites, timeout_s=60)
        if len(nodes) < job.sites:
            raise BackendFailed(f"{len(nodes)} of {job.sites} nodes came up within 60 s")
        with _timed() as seconds:
            for round_number in range(job.rounds):
                body = round_number.to_bytes(4) * (job.size_bytes // 4)
                replies = exchange.exchange(dict.fromkeys(nodes, body), timeout_s=120)
                if any(reply != body for reply in replies.values()):
                    raise BackendFailed(f"round {round_number}: {exchange.failures or 'a reply differs'}")
        document = {"exchanges": job.rounds * len(nodes), "seconds": seconds[0]}
        write_atomic(run_dir / RESULT_FILE, canonical_json(document))


@client_app.query()
def echo(message: Message, context: Context) -> Message:
    """Give the bytes back, through the same packing as the real ClientApp's."""
    return answer(message, bytes)


def write_job(run_dir: Path, job: TrivialJob) -> None:
    """Put a job where `serve` looks for it."""
    fields = {name: getattr(job, name) for name in TrivialJob.__dataclass_fields__}
    write_atomic(run_dir / JOB_FILE, canonical_json(fields))


def read_result(run_dir: Path) -> dict[str, float]:
    """`exchanges` and the `seconds` that they took, from the first sending to the last reply."""
    return dict(json.loads((run_dir / RESULT_FILE).read_bytes()))


@contextmanager
def _timed() -> Iterator[list[float]]:
    seconds: list[float] = []
    start = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - start)
