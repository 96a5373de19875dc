import json
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from client.agent_channel import AgentChannel
from common.errors import BackendFailed, ConfigurationError
from common.processes import family
from simulations.bench.deployment import (
    CASES,
    agent_rows,
    coordinator_rows,
    exchange_rows,
    head_rows,
    many_rows,
    run_bench,
    sum_rows,
    update_rows,
)
from simulations.bench.deployment_app import Job, Moved, read_moved, write_job
from simulations.bench.deployment_federation import AgentMemory, Federated, measure_agent
from simulations.bench.deployment_ground import ground
from simulations.bench.deployment_memory import forget_peak, memory_of, memory_of_self
from simulations.bench.deployment_transport import Exchanges, Sums, Updates, measure_exchanges
from simulations.cli import bench

MB = 10**6


def silent(line: str) -> None:
    """Nobody listens."""


def federated(**changes: object) -> Federated:
    facts = {"sites": 3, "parameters": 10_000, "rounds": 10, "round_s": [1.0, 3.0, 2.0], "pair_bytes": 500 * MB}
    facts |= {"coordinator_bytes": 300 * MB, "superlink_bytes": 400 * MB}
    return Federated(**{**facts, **changes})  # type: ignore[arg-type]


def test_an_exchange_has_two_hard_goals_its_seconds_and_its_share_of_stock_flowers():
    seconds, share = exchange_rows(Exchanges(ours_s=[0.5, 0.6, 9.0], stock_s=[6.0, 3.0, 6.2]))
    assert (seconds.value, seconds.goal_value, seconds.peer_value, seconds.kind) == (0.6, 0.7, 6.0, "hard")
    assert (share.value, share.goal_value, share.kind, share.ok) == (0.1, 0.2, "hard", True)
    slow, large = exchange_rows(Exchanges(ours_s=[1.3], stock_s=[6.0]))
    assert not slow.ok and not large.ok


def test_a_round_may_take_a_second_more_than_an_exchange_that_computes_nothing():
    (row,) = head_rows(federated(), 1.1)
    assert (row.value, row.goal_value, row.ok) == (2.0, 2.1, True)
    assert not head_rows(federated(), 0.9)[0].ok


def test_a_couriers_memory_is_held_against_the_size_of_the_message():
    found = Updates(
        round_s=[11.0, 13.0, 11.5],
        idle_bytes=96 * MB,
        peak_bytes=561 * MB,
        after_bytes=130 * MB,
        superlink_bytes=900 * MB,
    )
    round_, idle, peak, after, superlink = update_rows(found)
    assert (round_.value, round_.ok, idle.ok) == (11.5, True, True)
    assert (peak.goal_value, peak.kind, peak.ok) == (560.0, "hard", False)
    assert (after.kind, superlink.kind) == ("soft", "soft")


def test_a_coordinator_that_held_every_update_would_miss_the_goal():
    flat, _ = sum_rows(Sums(peak_bytes=[240 * MB, 250 * MB], held_bytes=100, superlink_bytes=1))
    assert (flat.kind, flat.ok) == ("hard", True)
    holding, _ = sum_rows(Sums(peak_bytes=[240 * MB, (240 + 6 * 11) * MB], held_bytes=100, superlink_bytes=1))
    assert not holding.ok
    real, _ = coordinator_rows(federated(), federated(sites=8, coordinator_bytes=(300 + 5 * 11) * MB))
    assert (real.kind, real.ok) == ("hard", False)


def test_an_agent_and_many_sites_have_a_hard_goal_each():
    held, peak = agent_rows(AgentMemory(held_bytes=701 * MB, peak_bytes=800 * MB))
    assert (held.kind, held.ok, peak.kind) == ("hard", False, "soft")
    rounds, *rest = many_rows(federated(sites=20, rounds=9))
    assert (rounds.kind, rounds.goal_op, rounds.ok) == ("hard", ">=", False)
    assert {row.kind for row in rest} == {"soft"}


def test_an_unknown_case_is_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="exchange, head, updates"):
        run_bench(silent, cases=["speed"])
    result = CliRunner().invoke(bench, ["deployment", "--help"])
    assert all(case in result.stdout for case in CASES)


def test_without_the_networks_weights_the_case_is_left_out_and_said_so(tmp_path):
    said: list[str] = []
    assert measure_agent(said.append, tmp_path / "none.safetensors") is None
    assert "skipped" in said[0]


def test_memory_that_a_process_takes_and_its_peak_are_seen():
    before = memory_of_self()
    taken = mmap.mmap(-1, 30 * MB)  # pages of its own, and none that the process had before
    np.frombuffer(taken, dtype=np.uint8)[:] = 1
    held = memory_of_self()
    assert held.resident_bytes - before.resident_bytes > 25 * MB
    del taken
    assert memory_of_self().peak_bytes >= held.resident_bytes - MB
    forget_peak()
    assert memory_of(os.getpid()).peak_bytes < held.peak_bytes


def test_a_process_that_is_gone_has_no_memory():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(ProcessLookupError):
        memory_of(gone.pid)


def test_a_job_and_what_was_measured_come_back_as_they_were_written(tmp_path):
    write_job(tmp_path, Job(nodes=2, size_bytes=8, rounds=3, parts=(1, 2)))
    document = json.loads((tmp_path / "job.json").read_bytes())
    assert (document["nodes"], document["parts"]) == (2, [1, 2])
    moved = Moved(ours_s=[0.5], stock_s=[6.0], peak_bytes=[1], held_bytes=2)
    (tmp_path / "result.json").write_text(
        json.dumps({"ours_s": [0.5], "stock_s": [6.0], "peak_bytes": [1], "held_bytes": 2})
    )
    assert read_moved(tmp_path) == moved


@pytest.mark.deployment
def test_the_echo_agent_answers_as_an_agent_does_and_a_fall_is_told_and_nothing_stays():
    with ground() as place:
        root, socket = place.root, place.root / "s" / "a.sock"
        place.start("agent", sys.executable, "-P", "-m", "simulations.bench.deployment_echo", str(socket))
        place.wait_until(socket.exists, "the agent to listen")
        with AgentChannel(socket) as channel:
            assert channel.handle(b"an envelope", 10.0) == b"an envelope"
        assert family(str(root))
        place.start("falls", sys.executable, "-c", "import sys; sys.exit(7)")
        with pytest.raises(BackendFailed, match="falls ended with exit code 7"):
            place.wait_until(lambda: False, "what never comes")
    assert not root.exists()
    assert not family(str(root))


@pytest.mark.slow
@pytest.mark.deployment
def test_our_exchange_is_several_times_faster_than_stock_flowers_in_one_run():
    found = measure_exchanges(2, silent)
    assert (len(found.ours_s), len(found.stock_s)) == (2, 2)
    assert max(found.ours_s) < min(found.stock_s)
