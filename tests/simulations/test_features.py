"""Features and public constants, for tables and for pictures with a made-up backbone."""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from common.errors import ConfigurationError, TrustError
from simulations.features import PreparedData, prepare_data
from simulations.run import SimulationOptions, simulate
from simulations.scenario import Scenario
from tests.simulations.small import changed, silent

PATIENTS = 48


@pytest.fixture(scope="module")
def breast() -> PreparedData:
    return prepare_data(changed("breast"), data=None, weights=None, device="cpu", report=silent)


def test_the_constants_are_mean_and_deviation_of_the_tuning_rows_alone(breast: PreparedData) -> None:
    source = breast.source
    rows = source.frame[breast.split.tuning].select(source.feature_columns).to_numpy()
    assert np.allclose(breast.normalisation.center, rows.mean(axis=0), rtol=1e-5)
    assert np.allclose(breast.normalisation.scale, rows.std(axis=0), rtol=1e-5)


def test_no_record_is_longer_than_the_public_bound(breast: PreparedData) -> None:
    everything = breast.of_rows(np.arange(569))
    assert np.abs(everything).max() <= 2.0 + 1e-6
    assert np.linalg.norm(everything, axis=1).max() <= 4.0 + 1e-5


def test_only_the_normalisation_is_filled_in(breast: PreparedData) -> None:
    scenario = changed("breast", plan__privacy__epsilon=7.0)
    plan = breast.plan_of(scenario)
    assert plan.model_copy(update={"normalisation": scenario.plan.normalisation}) == scenario.plan


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SqueezeNet's weights as torchvision makes them up: right names and shapes, nothing learned."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = squeezenet1_1(weights=None).features.state_dict()
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file({f"features.{name}": value for name, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture a patient, dark if normal and bright if not; the last two files are the same picture."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    rows = []
    for patient in range(PATIENTS):
        ill = patient % 2
        shade = random.integers(40, 120, (24, 24)) + 90 * ill
        name = f"{patient}.png"
        Image.fromarray(shade.astype(np.uint8)).save(folder / name)
        rows.append({"file": name, "label": ("NORMAL", "PNEUMONIA")[ill], "patient": f"p{patient:02d}"})
    (folder / f"{PATIENTS - 1}.png").write_bytes((folder / f"{PATIENTS - 3}.png").read_bytes())
    pl.DataFrame(rows).write_csv(folder / "index.csv")
    return folder


@pytest.fixture(scope="module")
def scenario(weights: Path) -> Scenario:
    return changed(
        "xray",
        data__public_rows=16,
        data__public_tuning_rows=6,
        plan__model__weights="sha256:" + hashlib.sha256(weights.read_bytes()).hexdigest(),
        plan__training__rounds=2,
        plan__privacy__nominal_patients=32,
    )


def test_every_picture_is_computed_once_for_sites_and_comparison_together(
    scenario: Scenario, pictures: Path, weights: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    prepared = prepare_data(scenario, data=pictures, weights=weights, device="cpu", report=said.append)
    simulation = simulate(scenario, SimulationOptions(out=tmp_path / "run"), report=said.append, prepared=prepared)
    rows = simulation.of_rows(np.arange(PATIENTS))
    computed = [int(line.split()[4]) for line in said if line.startswith("computing the features of")]
    assert rows.shape == (PATIENTS, 512)
    assert sum(computed) == len(prepared.known) == PATIENTS - 1
    for site in simulation.sites:
        kept = list((site.home.root / "features").iterdir())
        assert len(kept) == 1 and kept[0].name.endswith(".sealed")
        assert b"features" not in kept[0].read_bytes()


def test_a_process_that_is_given_the_features_computes_none(scenario: Scenario, pictures: Path, weights: Path) -> None:
    first = prepare_data(scenario, data=pictures, weights=weights, device="cpu", report=silent)
    first.of_rows(np.arange(PATIENTS))
    said: list[str] = []
    second = prepare_data(
        scenario, data=pictures, weights=weights, device="cpu", report=said.append, known=dict(first.known)
    )
    assert np.array_equal(second.of_rows(np.arange(PATIENTS)), first.of_rows(np.arange(PATIENTS)))
    assert not any(line.startswith("computing") for line in said)


def test_another_weights_file_is_refused_before_anything_is_written(
    scenario: Scenario, pictures: Path, weights: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights.read_bytes() + b" ")
    options = SimulationOptions(out=tmp_path / "run", data=pictures, weights=other)
    with pytest.raises(TrustError, match="and the plan pins"):
        simulate(scenario, options, report=silent)
    assert not (tmp_path / "run").exists()


def test_pictures_without_weights_are_a_fault_of_the_configuration(scenario: Scenario, pictures: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs its weights"):
        prepare_data(scenario, data=pictures, weights=None, device="cpu", report=silent)


def test_pictures_without_a_backbone_are_refused(pictures: Path) -> None:
    scenario = changed(
        "xray",
        data__public_rows=16,
        data__public_tuning_rows=6,
        plan__model={"head": "linear", "inputs": [512]},
    )
    with pytest.raises(ConfigurationError, match="need a backbone"):
        prepare_data(scenario, data=pictures, weights=None, device="cpu", report=silent)
