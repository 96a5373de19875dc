"""Real rounds over real processes: agents that train and charge their ledgers, couriers, gateway, SuperLink, ServerApp.

The records are invented numbers; what counts is how long a round takes and that it is completed.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from client.data.registry import register_dataset
from client.home import SiteHome, create_home
from common.enrolment import read_consortium
from common.errors import BackendFailed
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.privacy.admission import AdmissionFilter
from common.privacy.ledger import BudgetLedger
from common.runplan import build_manifest, calibrate_plan
from common.settings import parse_settings
from server.outcome import read_outcome
from server.rundir import RESULT_FILE, RunSettings, prepare_run
from server.superlink import FlowerDirectory, submit_run
from simulations.bench.deployment_ground import Courier, Ground, ground
from simulations.bench.deployment_memory import memory_of
from simulations.bench.deployment_transport import Progress, log_of_run

POPULATION: Final = "ward"
CLASSES: Final = ("healthy", "ill")
PATIENTS: Final = 30
HEAD_FEATURES: Final = 4999  # two classes and a bias: 10,000 parameters
HEAD_SITES: Final = 3
SMALL_FEATURES: Final = 30
LARGE_FEATURES: Final = 1000
LARGE_HIDDEN: Final = 2744  # 2.75 million parameters
RUN_TIMEOUT_S: Final = 1200.0
LOOK_AT_MEMORY_S: Final = 0.5
WEIGHTS: Final = Path("weights") / "squeezenet1_1_features.safetensors"
DATA_VARIABLE: Final = "FEDWARD_SHARED_DATA"
DATA_BESIDE: Final = Path("../shared/data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Federated:
    """A run that was completed.

    Attributes:
        sites: How many took part.
        parameters: Trained ones.
        rounds: Rounds whose sum opened.
        round_s: Seconds from one released model to the next.
        pair_bytes: Resident memory of the largest agent and the largest courier together, after the run.
        coordinator_bytes: The ServerApp's most resident memory, as last seen before its end.
        superlink_bytes: SuperLink's most.
    """

    sites: int
    parameters: int
    rounds: int
    round_s: list[float]
    pair_bytes: int
    coordinator_bytes: int
    superlink_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentMemory:
    """Resident memory of an agent, in bytes: after its work, and at its peak."""

    held_bytes: int
    peak_bytes: int


def measure_head(rounds: int, progress: Progress) -> Federated:
    """A plan in `retry` over three sites and a head of 10,000 parameters."""
    progress(f"head: {rounds} real rounds of 10,000 parameters, {HEAD_SITES} sites")
    # The first difference is from the first released model to the second, so one round more is made.
    return _federated(_plan(HEAD_FEATURES, rounds=rounds + 1, sites=HEAD_SITES), HEAD_SITES)


def measure_many(sites: int, rounds: int, progress: Progress) -> Federated:
    """A small plan over many sites."""
    progress(f"many: {sites} sites, {rounds} rounds; starting {2 * sites} processes")
    return _federated(_plan(SMALL_FEATURES, rounds=rounds, sites=sites), sites)


def measure_coordinator(sites: int, progress: Progress) -> Federated:
    """Rounds with updates of 11 MB: a network of 2.75 million parameters, all of them trained."""
    plan = _plan(LARGE_FEATURES, rounds=2, sites=sites, hidden=LARGE_HIDDEN)
    progress(f"coordinator: 2 real rounds of 11 MB updates, {sites} sites")
    return _federated(plan, sites)


def measure_agent(progress: Progress, weights: Path | None = None) -> AgentMemory | None:
    """An agent that also holds a SqueezeNet; None, and said so, without the network's weights."""
    beside = Path(os.environ.get(DATA_VARIABLE, DATA_BESIDE)) / WEIGHTS
    path = beside if weights is None else weights
    if not path.is_file():
        progress(f"agent: skipped, there is no {path}; name the file with --weights")
        return None
    progress("agent: its memory with a SqueezeNet")
    with ground() as place:
        plan = _plan(SMALL_FEATURES, rounds=1, sites=HEAD_SITES)
        (home,) = _make_homes(place, ["hospital-0"], plan)
        command = [
            sys.executable,
            "-P",
            "-m",
            "simulations.bench.deployment_agent",
            str(home.root),
            str(path.resolve()),
        ]
        done = subprocess.run(
            command, cwd=place.root, env=place.environment, capture_output=True, timeout=RUN_TIMEOUT_S, check=False
        )
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise BackendFailed(f"the agent ended with exit code {done.returncode}", hint="".join(last))
        found = json.loads(done.stdout)
    return AgentMemory(held_bytes=found["held_bytes"], peak_bytes=found["peak_bytes"])


