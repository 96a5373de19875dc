"""What `fedward bench deployment` moves: bytes between a ServerApp and nodes, so that the time is the transport's own.

The ServerApp asks our nodes as the coordinator does and the stock node as Flower's users do, one exchange of each in
turn. A stock node runs `client_app` out of Flower's own SuperNode; our nodes never run it, since a courier runs no code
that comes with a run: behind it `simulations.bench.deployment_echo` answers.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common.canonical import canonical_json
from common.errors import BackendFailed
from common.files import write_atomic
from common.flower import pack, unpack
from server.app import run_directory
from server.exchange import GridExchange
from server.outcome import outcome_written
from simulations.bench.deployment_memory import forget_peak, memory_of_self

JOB_FILE: Final = "job.json"
RESULT_FILE: Final = "result.json"
STOCK_ANSWER: Final = b"stock"
PROBE: Final = b"who is there?"
WAIT_S: Final = 180.0

server_app = ServerApp()
client_app = ClientApp()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to move.

    Attributes:
        nodes: How many are waited for, stock and ours together.
        size_bytes: Length of each body, there and back; a multiple of 4.
        rounds: Exchanges that count; one more comes first and does not.
        parts: How many of our nodes take part, for each stage; by default one stage with all of them.
    """

    nodes: int
    size_bytes: int
    rounds: int
    parts: tuple[int, ...] = ()


@dataclass(slots=True, kw_only=True)
class Moved:
    """What was measured.

    Attributes:
        ours_s: Seconds of each exchange with all of our nodes that took part, in the order of stages and rounds.
        stock_s: The same with the stock node; empty without one.
        peak_bytes: For each stage the most resident memory that the ServerApp's process had.
        held_bytes: What that process held before the first stage.
    """

    ours_s: list[float] = field(default_factory=list)
    stock_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    held_bytes: int = 0


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Do the job that lies in the run's directory and leave what was measured there."""
    run_dir = run_directory(context)
    with outcome_written(run_dir):
        job = Job(**json.loads((run_dir / JOB_FILE).read_bytes()))
        exchange = GridExchange(grid)
        nodes = exchange.wait_for_nodes(job.nodes, timeout_s=WAIT_S)
        if len(nodes) < job.nodes:
            raise BackendFailed(f"{len(nodes)} of {job.nodes} nodes came up within {WAIT_S:g} s")
        moved = _move(job, grid, exchange, nodes)
        write_atomic(run_dir / RESULT_FILE, canonical_json(asdict(moved)))


@client_app.query()
def echo(message: Message, context: Context) -> Message:
    """Say at the first message that this is the stock chain; give the bytes back from then on."""
    body = unpack(message.content)
    return Message(pack(STOCK_ANSWER if body == PROBE else body), reply_to=message)


def write_job(run_dir: Path, job: Job) -> None:
    """Put a job where `serve` looks for it."""
    write_atomic(run_dir / JOB_FILE, canonical_json(asdict(job)))


def read_moved(run_dir: Path) -> Moved:
    """What `serve` left."""
    found: dict[str, Any] = json.loads((run_dir / RESULT_FILE).read_bytes())
    return Moved(**found)


def _move(job: Job, grid: Grid, exchange: GridExchange, nodes: list[int]) -> Moved:
    answers = exchange.exchange(dict.fromkeys(nodes, PROBE), timeout_s=WAIT_S)
    silent = [node for node, answer in answers.items() if answer is None]
    if silent:
        raise BackendFailed(f"{len(silent)} of {len(nodes)} nodes do not answer: {exchange.failures}")
    stock = [node for node, answer in answers.items() if answer == STOCK_ANSWER]
    ours = [node for node in nodes if node not in stock]
    moved, warm_up = Moved(held_bytes=memory_of_self().resident_bytes), 1
    for part in job.parts or (len(ours),):
        forget_peak()
        for round_number in range(warm_up + job.rounds):
            body = round_number.to_bytes(4, "little") * (job.size_bytes // 4)
            ours_s = _ask_ours(exchange, ours[:part], body)
            stock_s = [_ask_stock(grid, node, body) for node in stock]
            if round_number >= warm_up:
                moved.ours_s.append(ours_s)
                moved.stock_s += stock_s
        moved.peak_bytes.append(memory_of_self().peak_bytes)
    return moved


def _ask_ours(exchange: GridExchange, nodes: list[int], body: bytes) -> float:
    """Ask as the coordinator does: one reply at a time is fetched, added and dropped."""
    total = np.zeros(len(body) // 4, dtype=np.uint32)
    start = time.perf_counter()
    for node, reply in exchange.replies(dict.fromkeys(nodes, body), timeout_s=WAIT_S):
        if reply is None or len(reply) != len(body):
            raise BackendFailed(f"a node gave no usable reply: {exchange.failures.get(node, 'another length')}")
        total += np.frombuffer(reply, dtype="<u4")
        del reply
    seconds = time.perf_counter() - start
    if not np.array_equal(total[:1], np.frombuffer(body[:4], dtype="<u4") * np.uint32(len(nodes))):
        raise BackendFailed("the sum of the replies is not the sum of what was sent")
    return seconds


def _ask_stock(grid: Grid, node: int, body: bytes) -> float:
    """Ask as Flower's documentation does: send_and_receive."""
    message = Message(pack(body), dst_node_id=node, message_type="query")
    start = time.perf_counter()
    replies = list(grid.send_and_receive([message], timeout=WAIT_S))
    seconds = time.perf_counter() - start
    if len(replies) != 1 or replies[0].has_error() or unpack(replies[0].content) != body:
        raise BackendFailed("the stock node gave no usable reply")
    return seconds
