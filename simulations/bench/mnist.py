"""`fedward bench accuracy mnist`: a linear head on public gradient histograms of MNIST, at a published epsilon.

The peer is the MNIST example of Opacus: a small convolutional network, Poisson batches of 240, delta 1e-5. Ours is the
pooled recipe of four sites with one that may collude: one full-batch step a round, every site its clipped sum on the
grid and its own share of exact noise, calibrated with spare attempts. Masks are left out, since they change no result.
Rounds, learning rate and clipping norm were chosen on 5,000 training rows by training on the others.
"""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.guard import grid_of
from client.training.batch import PatientBatch
from client.training.closed_form import ClosedFormEngine
from common.charges import attempt_event
from common.crypto.ring import dequantise, quantise
from common.errors import ConfigurationError
from common.model import initial_parameters, normalise, predict
from common.plan import Manifest, RosterEntry, TrainingPlan
from common.privacy.noise import discrete_gaussian
from common.runplan import build_manifest, calibrate_plan
from common.settings import parse_settings
from server.aggregate import ServerState, descent_direction, server_step
from simulations.bench.gradient_features import oriented_gradients
from simulations.bench.result import BenchResult, BenchRow, machine

MNIST = "mnist"
DEFAULT_SEEDS = 5
PUBLISHED_ACCURACY = 96.78
PUBLISHED = "Opacus' MNIST example, published 96.78 ± 0.21 at the same epsilon and delta"
EPSILON, DELTA = 2.91, 1e-5
SITES, COLLUDING, SPARE_ATTEMPTS = 4, 1, 3
PUBLIC_ROWS = 1000
CLASSES = tuple("0123456789")
SPLIT_SEED = 20
ROUNDS = 120
RECIPE = {
    "learning_rate": 24.0,
    "momentum": 0.9,
    "averaging": 0.9,
    "clipping_norm": 1.0,
    "record_norm": 6.0,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MnistRows:
    """Features and labels.

    Attributes:
        public, private, test: Shape (n, width), float32.
        public_labels, private_labels, test_labels: Shape (n,), int64.
    """

    public: NDArray[np.float32]
    public_labels: NDArray[np.int64]
    private: NDArray[np.float32]
    private_labels: NDArray[np.int64]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def run_bench(path: Path | None, *, seeds: int, progress: Callable[[str], None]) -> BenchResult:
    """Train with `seeds` partitions and noises; the test rows and their number are MNIST's own.

    Raises:
        ConfigurationError: If the file is not MNIST as one .npz, or there are fewer than 2 seeds.
    """
    from simulations.bench.accuracy import mean_interval

    if seeds < 2:
        raise ConfigurationError(f"{seeds} seeds give no interval; the least is 2")
    if path is None:
        raise ConfigurationError("MNIST is not part of Fedward", hint="give --data mnist.npz")
    progress("computing gradient histograms")
    rows = read_rows(path)
    plan = plan_for(rows)
    found = []
    for seed in range(seeds):
        found.append(100 * train_and_test(plan, rows, seed=seed))
        progress(f"seed {seed}: accuracy {found[-1]:.2f}")
    interval = mean_interval(found)
    training = plan.training
    recipe = (
        f"linear head of {len(initial_parameters(plan.model, len(CLASSES), seed=0))} parameters on gradient "
        f"histograms, {SITES} sites with {COLLUDING} colluding, {training.rounds} full-batch rounds and "
        f"{training.spare_attempts} spare, C = {plan.privacy.clipping_norm:g}"
    )
    row = BenchRow(
        case=f"MNIST, epsilon {EPSILON:g}, delta {DELTA:g}, {seeds} seeds: lower end of the 95 % interval of the mean "
        f"accuracy (mean {interval.mean:.2f}, upper end {interval.high:.2f}); {recipe}",
        value=round(interval.low, 3),
        unit="%",
        peer=PUBLISHED,
        peer_value=PUBLISHED_ACCURACY,
        goal_op=">=",
        goal_value=PUBLISHED_ACCURACY,
        kind="hard",
    )
    return BenchResult(bench="accuracy", machine=machine(), rows=(row,))


def read_rows(path: Path, *, public_rows: int = PUBLIC_ROWS) -> MnistRows:
    """MNIST from one .npz with x_train, y_train, x_test and y_test; `public_rows` training rows are set aside.

    Raises:
        ConfigurationError: If the file cannot be read or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pictures, labels = arrays["x_train"], arrays["y_train"].astype(np.int64)
            test, test_labels = arrays["x_test"], arrays["y_test"].astype(np.int64)
        features, test_features = oriented_gradients(pictures), oriented_gradients(test)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigurationError(
            f"{path}: not MNIST as one .npz: {type(error).__name__}", hint="x_train, y_train, x_test, y_test"
        ) from error
    if len(labels) <= public_rows or not np.isin(np.concatenate([labels, test_labels]), np.arange(len(CLASSES))).all():
        raise ConfigurationError(f"{path}: {len(labels)} training rows, or labels that are no digits")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))  # the file is sorted by class
    public, private = order[:public_rows], order[public_rows:]
    return MnistRows(
        public=features[public],
        public_labels=labels[public],
        private=features[private],
        private_labels=labels[private],
        test=test_features,
        test_labels=test_labels,
    )


def plan_for(rows: MnistRows, *, rounds: int = ROUNDS) -> TrainingPlan:
    """The plan, its constants from the public rows alone."""
    width = rows.public.shape[1]
    document = {
        "task": {"kind": "image-classification", "classes": CLASSES, "positive": CLASSES[0]},
        "model": {"head": "linear", "inputs": (width,)},
        "normalisation": {
            "center": tuple(rows.public.mean(axis=0, dtype=np.float64).round(6).tolist()),
            "scale": (1.0,) * width,
            "record_norm": RECIPE["record_norm"],
        },
        "training": {
            "rounds": rounds,
            "spare_attempts": SPARE_ATTEMPTS,
            "server_optimizer": "momentum",
            "learning_rate": RECIPE["learning_rate"],
            "momentum": RECIPE["momentum"],
            "averaging": RECIPE["averaging"],
        },
        "privacy": {
            "epsilon": EPSILON,
            "delta": DELTA,
            "clipping_norm": RECIPE["clipping_norm"],
            "nominal_patients": len(rows.private),
        },
        "secure_sum": {"minimum_cohort": SITES, "colluding": COLLUDING},
    }
    return parse_settings(document, TrainingPlan, source="the MNIST recipe")


def train_and_test(plan: TrainingPlan, rows: MnistRows, *, seed: int) -> float:
    """Share of MNIST's test rows that one private training gets right; the seed deals the rows out to the sites."""
    shares = np.array_split(np.random.default_rng([seed, 0xFED]).permutation(len(rows.private)), SITES)
    manifest = _manifest(plan, [len(share) for share in shares])
    batches = [
        PatientBatch(
            features=normalise(plan.normalisation, rows.private[share]),
            labels=rows.private_labels[share],
            patients=np.arange(len(share), dtype=np.int64),
            classes=len(CLASSES),
        )
        for share in shares
    ]
    engine, grid = ClosedFormEngine(plan.model, len(CLASSES)), grid_of(plan, manifest)
    event = attempt_event(manifest, cohort_size=SITES)
    noise_std = event.noise_multiplier_alone * event.sensitivity
    state = ServerState.start(initial_parameters(plan.model, len(CLASSES), seed=seed))
    for _ in range(manifest.rounds):
        current, total = state.current.astype(np.float32), np.zeros(manifest.dimension, dtype=np.int64)
        for batch in batches:
            clipped = engine.clipped_sum(current, batch, clipping_norm=plan.privacy.clipping_norm)
            total += quantise(clipped, grid) + discrete_gaussian(manifest.dimension, noise_std)
        direction = descent_direction(
            dequantise(total, grid),
            mode=manifest.mode,
            cohort_nominal=manifest.nominal_patients,
            nominal=manifest.nominal_patients,
        )
        state = server_step(state, direction, plan.training)
    features = normalise(plan.normalisation, rows.test)
    probabilities = predict(plan.model, len(CLASSES), state.released, features)
    return float((probabilities.argmax(axis=1) == rows.test_labels).mean())


def _manifest(plan: TrainingPlan, sizes: Sequence[int]) -> Manifest:
    roster = [
        RosterEntry(name=f"site-{number}", identity_key=f"site-{number}", nominal_patients=size)
        for number, size in enumerate(sizes, start=1)
    ]
    return build_manifest(
        plan, run_id="mnist", roster=roster, coordinator_key="", noise_multiplier=calibrate_plan(plan)
    )
