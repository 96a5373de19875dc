"""The ServerApp of `superlink_harness`: it looks for orders, exchanges bytes with all nodes, writes what became of it.

An order is {"nodes": count to wait for, "size": bytes, "rounds": n, "timeout_s": s}; with "body" (a path) the bytes of
a file are sent, with "bomb" an array that declares so many bytes and repeats one piece. It is shipped as a FAB.
"""

import json
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.serverapp import Grid, ServerApp

from server.exchange import GridExchange

PIECE_BYTES = 5 << 20

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Take orders until there is a file named stop."""
    orders = Path(str(context.run_config["orders"]))
    number = 1
    while not (orders / "stop").exists():
        path = orders / f"order-{number}.json"
        if not path.exists():
            time.sleep(0.05)
            continue
        result = carry_out(grid, json.loads(path.read_text()), orders / f"reply-{number}")
        new = orders / f"result-{number}.new"
        new.write_text(json.dumps(result))
        new.rename(orders / f"result-{number}.json")
        number += 1


def carry_out(grid: Grid, order: dict, replies: Path) -> dict:
    """One order: seconds of each round, and of the last one each node's reply (its length, or null) and failures."""
    exchange = GridExchange(grid)
    nodes = exchange.wait_for_nodes(order.get("nodes", 1), timeout_s=order.get("wait_s", 90))
    if "bomb" in order:
        return defuse(grid, nodes, order["bomb"], order["timeout_s"])
    body = Path(order["body"]).read_bytes() if "body" in order else b"\x5a" * order.get("size", 1024)
    seconds, answers = [], {}
    for _ in range(order.get("rounds", 1)):
        start = time.perf_counter()
        answers = exchange.exchange(dict.fromkeys(nodes, body), timeout_s=order.get("timeout_s", 60))
        seconds.append(time.perf_counter() - start)
    for node, answer in answers.items():
        if answer is not None:
            replies.with_name(f"{replies.name}-{node}").write_bytes(answer)
    return {
        "nodes": nodes,
        "seconds": seconds,
        "replies": {str(node): None if answer is None else len(answer) for node, answer in answers.items()},
        "echoed": all(answer == body for answer in answers.values()),
        "failures": sorted(exchange.failures.values()),
    }


def defuse(grid: Grid, nodes: list[int], declared: int, timeout_s: float) -> dict:
    """Send one piece that is declared to be repeated until it makes up the declared size."""
    array = Array("uint8", (declared,), "fedward.raw", bytes(PIECE_BYTES))
    chunk = ArrayChunk(memoryview(array.data))
    array.__dict__["_chunks"] = [(chunk.object_id, chunk)] * max(declared // PIECE_BYTES, 1)
    record = ArrayRecord()
    record["body"] = array
    sent = grid.push_messages(
        [Message(RecordDict({"fedward": record}), dst_node_id=node, message_type="query") for node in nodes]
    )
    waiting, reasons, deadline = set(sent), [], time.monotonic() + timeout_s
    while waiting and time.monotonic() < deadline:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            reasons.append(reply.error.reason if reply.has_error() else "a reply")
        time.sleep(0.1)
    return {"nodes": nodes, "failures": sorted(reasons)}
