"""A real federation under observation: what every party of it sees, for an auditor who is all of them.

Sites with their own keys, rules, budgets and ledgers; a coordinator; Flower's Grid between them. Nothing is replaced
but the engine, by one that wraps it and plants canaries. The auditor reads the messages as they pass and, holding
every site's keys, takes the masks off each.
"""

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from client.agent import EngineChoice, SiteAgent
from client.data.registry import register_dataset
from client.guard import grid_of
from client.home import SiteHome
from client.runstate import load_state
from client.training.batch import PatientBatch
from client.training.engine import ClippedSumEngine, choose_engine
from common import wire_pb2 as pb
from common.crypto.keys import SigningKey
from common.crypto.masking import apply_masks
from common.crypto.ring import Grid, from_ring
from common.errors import BackendFailed
from common.parameters import parameters_from_bytes, vector_from_bytes
from common.plan import Manifest, ModelSection, TrainingPlan
from common.privacy.events import MechanismEvent
from common.privacy.ledger import BudgetLedger
from common.runplan import build_manifest
from common.wire import read_body, read_envelope
from server.coordinator import run_from_directory
from server.exchange import GridExchange
from server.release import read_release
from server.rundir import RunSettings, prepare_run
from simulations.attack_canaries import Canaries, FloatArray, IntArray, Parameters, PlantedEngine
from simulations.flower_private import task_identity
from simulations.inline_grid import InlineGrid, site_handlers
from simulations.sites import budget_for, create_homes, make_roster, pin_keys, policy_text

POPULATION = "audit"
PASSPHRASE_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvidence:
    """One round as an auditor sees it who holds everybody's keys.

    Attributes:
        parameters: The model that gradients were asked for, shape (d,).
        opened: What the coordinator's sum opens to, shape (d,), grid units.
        units: What each site contributed, its noise in it; shape (sites, d), grid units.
        without: Each site's clipped sum without canaries; shape (sites, d).
        answered: Each site's clipped sum with its canaries; shape (sites, d).
    """

    parameters: Parameters
    opened: NDArray[np.int64]
    units: NDArray[np.int64]
    without: FloatArray
    answered: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvidence:
    """One run.

    Attributes:
        released: The published model, shape (d,).
        events: What one site's ledger was charged for it; the same at every site.
    """

    grid: Grid
    rounds: tuple[RoundEvidence, ...]
    released: Parameters
    events: tuple[MechanismEvent, ...]


@dataclass(slots=True)
class _Tap:
    """Reads the rounds' messages as they pass."""

    homes: dict[str, SiteHome]
    dimension: int
    parameters: dict[int, Parameters] = field(default_factory=dict)
    masked: dict[int, dict[str, NDArray[np.uint32]]] = field(default_factory=dict)
    units: dict[int, dict[str, NDArray[np.int64]]] = field(default_factory=dict)

    def __call__(self, direction: str, node: int, body: bytes) -> None:
        envelope = read_envelope(body)
        if envelope.kind == "round":
            request = read_body(envelope, pb.Round)
            self.parameters[request.round] = parameters_from_bytes(request.parameters, dimension=self.dimension)
        elif envelope.kind == "masked":
            self._unmask(envelope.sender, envelope.run_id, read_body(envelope, pb.Masked))

    def _unmask(self, site: str, run_id: str, answer: pb.Masked) -> None:
        vector = vector_from_bytes(answer.vector, dimension=self.dimension)
        mask = apply_masks(
            np.zeros(self.dimension, dtype=np.uint32),
            own_name=site,
            pair_secrets=load_state(self.homes[site], run_id).pair_secrets,
            context=bytes.fromhex(answer.context.removeprefix("sha256:")),
        )
        self.masked.setdefault(answer.round, {})[site] = vector
        self.units.setdefault(answer.round, {})[site] = from_ring(vector - mask)


