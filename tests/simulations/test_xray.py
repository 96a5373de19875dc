"""The scenario `xray` with its real pictures and weights; skipped where they are not."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from common.errors import TrustError
from simulations.features import prepare_data
from simulations.outcome import simulate_to_directory
from simulations.run import SimulationOptions, simulate
from simulations.scenario import Scenario, load_scenario
from tests.simulations.small import changed, silent

SHARED_DATA = Path(os.environ.get("FEDWARD_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
PICTURES = SHARED_DATA / "chest_xray"
WEIGHTS = SHARED_DATA / "weights" / "squeezenet1_1_features.safetensors"
FEW_PATIENTS = 48

pytestmark = pytest.mark.skipif(
    not (PICTURES.is_dir() and WEIGHTS.is_file()), reason=f"no chest X-rays or no weights below {SHARED_DATA}"
)


@pytest.fixture(scope="module")
def few_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of a few patients of each class, as links beside an index of their own."""
    folder = tmp_path_factory.mktemp("xray")
    index = pl.read_csv(PICTURES / "index.csv", infer_schema=False)
    people = index.unique("patient", keep="first", maintain_order=True)
    chosen = pl.concat([group.head(FEW_PATIENTS // 2) for _, group in people.group_by("label", maintain_order=True)])
    index.filter(pl.col("patient").is_in(chosen.get_column("patient").to_list())).write_csv(folder / "index.csv")
    (folder / "images").symlink_to(PICTURES / "images")
    return folder


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """A few patients and a few rounds, with an epsilon that only such a short test may have."""
    return changed(
        "xray",
        data__public_rows=24,
        data__public_tuning_rows=8,
        plan__training__rounds=8,
        plan__privacy__epsilon=100.0,
        plan__privacy__nominal_patients=24,
    )


@pytest.fixture(scope="module")
def short_run(
    scenario: Scenario, few_pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("xray-run") / "run"
    options = SimulationOptions(out=out, data=few_pictures, weights=WEIGHTS)
    return simulate_to_directory(scenario, options, comparison=False, report=silent), out


def test_a_head_on_the_frozen_backbone_learns_from_few_patients(short_run: tuple[dict[str, Any], Path]) -> None:
    summary, _ = short_run
    assert summary["ledger_verdict"] == "verified"
    assert summary["model"]["backbone"] == "squeezenet1_1"
    assert summary["metrics"]["federated"]["auroc"] >= 0.8


def test_every_site_keeps_its_features_encrypted(short_run: tuple[dict[str, Any], Path]) -> None:
    summary, out = short_run
    for site in summary["sites"]:
        (kept,) = (out / "sites" / site["name"] / "features").iterdir()
        data = kept.read_bytes()
        assert kept.suffix == ".sealed"
        assert len(data) >= 512 * 4 * site["records"]
        assert len(np.unique(np.frombuffer(data, dtype=np.uint8))) == 256


def test_other_weights_are_refused(scenario: Scenario, few_pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    data = bytearray(WEIGHTS.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    options = SimulationOptions(out=tmp_path / "run", data=few_pictures, weights=other)
    with pytest.raises(TrustError, match="and the plan pins"):
        simulate(scenario, options, report=silent)


@pytest.mark.slow
def test_pneumonia_is_told_at_epsilon_3(tmp_path: Path) -> None:
    scenario = load_scenario("xray")
    prepared = prepare_data(scenario, data=PICTURES, weights=WEIGHTS, device="auto", report=silent)
    options = SimulationOptions(out=tmp_path / "run", data=PICTURES, weights=WEIGHTS)
    summary = simulate_to_directory(scenario, options, comparison=False, report=silent)
    assert summary["privacy"]["epsilon"] <= 3.0
    assert summary["metrics"]["federated"]["auroc"] >= 0.955
    assert summary["metrics"]["federated"]["n_test"] == len(prepared.public.test_labels)
