"""What the head sees: raw feature vectors of public and private records, and the plan's public constants."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.data.intake import FeatureMaker
from client.data.readers import RawTable
from client.deid.clean import CleanTable
from client.home import SiteHome
from common.errors import ConfigurationError
from common.model import normalise
from common.plan import TrainingPlan
from simulations.datasets import FILE_COLUMN, PublicSplit, SourceRows
from simulations.scenario import Scenario

SIGNIFICANT_DIGITS = 6
SMALLEST_SCALE = 1e-6
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicRows:
    """Normalised features and labels of the public records.

    Attributes:
        tuning_features, test_features: Shape (n, *inputs), float32.
        tuning_labels, test_labels: Shape (n,).
    """

    tuning_features: NDArray[np.float32]
    tuning_labels: NDArray[np.int64]
    test_features: NDArray[np.float32]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFeatures:
    """Everything about features that a simulation needs.

    Attributes:
        plan: The scenario's plan with its public constants filled in.
        maker: For a site's home, how it computes features from its de-identified table; None for declared columns.
        of_rows: Normalised features of any source records, for the comparison runs of the simulator.
    """

    plan: TrainingPlan
    public: PublicRows
    maker: Callable[[SiteHome], FeatureMaker | None]
    of_rows: Callable[[NDArray[np.int64]], NDArray[np.float32]]


def prepare_features(
    scenario: Scenario,
    source: SourceRows,
    split: PublicSplit,
    *,
    weights: Path | None,
    device: Device,
    report: Callable[[str], None],
) -> PreparedFeatures:
    """Work out the public constants from the tuning rows alone, and how features come about.

    Raises:
        ConfigurationError: If the plan needs a backbone and no weights file is given.
        TrustError: If the weights file is not the pinned one.
    """
    if source.directory is None:
        return _table_features(scenario, source, split)
    return _image_features(scenario, source, split, weights=weights, device=device, report=report)


def with_public_constants(plan: TrainingPlan, tuning: NDArray[np.float32]) -> TrainingPlan:
    """The plan whose center and scale are mean and standard deviation of public rows, to 6 significant digits."""
    rows = tuning.reshape(len(tuning), -1).astype(np.float64)
    center = tuple(_rounded(value) for value in rows.mean(axis=0))
    scale = tuple(max(_rounded(value), SMALLEST_SCALE) for value in rows.std(axis=0))
    constants = plan.normalisation.model_copy(update={"center": center, "scale": scale})
    return plan.model_copy(update={"normalisation": constants})


def _prepared(
    scenario: Scenario,
    source: SourceRows,
    split: PublicSplit,
    raw_of_rows: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    maker: Callable[[SiteHome], FeatureMaker | None],
) -> PreparedFeatures:
    tuning_rows, test_rows = source.rows_of(split.tuning), source.rows_of(split.test)
    tuning = raw_of_rows(tuning_rows)
    plan = with_public_constants(scenario.plan, tuning)
    labels = source.labels
    public = PublicRows(
        tuning_features=normalise(plan.normalisation, tuning),
        tuning_labels=labels[tuning_rows],
        test_features=normalise(plan.normalisation, raw_of_rows(test_rows)),
        test_labels=labels[test_rows],
    )
    return PreparedFeatures(
        plan=plan, public=public, maker=maker, of_rows=lambda rows: normalise(plan.normalisation, raw_of_rows(rows))
    )


def _table_features(scenario: Scenario, source: SourceRows, split: PublicSplit) -> PreparedFeatures:
    matrix = source.frame.select(list(scenario.deid.named("feature"))).to_numpy().astype(np.float32)
    return _prepared(scenario, source, split, lambda rows: matrix[rows], lambda _: None)


def _image_features(
    scenario: Scenario,
    source: SourceRows,
    split: PublicSplit,
    *,
    weights: Path | None,
    device: Device,
    report: Callable[[str], None],
) -> PreparedFeatures:
    from client.data.images import image_digests, read_images
    from client.features import FeatureCache, extract, feature_key, load_backbone

    directory = source.directory
    if weights is None or directory is None:
        raise ConfigurationError(
            f"the backbone {scenario.plan.model.backbone!r} needs its weights",
            hint="give --weights FILE; its sha256 must be the one that the plan pins",
        )
    report("loading the backbone")
    backbone = load_backbone(scenario.plan.model.backbone, weights, expected=scenario.plan.model.weights)
    names = source.frame.get_column(FILE_COLUMN).to_list()
    known: dict[int, NDArray[np.float32]] = {}

    def raw_of_rows(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        new = [int(row) for row in rows if int(row) not in known]
        if new:
            report(f"computing the features of {len(new)} images")
            computed = extract(backbone, read_images(directory, [names[row] for row in new]), device=device)
            known.update(zip(new, computed, strict=True))
        return np.stack([known[int(row)] for row in rows])

    def maker(home: SiteHome) -> FeatureMaker:
        def features(clean: CleanTable, raw: RawTable) -> NDArray[np.float32]:
            files = raw.column(FILE_COLUMN).gather(clean.source_rows).to_list()
            cache = FeatureCache(directory=home.root / "features", seal=home.seal, unseal=home.unseal)
            key = feature_key(backbone, image_digests(directory, files))
            return cache.fetch(key, lambda: extract(backbone, read_images(directory, files), device=device))

        return features

    return _prepared(scenario, source, split, raw_of_rows, maker)


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