def _federated(plan: TrainingPlan, sites: int) -> Federated:
    with ground() as place:
        homes = _make_homes(place, [f"hospital-{number:02d}" for number in range(sites)], plan)
        couriers = place.enrol({home.name: home.identity for home in homes}, nominal_patients=PATIENTS)
        manifest = _manifest(place, homes, plan)
        for home, courier in zip(homes, couriers, strict=True):
            _make_ready(place, home, courier, plan)
        place.serve()
        agents = [
            place.start(f"agent-{home.name}", *place.fedward("site", "agent", "--home", home.root)) for home in homes
        ]
        place.wait_until(lambda: all(courier.socket.exists() for courier in couriers), "the agents to listen")
        carriers = [place.start_courier(courier) for courier in couriers]
        place.wait_until(lambda: all(map(place.is_connected, couriers)), "the couriers to be connected")
        run_dir, coordinator_bytes = _run(place, plan, manifest)
        return Federated(
            sites=sites,
            parameters=manifest.dimension,
            rounds=int(json.loads((run_dir / RESULT_FILE).read_bytes())["rounds"]),
            round_s=_round_seconds(run_dir),
            pair_bytes=sum(
                max(memory_of(process.pid).resident_bytes for process in kind) for kind in (agents, carriers)
            ),
            coordinator_bytes=coordinator_bytes,
            superlink_bytes=memory_of(place.process_of("flower-superlink")).peak_bytes,
        )


def _run(place: Ground, plan: TrainingPlan, manifest: Manifest) -> tuple[Path, int]:
    """Hand the run to Flower and wait for its end; its directory, and the ServerApp's most memory."""
    run_dir: Path = place.server.runs / manifest.run_id
    prepare_run(
        run_dir,
        plan=plan,
        manifest=manifest,
        trust=read_consortium(place.server.consortium_path).trust,
        key=place.server.key,
        passphrase=place.passphrase,
        settings=RunSettings(keep_models=True),
    )
    submit_run(FlowerDirectory(root=place.server.flower), run_dir=run_dir)
    most_bytes = 0

    def is_over() -> bool:
        nonlocal most_bytes
        most_bytes = max(most_bytes, _peak_of_serverapp(place))
        return read_outcome(run_dir) is not None

    place.wait_until(is_over, "the run to end", timeout_s=RUN_TIMEOUT_S, look_again_s=LOOK_AT_MEMORY_S)
    outcome = read_outcome(run_dir)
    if outcome is not None:
        outcome.raise_error(log=log_of_run(place))
    return run_dir, most_bytes


def _peak_of_serverapp(place: Ground) -> int:
    """The most memory that the ServerApp had so far; 0 while it is not running."""
    try:
        return memory_of(place.process_of("flwr-serverapp")).peak_bytes
    except (BackendFailed, ProcessLookupError):
        return 0


def _plan(features: int, *, rounds: int, sites: int, hidden: int = 0) -> TrainingPlan:
    network = {"head": "mlp", "hidden": [hidden]} if hidden else {}
    document = {
        "task": {"kind": "tabular-classification", "classes": list(CLASSES), "positive": CLASSES[1]},
        "model": {"inputs": [features], **network},
        "normalisation": {"limit": 3.0},
        "training": {"rounds": rounds, "spare_attempts": 3, "server_optimizer": "sgd"},
        "privacy": {"epsilon": 3.0, "delta": 1e-5, "nominal_patients": PATIENTS * sites},
        "secure_sum": {"minimum_cohort": 3},
    }
    return parse_settings(document, TrainingPlan, source="the benchmark's plan")


def _make_homes(place: Ground, names: list[str], plan: TrainingPlan) -> list[SiteHome]:
    """Sites with rules, a budget that suffices, and invented patients."""
    limit = "epsilon = 100.0\nepsilon_alone = 1000.0\ndelta = 1e-5\n"
    rules = f"version = 1\nminimum_patients = 1\n[budget.{POPULATION}]\n{limit}"
    features = plan.model.inputs[0]
    homes = []
    for number, name in enumerate(names):
        home = create_home(place.root / "sites" / name, name=name, passphrase=place.passphrase)
        home.install_policy(rules.encode())
        random = np.random.default_rng(number)
        labels = np.arange(PATIENTS) % len(CLASSES)
        values = random.normal(loc=labels[:, None], size=(PATIENTS, features)).astype(np.float32)
        people = [f"{name}-{person}" for person in range(PATIENTS)]
        with BudgetLedger.open(home.ledger_path, site=home.name, key=home.identity) as ledger:
            register_dataset(
                home,
                ledger,
                dataset=POPULATION,
                features=values,
                labels=labels.astype(np.int64),
                classes=len(CLASSES),
                patients=people,
                patient_ids=people,
                admission=AdmissionFilter.gaussian(),
            )
        homes.append(home)
    return homes


def _make_ready(place: Ground, home: SiteHome, courier: Courier, plan: TrainingPlan) -> None:
    """Pin the consortium, approve the plan, and say where the agent listens."""
    home.install_trust(read_consortium(place.server.consortium_path).trust)
    home.approve(plan.digest, population=POPULATION)
    (home.root / "node.toml").write_text(f'socket = {json.dumps(str(courier.socket))}\ndevice = "cpu"\n')


def _manifest(place: Ground, homes: list[SiteHome], plan: TrainingPlan) -> Manifest:
    roster = [
        RosterEntry(name=home.name, identity_key=home.identity.public_key.text, nominal_patients=PATIENTS)
        for home in homes
    ]
    return build_manifest(
        plan,
        run_id="bench-1",
        roster=roster,
        coordinator_key=place.server.key.public_key.text,
        noise_multiplier=calibrate_plan(plan),
    )


def _round_seconds(run_dir: Path) -> list[float]:
    """From when one released model was written to when the next one was."""
    times = [path.stat().st_mtime_ns for path in sorted((run_dir / "models").glob("round-*.f32"))]
    return [(later - earlier) / 1e9 for earlier, later in pairwise(times)]
