"""Coordinators that die at chosen moments: before and after every exchange, and around every single reply.

Nothing is cleaned up: what a coordinator had in memory is gone, what it had on disk is what the next one finds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common import wire_pb2 as pb
from common.crypto.ring import dequantise, from_ring
from common.model import initial_parameters
from common.parameters import parameters_digest, vector_from_bytes
from common.runplan import training_grid
from common.wire import read_body, read_envelope
from server.aggregate import ServerState, descent_direction, server_step
from server.coordinator import RunResult, run_from_directory
from server.exchange import GridExchange
from simulations.flower_private import task_identity
from simulations.inline_grid import InlineGrid, site_handlers
from tests.flows.federation import PASSPHRASE, Federation, Handle, request_in

Moment = tuple[Any, ...]


class Died(BaseException):
    """The coordinator's process ended here."""


class DyingExchange:
    """An exchange during which the process dies, the first time that a moment is in `deadly`.

    A moment is what is asked, such as ("round", 2, 1), then "before", "after", or a site and "arrives" or "is taken".
    """

    def __init__(self, grid: InlineGrid, names: Mapping[int, str], deadly: Callable[[Moment], bool]) -> None:
        self._exchange = GridExchange(grid)
        self._names = names
        self._deadly = deadly
        self._last: Moment = ()
        self._asked: dict[Moment, int] = {}

    def node_ids(self) -> list[int]:
        return self._exchange.node_ids()

    def exchange(self, requests: Mapping[int, bytes], **options: Any) -> dict[int, bytes | None]:
        what = self._what(requests)
        on_reply = options.pop("on_reply")

        def heard(node: int, data: bytes | None) -> None:
            self._pass((*what, self._names[node], "arrives"))
            on_reply(node, data)
            self._pass((*what, self._names[node], "is taken"))

        self._pass((*what, "before"))
        replies = self._exchange.exchange(requests, on_reply=heard, **options)
        self._pass((*what, "after"))
        return replies

    def _what(self, requests: Mapping[int, bytes]) -> Moment:
        body = request_in(next(iter(requests.values()))) if requests else None
        kind = type(body).__name__.lower()
        if isinstance(body, pb.Round | pb.Evaluate):
            return kind, body.round, body.attempt
        self._asked[kind,] = self._asked.get((kind,), 0) + 1
        return kind, self._asked[kind,]

    def _pass(self, moment: Moment) -> None:
        if self._deadly(moment):
            raise Died(moment)


@dataclass
class Recording:
    """Everything that crossed the wire in attempts, by (kind, round, attempt, site)."""

    names: Mapping[int, str]
    requests: dict[Moment, set[bytes]] = field(default_factory=dict)
    vectors: dict[Moment, set[bytes]] = field(default_factory=dict)
    asked: Moment = ()

    def __call__(self, way: str, node: int, data: bytes) -> None:
        envelope = read_envelope(data) if data[:1] == b"\x08" else None
        if way == "request":
            body = request_in(data)
            kind = type(body).__name__.lower()
            self.asked = ()
            if isinstance(body, pb.Round | pb.Evaluate):
                self.asked = (kind, body.round, body.attempt, self.names[node])
                self.requests.setdefault(self.asked, set()).add(data)
        elif self.asked and envelope is not None and envelope.kind in ("masked", "histogram"):
            answer = read_body(envelope, pb.Masked if envelope.kind == "masked" else pb.Histogram)
            self.vectors.setdefault(self.asked, set()).add(answer.vector)

    def sum_of(self, federation: Federation, round_number: int, attempt: int, cohort: list[str]) -> Any:
        """The opened sum of one training attempt, from what the sites sent."""
        grid = training_grid(federation.plan, federation.manifest)
        total = np.zeros(grid.dimension, dtype=np.uint32)
        for site in cohort:
            (vector,) = self.vectors["round", round_number, attempt, site]
            total += vector_from_bytes(vector, dimension=grid.dimension)
        return dequantise(from_ring(total), grid)


@dataclass(frozen=True, kw_only=True)
class Told:
    """How a run ended whose coordinator died again and again."""

    result: RunResult
    deaths: list[Moment]
    recording: Recording


def run_through_deaths(
    federation: Federation, handlers: Mapping[str, Handle], deadly: Callable[[Moment], bool], *, limit: int = 500
) -> Told:
    """Run to the end; every coordinator that dies is followed by another in the same directory."""
    names = dict(enumerate(sorted(handlers), start=1))
    recording, deaths = Recording(names), list[Moment]()
    nodes = site_handlers({number: handlers[name] for number, name in names.items()})
    with task_identity():
        while len(deaths) < limit:
            exchange = DyingExchange(InlineGrid(nodes, tap=recording), names, deadly)
            try:
                result = run_from_directory(federation.root, exchange, passphrase=PASSPHRASE)
            except Died as death:
                deaths.append(death.args[0])
            else:
                return Told(result=result, deaths=deaths, recording=recording)
    raise AssertionError(f"{limit} coordinators died")


def once_at(*moments: Moment) -> Callable[[Moment], bool]:
    """Death at each of these moments, once."""
    left = set(moments)

    def deadly(moment: Moment) -> bool:
        if moment in left:
            left.remove(moment)
            return True
        return False

    return deadly


def once_everywhere() -> Callable[[Moment], bool]:
    """Death at every moment that there is, once."""
    seen: set[Moment] = set()

    def deadly(moment: Moment) -> bool:
        if moment in seen:
            return False
        seen.add(moment)
        return True

    return deadly


def digest_of_what_was_sent(federation: Federation, told: Told) -> str:
    """The model's digest worked out anew from the vectors that crossed the wire, every round at its first attempt."""
    plan, manifest = federation.plan, federation.manifest
    state = ServerState.start(initial_parameters(plan.model, len(plan.task.classes), seed=0))
    for number in range(1, manifest.rounds + 1):
        total = told.recording.sum_of(federation, number, 1, federation.names)
        nominal = manifest.nominal_patients
        cohort_nominal = sum(entry.nominal_patients for entry in manifest.roster)
        direction = descent_direction(total, mode=manifest.mode, cohort_nominal=cohort_nominal, nominal=nominal)
        state = server_step(state, direction, plan.training)
    return parameters_digest(state.released)
