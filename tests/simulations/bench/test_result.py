import dataclasses
import json
import platform

import pytest

from simulations.bench.result import BenchResult, BenchRow, machine

ROW = BenchRow(
    case="copying 1 MiB",
    value=2.0,
    unit="ms",
    peer="a peer 1.0",
    peer_value=30.0,
    goal_op="<=",
    goal_value=3.0,
    kind="hard",
)


def test_the_document_has_the_keys_of_bench_v1() -> None:
    result = BenchResult(bench="copying", machine="a machine", rows=(ROW,))
    assert json.loads(json.dumps(result.to_json())) == {
        "version": 1,
        "bench": "copying",
        "machine": "a machine",
        "rows": [
            {
                "case": "copying 1 MiB",
                "value": 2.0,
                "unit": "ms",
                "peer": "a peer 1.0",
                "peer_value": 30.0,
                "goal": {"op": "<=", "value": 3.0},
                "kind": "hard",
                "ok": True,
            }
        ],
    }


@pytest.mark.parametrize(
    ("op", "value", "ok"),
    [("<=", 3.0, True), ("<=", 3.1, False), (">=", 3.0, True), (">=", 2.9, False), ("<=", float("nan"), False)],
)
def test_a_goal_is_met_or_missed(op: str, value: float, ok: bool) -> None:
    assert dataclasses.replace(ROW, goal_op=op, value=value).ok is ok  # type: ignore[arg-type]


def test_a_missed_hard_goal_fails_the_benchmark_and_a_soft_one_does_not() -> None:
    missed = dataclasses.replace(ROW, value=9.0)
    assert not BenchResult(bench="b", machine="m", rows=(ROW, missed)).ok
    assert BenchResult(bench="b", machine="m", rows=(ROW, dataclasses.replace(missed, kind="soft"))).ok


def test_the_machine_is_described_without_its_host_name() -> None:
    assert platform.node() not in machine()
    assert platform.python_version() in machine()


def test_the_table_is_aligned_and_shows_goal_and_verdict() -> None:
    missed = dataclasses.replace(ROW, case="copying 2 MiB", value=123.25, peer=None, peer_value=None)
    soft = dataclasses.replace(missed, kind="soft")
    head, *lines = BenchResult(bench="copying", machine="a machine", rows=(ROW, missed, soft)).to_text().splitlines()
    assert head.endswith("copying, a machine")
    assert lines[0].split("  ")[0] == "ok"
    assert "<= 3" in lines[0] and lines[0].endswith("copying 1 MiB (peer: a peer 1.0)")
    assert lines[1].startswith("MISSED") and lines[2].startswith("missed, soft")
    assert len({line.index("copying") for line in (head, *lines)}) == 1
    assert [line.index("ms") for line in lines] == [lines[0].index("ms")] * 3
