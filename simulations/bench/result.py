"""What a benchmark found, in the shape of bench v1: rows with a value, a peer's value and a goal."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

BENCH_VERSION = 1

GoalOperator = Literal["<=", ">="]
GoalKind = Literal["hard", "soft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One comparison.

    Attributes:
        case: What was done, with its size.
        value: Ours, in `unit`.
        unit: Unit of both values.
        peer: Name and version of what it is compared with; None where only the goal counts.
        peer_value: The peer's, measured on the same machine in the same run; None likewise.
        goal_op: How `value` must stand to `goal_value`.
        goal_value: The goal, in `unit`.
        kind: A missed hard goal fails the benchmark; a soft one is only shown.
    """

    case: str
    value: float
    unit: str
    peer: str | None
    peer_value: float | None
    goal_op: GoalOperator
    goal_value: float
    kind: GoalKind

    @property
    def ok(self) -> bool:
        """Whether the goal is met; never with a NaN."""
        return self.value <= self.goal_value if self.goal_op == "<=" else self.value >= self.goal_value

    def to_json(self) -> dict[str, Any]:
        """The row of bench v1."""
        return {
            "case": self.case,
            "value": self.value,
            "unit": self.unit,
            "peer": self.peer,
            "peer_value": self.peer_value,
            "goal": {"op": self.goal_op, "value": self.goal_value},
            "kind": self.kind,
            "ok": self.ok,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """All rows of one benchmark on one machine.

    Attributes:
        bench: The benchmark's name on the command line.
        machine: Where it ran; see `machine`.
        rows: In the order in which they are shown.
    """

    bench: str
    machine: str
    rows: tuple[BenchRow, ...]

    @property
    def ok(self) -> bool:
        """Whether every hard goal is met."""
        return all(row.ok for row in self.rows if row.kind == "hard")

    def to_json(self) -> dict[str, Any]:
        """The document of bench v1."""
        return {
            "version": BENCH_VERSION,
            "bench": self.bench,
            "machine": self.machine,
            "rows": [row.to_json() for row in self.rows],
        }

    def to_text(self) -> str:
        """The rows for a terminal: verdict, value, goal and peer's value in columns, what was done at the end."""
        cells = [("", "value", "goal", "peer", f"{self.bench}, {self.machine}")]
        cells += [_cells(row) for row in self.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        lines = []
        for verdict, value, goal, peer, case in cells:
            columns = (verdict.ljust(widths[0]), value.rjust(widths[1]), goal.rjust(widths[2]), peer.rjust(widths[3]))
            lines.append("  ".join((*columns, case)).rstrip())
        return "\n".join(lines)


def machine() -> str:
    """The machine in words: processors this process may use, their model, memory, system and Python. No host name."""
    return ", ".join(
        [
            f"{_usable_processors()} x {_processor_model()}",
            f"{_memory_gib():.0f} GiB",
            f"{platform.system()} {platform.machine()}",
            f"Python {platform.python_version()}",
        ]
    )


def _cells(row: BenchRow) -> tuple[str, str, str, str, str]:
    verdict = "ok" if row.ok else "MISSED" if row.kind == "hard" else "missed, soft"
    goal = f"{row.goal_op} {row.goal_value:g}"
    peer = "" if row.peer_value is None else f"{row.peer_value:g}"
    beside = f" (peer: {row.peer})" if row.peer else ""
    return verdict, f"{row.value:g} {row.unit}", goal, peer, f"{row.case}{beside}"


def _usable_processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _processor_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
