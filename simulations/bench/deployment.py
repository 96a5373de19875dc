"""`fedward bench deployment`: what real machines cost, with every process real and all of them on loopback.

The peer of the exchange is stock Flower, SuperNode and ClientApp asked with send_and_receive, in the same run and in
turn. Messages of our nodes go through gateway, courier and the agent's socket. Memory is resident memory (RSS).
"""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from common.errors import ConfigurationError
from simulations.bench.deployment_federation import (
    HEAD_SITES,
    AgentMemory,
    Federated,
    measure_agent,
    measure_coordinator,
    measure_head,
    measure_many,
)
from simulations.bench.deployment_transport import (
    UPDATE_BYTES,
    Exchanges,
    Progress,
    Sums,
    Updates,
    measure_exchanges,
    measure_sums,
    measure_updates,
    median,
)
from simulations.bench.result import BenchResult, BenchRow, GoalOperator, machine

DEFAULT_ROUNDS: Final = 12
EXCHANGE_GOAL_S: Final = 0.7
SHARE_OF_STOCK: Final = 1 / 5
HEAD_ABOVE_EXCHANGE_S: Final = 1.0
COURIER_GOAL_MB: Final = 120.0
COURIER_MESSAGES: Final = 10
AGENT_GOAL_MB: Final = 700.0
UPDATE_SITES: Final = 4
UPDATE_ROUNDS: Final = 3
UPDATE_GOAL_S: Final = 12.0
FLAT: Final = 1.1
FEW_SITES: Final = 2
MANY_SITES: Final = 8
SITES: Final = 20
PLAN_ROUNDS: Final = 10
ROUND_SOFT_S: Final = 5.0
SUPERLINK_SOFT_MB: Final = 2000.0
MEGABYTE: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line decides.

    Attributes:
        rounds: Exchanges, and rounds of the small head.
        weights: SqueezeNet's; None: where the shared data lies.
    """

    rounds: int = DEFAULT_ROUNDS
    weights: Path | None = None


def run_bench(
    progress: Progress, *, cases: Sequence[str] = (), rounds: int = DEFAULT_ROUNDS, weights: Path | None = None
) -> BenchResult:
    """Measure the named cases, by default all, one after the other.

    Args:
        progress: Told in one line what runs next.
        cases: Among `CASES`.
        rounds: Exchanges, and rounds of the small head.
        weights: SqueezeNet's; None: where the shared data lies. Without them the case `agent` is left out.

    Raises:
        ConfigurationError: If there is no such case.
        BackendFailed: If a process of the measurement fails; none of them stays.
    """
    chosen = list(dict.fromkeys(cases or CASES))
    unknown = [case for case in chosen if case not in CASES]
    if unknown:
        raise ConfigurationError(f"case {unknown[0]!r} is none of {', '.join(CASES)}")
    options = Options(rounds=rounds, weights=weights)
    rows = [row for case in chosen for row in CASES[case](progress, options)]
    return BenchResult(bench="deployment", machine=machine(), rows=tuple(rows))


def exchange_rows(found: Exchanges) -> list[BenchRow]:
    """A trivial exchange through our courier, beside stock Flower's."""
    ours_s, stock_s = median(found.ours_s), median(found.stock_s)
    peer = f"Flower {importlib.metadata.version('flwr')}, SuperNode and send_and_receive"
    title = f"a trivial exchange through our courier, median of {len(found.ours_s)}"
    return [
        _row(title, ours_s, "s", EXCHANGE_GOAL_S, peer=peer, peer_value=stock_s),
        _row(
            f"{title}, beside stock Flower's", ours_s / stock_s, "of stock", SHARE_OF_STOCK, peer=peer, peer_value=1.0
        ),
    ]


def head_rows(found: Federated, exchange_s: float) -> list[BenchRow]:
    """A real round of a small head, held against an exchange that computes nothing."""
    title = f"a round in `retry` of a head with {found.parameters:,} parameters, {found.sites} sites"
    limit = exchange_s + HEAD_ABOVE_EXCHANGE_S
    peer = "an exchange that computes nothing, through one courier"
    return [_row(f"{title}, median of {len(found.round_s)}", median(found.round_s), "s", limit, peer, exchange_s)]


def update_rows(found: Updates) -> list[BenchRow]:
    """Large updates: seconds a round, and the courier's memory before and while they pass."""
    message_mb = UPDATE_BYTES / MEGABYTE
    job = f"{message_mb:g} MB there and back, {UPDATE_SITES} sites"
    passing_mb = COURIER_GOAL_MB + COURIER_MESSAGES * message_mb
    return [
        _row(f"{job}: a round, median of {len(found.round_s)}", median(found.round_s), "s", UPDATE_GOAL_S),
        _row("courier, idle: RSS", found.idle_bytes / MEGABYTE, "MB", COURIER_GOAL_MB),
        _row(f"courier, {job}: peak RSS", found.peak_bytes / MEGABYTE, "MB", passing_mb),
        _row(
            f"courier, {job}: RSS afterwards",
            found.after_bytes / MEGABYTE,
            "MB",
            COURIER_GOAL_MB + message_mb,
            soft=True,
        ),
        _row(f"SuperLink, {job}: peak RSS", found.superlink_bytes / MEGABYTE, "MB", SUPERLINK_SOFT_MB, soft=True),
    ]


