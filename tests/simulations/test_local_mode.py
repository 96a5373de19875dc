"""`mode = "local"`: every site adds its own full noise, over the whole simulated federation."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from client.data.intake import FeatureMaker
from client.deid.rules import TableSchema
from client.home import SiteHome
from common.report.numbers import Shown
from common.report.sentences import what_was_done
from simulations.datasets import PublicSplit, SourceRows
from simulations.features import PreparedData, PublicRows
from simulations.identities import IDENTITY_RULES
from simulations.outcome import REPORT_FILE, simulate_to_directory, summary_text
from simulations.run import SimulationOptions, simulate
from simulations.scenario import Scenario
from simulations.summary import summarise
from tests.simulations.small import changed, silent

LOCAL = {"plan__training__mode": "local", "plan__training__local_learning_rate": 1.0, "plan__training__rounds": 30}


def run(scenario: Scenario, out: Path) -> dict[str, Any]:
    options = SimulationOptions(out=out, device="cpu")
    return simulate_to_directory(scenario, options, comparison=False, report=silent)


@pytest.fixture(scope="module")
def full_batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("local") / "run"
    return run(changed("breast", **LOCAL), out), out


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    scenario = changed("breast", **LOCAL, plan__training__sampling_rate=0.25, plan__training__local_steps=4)
    out = tmp_path_factory.mktemp("sampled") / "run"
    return run(scenario, out), out


@pytest.mark.parametrize("name", ["full_batch", "sampled"])
def test_the_model_is_useful_at_epsilon_3(name: str, request: pytest.FixtureRequest) -> None:
    summary, _ = request.getfixturevalue(name)
    assert summary["mode"] == "local"
    assert summary["ledger_verdict"] == "verified"
    assert summary["metrics"]["federated"]["accuracy"] >= 0.92


@pytest.mark.parametrize("name", ["full_batch", "sampled"])
def test_epsilon_needs_nobody_elses_honesty(name: str, request: pytest.FixtureRequest) -> None:
    summary, _ = request.getfixturevalue(name)
    for spent in (summary["privacy"], *summary["sites"]):
        assert spent["epsilon"] == spent["epsilon_alone"] <= 3.0
    assert summary["secure_sum"]["shares"] == 1


def test_a_sampled_plan_is_admitted_by_renyi_accounting(sampled: tuple[dict[str, Any], Path]) -> None:
    summary, out = sampled
    for site in summary["sites"]:
        lines = (out / "sites" / site["name"] / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        opened, charged = json.loads(lines[0])["event"], json.loads(lines[1])["event"]
        assert opened["filter"]["kind"] == "rdp"
        assert opened["budget"]["epsilon"] >= 3.0
        assert (charged["mode"], charged["sampling_rate"], charged["steps"]) == ("local", 0.25, 4)


def test_larger_groups_of_a_sampled_plan_are_unknown_and_not_zero(sampled: tuple[dict[str, Any], Path]) -> None:
    summary, _ = sampled
    assert summary["privacy"]["groups"] == {"2": None, "5": None}


def test_the_texts_say_that_every_site_adds_the_full_noise(full_batch: tuple[dict[str, Any], Path]) -> None:
    summary, out = full_batch
    said = " ".join(what_was_done(Shown(summary)))
    assert "the site added the full noise itself" in said
    assert "share of the noise" not in said
    assert "share of the noise" not in (out / REPORT_FILE).read_text(encoding="utf-8")
    assert "each its own full noise" in summary["comparison_notes"]["federated"]
    assert re.search(r"epsilon (\d+\.\d\d), alone \1 ", summary_text(summary, out))


def test_a_small_network_learns_by_the_hooks_of_opacus(tmp_path: Path) -> None:
    scenario = changed("breast", **LOCAL, plan__model__head="mlp", plan__model__hidden=[8])
    summary = run(scenario, tmp_path / "run")
    assert summary["ledger_verdict"] == "verified"
    assert summary["metrics"]["federated"]["accuracy"] >= 0.88


def bright_halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of 1 x 6 x 6, bright on the left for label 0 and on the right for label 1."""
    random = np.random.default_rng(5)
    labels = np.arange(count) % 2
    pictures = random.normal(0.0, 0.3, (count, 1, 6, 6))
    pictures[labels == 0, :, :, :3] += 1.0
    pictures[labels == 1, :, :, 3:] += 1.0
    return pictures.astype(np.float32), labels.astype(np.int64)


def picture_data(count: int) -> PreparedData:
    pictures, labels = bright_halves(count)
    columns = {f"pixel {place}": pictures.reshape(count, -1)[:, place] for place in range(36)}
    frame = pl.DataFrame({"diagnosis": [("left", "right")[label] for label in labels], **columns})
    order = np.arange(count)
    source = SourceRows(frame=frame, patients=order, patient_keys=tuple(map(str, order)), classes=("left", "right"))
    split = PublicSplit(tuning=order[:10], test=order[10:60], private=order[60:])

    def maker(home: SiteHome) -> FeatureMaker:
        return lambda clean, raw: clean.feature_matrix().astype(np.float32).reshape(-1, 1, 6, 6)

    public = PublicRows(
        tuning_features=pictures[:10],
        tuning_labels=labels[:10],
        test_features=pictures[10:60],
        test_labels=labels[10:60],
    )
    normalisation = changed("breast").plan.normalisation.model_copy(update={"limit": 0.0, "record_norm": 0.0})
    return PreparedData(
        source=source, split=split, normalisation=normalisation, public=public, maker=maker,
        of_rows=lambda rows: pictures[rows], known={},
    )  # fmt: skip


def test_a_convolutional_network_learns_pictures_by_the_hooks_of_opacus(tmp_path: Path) -> None:
    pixels = {"action": "keep", "type": "number", "role": "feature", "columns": [f"pixel {n}" for n in range(36)]}
    label = {"action": "keep", "type": "category", "values": ["left", "right"], "role": "label"}
    schema = {
        "mode": "safe_harbor",
        "as_of_year": 2026,
        "columns": {**IDENTITY_RULES, "diagnosis": label},
        "families": {"pixels": pixels},
    }
    scenario = changed(
        "breast",
        **LOCAL,
        deid=TableSchema.model_validate(schema),
        data__positive="right",
        plan__task={"kind": "image-classification", "classes": ["left", "right"], "positive": "right"},
        plan__model={"head": "cnn", "inputs": [1, 6, 6], "hidden": [4]},
        plan__privacy__epsilon=20.0,
        plan__privacy__nominal_patients=420,
    )
    options = SimulationOptions(out=tmp_path / "run", device="cpu")
    simulation = simulate(scenario, options, report=silent, prepared=picture_data(600))
    summary = summarise(simulation, comparison=False, report=silent)
    assert summary["ledger_verdict"] == "verified"
    assert summary["model"]["head"] == "cnn"
    assert summary["metrics"]["federated"]["accuracy"] >= 0.75  # fresh noise every time; chance is 0.5