class ObservedFederation:
    """Sites that hold the given patients and will answer a number of runs of one plan. Close it when done."""

    def __init__(
        self,
        root: Path,
        *,
        plan: TrainingPlan,
        batches: Sequence[PatientBatch],
        weights: Sequence[float],
        noise_multiplier: float,
        runs: int,
        engines: EngineChoice | None = None,
    ) -> None:
        """Make homes, keys, rules and budgets, register the patients and open the agents.

        Args:
            root: An empty directory.
            plan: Pooled; its normalisation has been applied to the batches and is empty.
            batches: One a site.
            weights: Public relative sizes, summing to 1.
            runs: How many runs the budgets must let through.
            engines: Chooses what is audited, in place of the sites' own choice.
        """
        self._root = root
        self._plan = plan
        self._weights = weights
        self._noise_multiplier = noise_multiplier
        self._engines = engines or partial(choose_engine, device="cpu")
        self._passphrase = secrets.token_urlsafe(PASSPHRASE_BYTES).encode()
        self._coordinator = SigningKey.generate()
        self._homes = create_homes(root / "sites", count=len(batches), passphrase=self._passphrase)
        self._trust = pin_keys(self._homes, self._coordinator)
        self._planted: dict[str, PlantedEngine] = {}
        self._closing = ExitStack()
        manifest = self._manifest("budget")
        many = manifest.model_copy(update={"rounds": runs * manifest.rounds})
        budget, admission = budget_for(plan, many)
        with ExitStack() as opening:
            self._agents: list[SiteAgent] = []
            for home, batch in zip(self._homes, batches, strict=True):
                home.install_policy(policy_text(POPULATION, budget, many))
                with BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity) as ledger:
                    names = [f"{home.name}-{number}" for number in batch.patients]
                    register_dataset(
                        home,
                        ledger,
                        dataset=POPULATION,
                        features=batch.features,
                        labels=batch.labels,
                        classes=batch.classes,
                        patients=names,
                        patient_ids=sorted(set(names)),
                        admission=admission,
                    )
                home.approve(plan.digest, population=POPULATION, runs=runs)
                agent = SiteAgent.open(
                    home.root, passphrase=self._passphrase, device="cpu", engines=self._engines_of(home.name)
                )
                self._agents.append(opening.enter_context(agent))
            self._closing = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def run(
        self, run_id: str, *, canaries: Canaries | None = None, placed: Sequence[IntArray] = (), seed: int = 0
    ) -> RunEvidence:
        """One whole run of the plan.

        Args:
            canaries: Who may be in.
            placed: For each site the canaries that are.
            seed: Of the first model.

        Raises:
            BackendFailed: If a site did not answer a round at the first attempt.
        """
        for position, home in enumerate(self._homes):
            chosen = placed[position] if placed else np.empty(0, dtype=np.int64)
            self._planted[home.name] = PlantedEngine(
                engine=_NotYet(), canaries=canaries, chosen=chosen, without=[], answered=[]
            )
        manifest = self._manifest(run_id)
        directory = self._root / "runs" / run_id
        prepare_run(
            directory,
            plan=self._plan,
            manifest=manifest,
            trust=self._trust,
            key=self._coordinator,
            passphrase=self._passphrase,
            settings=RunSettings(seed=seed, checkpoints=False, resend_after_s=0),
        )
        tap = _Tap({home.name: home for home in self._homes}, manifest.dimension)
        with task_identity(1):
            handlers = site_handlers({number: agent.handle for number, agent in enumerate(self._agents, start=1)})
            exchange = GridExchange(InlineGrid(handlers, tap=tap))
            result = run_from_directory(directory, exchange, passphrase=self._passphrase)
        if result.left or result.attempts != manifest.rounds:
            raise BackendFailed(f"{len(result.left)} sites of the audited federation left, {result.attempts} attempts")
        return RunEvidence(
            grid=grid_of(self._plan, manifest),
            rounds=tuple(self._round(tap, number) for number in range(1, manifest.rounds + 1)),
            released=read_release(directory / "model", plan=self._plan, key=manifest.coordinator_key),
            events=self._events(run_id),
        )

    def _round(self, tap: _Tap, number: int) -> RoundEvidence:
        names = [home.name for home in self._homes]
        masked = np.stack([tap.masked[number][name] for name in names])
        planted = [self._planted[name] for name in names]
        return RoundEvidence(
            parameters=tap.parameters[number],
            opened=from_ring(np.asarray(masked.sum(axis=0, dtype=np.uint32))),
            units=np.stack([tap.units[number][name] for name in names]),
            without=np.stack([engine.without[number - 1] for engine in planted]),
            answered=np.stack([engine.answered[number - 1] for engine in planted]),
        )

    def _events(self, run_id: str) -> tuple[MechanismEvent, ...]:
        charges = self._agents[0].ledger.account(POPULATION).charges
        return tuple(charge.event for key, charge in charges.items() if key.run_id == run_id)

    def _engines_of(self, site: str) -> "_Choice":
        return _Choice(self._planted, site, self._engines)

    def _manifest(self, run_id: str) -> Manifest:
        return build_manifest(
            self._plan,
            run_id=run_id,
            roster=make_roster(self._homes, self._weights, self._plan.privacy.nominal_patients),
            coordinator_key=self._coordinator.public_key.text,
            noise_multiplier=self._noise_multiplier,
        )


@dataclass(frozen=True, slots=True)
class _Choice:
    """Puts the site's own engine into what was planted for the run that begins."""

    planted: dict[str, PlantedEngine]
    site: str
    engines: EngineChoice

    def __call__(self, model: ModelSection, classes: int) -> tuple[ClippedSumEngine, str]:
        planted = self.planted[self.site]
        planted.engine, reason = self.engines(model, classes)
        return planted, f"an audit with {len(planted.chosen)} canaries; {reason}"


class _NotYet:
    """The engine of a run that has not begun."""

    def clipped_sum(self, parameters: Parameters, batch: PatientBatch, *, clipping_norm: float) -> FloatArray:
        raise ValueError("no engine was chosen yet")
