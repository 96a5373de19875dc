"""One simulation from data to results: real sites, a real coordinator, real Flower between them."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.agent import SiteAgent
from common.crypto.keys import SigningKey
from common.journal import Journal
from common.parameters import parameters_from_bytes
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.runplan import build_manifest, calibrate_plan
from server.coordinator import run_from_directory
from server.exchange import GridExchange
from server.rundir import RunSettings, prepare_run
from simulations.datasets import PublicSplit, SourceRows
from simulations.features import PreparedData, PublicRows, prepare_data
from simulations.outdir import claim_out_directory
from simulations.partition import partition_patients
from simulations.residual import Hit, ResidualScan
from simulations.scenario import Scenario
from simulations.sites import (
    SimulatedSite,
    create_homes,
    make_manifest,
    open_site,
    pin_keys,
    site_names,
)

Backend = Literal["inline", "ray"]
Report = Callable[[str], None]
PASSPHRASE_BYTES = 24
MESSAGE_BUFFER_BYTES = 1 << 20
RAY_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """What the command line decides beside the scenario."""

    out: Path
    backend: Backend = "inline"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: Path | None = None
    weights: Path | None = None
    seed: int = 0
    force: bool = False


@dataclass(slots=True)
class MessageScan:
    """Searches every message of a run for identifiers, a buffer at a time."""

    scan: ResidualScan
    hits: list[Hit] = field(default_factory=list)
    messages: int = 0
    size_bytes: int = 0
    buffer: bytearray = field(default_factory=bytearray)

    def __call__(self, direction: str, node: int, body: bytes) -> None:
        self.messages += 1
        self.size_bytes += len(body)
        self.buffer += body + b"\n"
        if len(self.buffer) > MESSAGE_BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Search what is buffered."""
        self.hits += self.scan.scan_bytes(bytes(self.buffer))
        self.buffer.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A finished run and what is needed to judge it.

    Attributes:
        history: Released model after each completed round, shape (d,) each.
    """

    scenario: Scenario
    options: SimulationOptions
    plan: TrainingPlan
    manifest: Manifest
    source: SourceRows
    split: PublicSplit
    public: PublicRows
    of_rows: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    sites: tuple[SimulatedSite, ...]
    history: tuple[NDArray[np.float32], ...]
    message_scan: MessageScan
    started: datetime
    training_seconds: float


def simulate(
    scenario: Scenario, options: SimulationOptions, *, report: Report, prepared: PreparedData | None = None
) -> Simulation:
    """Run a scenario. What the sites spent stays in their ledgers however this ends.

    Args:
        prepared: The scenario's data, if an earlier run of it has them already; by default they are read.

    Raises:
        FederationError: Whatever stopped it; the out directory keeps ledgers, witnesses and logs.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    if prepared is None:
        prepared = prepare_data(
            scenario, data=options.data, weights=options.weights, device=options.device, report=report
        )
    prepared = prepared.for_seed(options.seed)
    source, split, plan = prepared.source, prepared.split, prepared.plan_of(scenario)
    with _private_directory() as records_dir:
        report("calibrating the noise")
        noise_multiplier = calibrate_plan(plan)
        run_id = f"{scenario.name}-{secrets.token_hex(6)}"
        _check_early(scenario, plan, run_id, noise_multiplier)
        parts = partition_patients(source, split, scenario.sites, seed=options.seed)
        claim_out_directory(options.out, force=options.force)
        report(f"opening {scenario.sites.count} sites")
        passphrase = secrets.token_urlsafe(PASSPHRASE_BYTES).encode()
        coordinator = SigningKey.generate()
        homes = create_homes(
            options.out / "sites", count=scenario.sites.count, passphrase=passphrase, named=scenario.sites.names
        )
        trust = pin_keys(homes, coordinator)
        manifest = make_manifest(
            scenario, plan, homes, run_id=run_id, coordinator=coordinator, noise_multiplier=noise_multiplier
        )
        sites = tuple(
            open_site(
                home,
                source=source,
                rows=source.rows_of(split.private[part]),
                scenario=scenario,
                plan=plan,
                manifest=manifest,
                records_dir=records_dir,
                seed=options.seed,
                features=prepared.maker(home),
            )
            for home, part in zip(homes, parts, strict=True)
        )
        prepare_run(
            options.out,
            plan=plan,
            manifest=manifest,
            trust=trust,
            key=coordinator,
            passphrase=passphrase,
            settings=RunSettings(seed=options.seed, keep_models=True, checkpoints=False, resend_after_s=0),
        )
        scan = MessageScan(ResidualScan([person for site in sites for person in site.identifiers]))
        report(f"training {manifest.rounds} rounds over {len(sites)} sites")
        with (options.out / "log.jsonl").open("a", encoding="utf-8") as log:
            _run_backend(options, sites, passphrase, scan, Journal(log))
        scan.flush()
    return Simulation(
        scenario=scenario,
        options=options,
        plan=plan,
        manifest=manifest,
        source=source,
        split=split,
        public=prepared.public,
        of_rows=prepared.of_rows,
        sites=sites,
        history=_read_history(options.out, manifest),
        message_scan=scan,
        started=started,
        training_seconds=time.perf_counter() - clock,
    )


def _check_early(scenario: Scenario, plan: TrainingPlan, run_id: str, noise_multiplier: float) -> None:
    """Refuse what no manifest can be made of before anything is written or replaced."""
    roster = [
        RosterEntry(name=name, identity_key=name, nominal_patients=1)
        for name in site_names(scenario.sites.count, scenario.sites.names)
    ]
    build_manifest(plan, run_id=run_id, roster=roster, coordinator_key="", noise_multiplier=noise_multiplier)


def _run_backend(
    options: SimulationOptions,
    sites: Sequence[SimulatedSite],
    passphrase: bytes,
    scan: MessageScan,
    journal: Journal,
) -> None:
    if options.backend == "ray":
        from simulations.ray_backend import run_with_flower

        run_with_flower(
            run_dir=options.out,
            sites_dir=options.out / "sites",
            sites=len(sites),
            passphrase=passphrase,
            timeout_s=RAY_TIMEOUT_S,
            gpus=0.0,
        )
        return
    from simulations.flower_private import task_identity
    from simulations.inline_grid import InlineGrid, site_handlers

    with ExitStack() as opened, task_identity(1):
        agents = {
            number: opened.enter_context(
                SiteAgent.open(site.home.root, passphrase=passphrase, journal=journal, device=options.device)
            )
            for number, site in enumerate(sites, start=1)
        }
        handlers = site_handlers({number: agent.handle for number, agent in agents.items()})
        exchange = GridExchange(InlineGrid(handlers, tap=scan))
        run_from_directory(options.out, exchange, passphrase=passphrase, journal=journal)


def _read_history(out: Path, manifest: Manifest) -> tuple[NDArray[np.float32], ...]:
    """The released models, round by round; their files are removed, since the last one is published elsewhere."""
    folder = out / "models"
    history = tuple(
        parameters_from_bytes(path.read_bytes(), dimension=manifest.dimension)
        for path in sorted(folder.glob("round-*.f32"))
    )
    shutil.rmtree(folder, ignore_errors=True)
    return history


@contextmanager
def _private_directory() -> Iterator[Path]:
    """A directory for the hospitals' raw tables, outside the results and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fedward-records-") as name:
        os.chmod(name, 0o700)
        yield Path(name)