def sum_rows(found: Sums) -> list[BenchRow]:
    """The coordinator's memory must not depend on how many sites it sums."""
    few, many = found.peak_bytes
    title = f"ServerApp, {UPDATE_BYTES / MEGABYTE:g} MB updates"
    superlink = f"SuperLink, {UPDATE_BYTES / MEGABYTE:g} MB updates of {MANY_SITES} sites: peak RSS"
    return [
        _flat(title, few, many, few_sites=FEW_SITES, many_sites=MANY_SITES),
        _row(superlink, found.superlink_bytes / MEGABYTE, "MB", SUPERLINK_SOFT_MB, soft=True),
    ]


def coordinator_rows(few: Federated, many: Federated) -> list[BenchRow]:
    """The same of real runs: the coordinator checks signatures, opens the sum and writes checkpoints besides."""
    title = f"coordinator of a real run, {4 * few.parameters / MEGABYTE:.0f} MB updates"
    superlink = f"SuperLink of that run, {many.sites} sites: peak RSS"
    return [
        _flat(title, few.coordinator_bytes, many.coordinator_bytes, few_sites=few.sites, many_sites=many.sites),
        _row(superlink, many.superlink_bytes / MEGABYTE, "MB", SUPERLINK_SOFT_MB, soft=True),
    ]


def agent_rows(found: AgentMemory) -> list[BenchRow]:
    """An agent that also holds a SqueezeNet and has computed features with it."""
    return [
        _row("agent with a SqueezeNet, after 48 pictures: RSS", found.held_bytes / MEGABYTE, "MB", AGENT_GOAL_MB),
        _row("agent with a SqueezeNet: peak RSS", found.peak_bytes / MEGABYTE, "MB", AGENT_GOAL_MB, soft=True),
    ]


def many_rows(found: Federated) -> list[BenchRow]:
    """A plan over many sites on one machine."""
    title = f"{found.sites} sites on this machine, a plan of {PLAN_ROUNDS} rounds"
    pair_mb = AGENT_GOAL_MB + COURIER_GOAL_MB
    return [
        _row(f"{title}: rounds completed", found.rounds, "rounds", PLAN_ROUNDS, op=">="),
        _row(f"{title}: a round, median", median(found.round_s), "s", ROUND_SOFT_S, soft=True),
        _row(
            f"{title}: agents and couriers, RSS of the largest pair",
            found.pair_bytes / MEGABYTE,
            "MB",
            pair_mb,
            soft=True,
        ),
    ]


def _exchange(progress: Progress, options: Options) -> list[BenchRow]:
    return exchange_rows(measure_exchanges(options.rounds, progress))


def _head(progress: Progress, options: Options) -> list[BenchRow]:
    """The exchange is measured beside it: absolute seconds of another hour would not compare."""
    exchange = measure_exchanges(options.rounds, progress, stock=False)
    return head_rows(measure_head(options.rounds, progress), median(exchange.ours_s))


def _updates(progress: Progress, options: Options) -> list[BenchRow]:
    return update_rows(measure_updates(UPDATE_ROUNDS, progress, sites=UPDATE_SITES))


def _sums(progress: Progress, options: Options) -> list[BenchRow]:
    return sum_rows(measure_sums(FEW_SITES, MANY_SITES, progress))


def _coordinator(progress: Progress, options: Options) -> list[BenchRow]:
    return coordinator_rows(measure_coordinator(HEAD_SITES, progress), measure_coordinator(MANY_SITES, progress))


def _agent(progress: Progress, options: Options) -> list[BenchRow]:
    found = measure_agent(progress, options.weights)
    return [] if found is None else agent_rows(found)


def _many(progress: Progress, options: Options) -> list[BenchRow]:
    return many_rows(measure_many(SITES, PLAN_ROUNDS, progress))


def _flat(title: str, few_bytes: int, many_bytes: int, *, few_sites: int, many_sites: int) -> BenchRow:
    """Memory with many sites in units of that with few; a coordinator that held every update would miss the goal."""
    sizes = f"{many_bytes / MEGABYTE:.0f} and {few_bytes / MEGABYTE:.0f} MB"
    case = f"{title}: peak RSS with {many_sites} sites, of that with {few_sites} ({sizes})"
    return _row(case, many_bytes / few_bytes, "times", FLAT, peer=f"the same with {few_sites} sites", peer_value=1.0)


def _row(
    case: str,
    value: float,
    unit: str,
    goal: float,
    peer: str | None = None,
    peer_value: float | None = None,
    *,
    op: GoalOperator = "<=",
    soft: bool = False,
) -> BenchRow:
    kind: Literal["hard", "soft"] = "soft" if soft else "hard"
    return BenchRow(
        case=case,
        value=round(value, 3),
        unit=unit,
        peer=peer,
        peer_value=None if peer_value is None else round(peer_value, 3),
        goal_op=op,
        goal_value=round(goal, 3),
        kind=kind,
    )


CASES: Final[Mapping[str, Callable[[Progress, Options], list[BenchRow]]]] = {
    "exchange": _exchange,
    "head": _head,
    "updates": _updates,
    "sums": _sums,
    "coordinator": _coordinator,
    "agent": _agent,
    "many": _many,
}
