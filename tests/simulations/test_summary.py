"""A run's summary against its own files: what `simulations/summary.py` says is worked out here in another way."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.datasets import load_breast_cancer

from simulations.datasets import load_source, split_public
from simulations.outcome import REPORT_FILE, SUMMARY_FILE, read_summary, searched_texts, simulate_to_directory
from simulations.residual import ResidualScan
from simulations.run import SimulationOptions
from simulations.scenario import load_scenario
from tests.simulations.small import changed, silent

ROUNDS, SPARE = 6, 2
MARGIN = 0.01
METRIC_KEYS = {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "auroc", "auprc", "ece", "n_test"}
PRIVACY = {"epsilon": float, "epsilon_alone": float, "delta": float, "unit": str, "relation": str}
DOCUMENTED: dict[str, Any] = {
    "version": int,
    "run_id": str,
    "scenario": str,
    "mode": str,
    "backend": str,
    "rounds": int,
    "seconds": float,
    "plan_digest": str,
    "manifest_digest": str,
    "model_digest": str,
    "privacy": PRIVACY | {"target_epsilon": float},
    "ledger_verdict": str,
    "secure_sum": {
        "dropouts": str,
        "exchanges": int,
        "bytes_per_parameter": float,
        "attempts": int,
        "attempts_spare": int,
        "site_dropouts": int,
    },
}
DOCUMENTED_OF_A_SITE: dict[str, Any] = PRIVACY | {
    "name": str,
    "records": int,
    "patients": int,
    "epsilon_limit": float,
    "epsilon_alone_limit": float,
    "ledger_entries": int,
    "ledger_head": str,
    "deid": {"in": int, "released": int, "quarantined": int, "rejected": int},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The out directory of a short run with comparison rows."""
    path = tmp_path_factory.mktemp("summary") / "run"
    scenario = changed("breast", plan__training__rounds=ROUNDS, plan__training__spare_attempts=SPARE)
    simulate_to_directory(scenario, SimulationOptions(out=path, seed=3), comparison=True, report=silent)
    return path


@pytest.fixture(scope="module")
def summary(out: Path) -> dict[str, Any]:
    return read_summary(out)


def missing(document: dict[str, Any], expected: dict[str, Any], path: str = "") -> list[str]:
    """Keys that are not there or hold another type; JSON writes 3.0 as 3."""
    found = []
    for key, kind in expected.items():
        value, place = document.get(key), f"{path}{key}"
        if isinstance(kind, dict):
            found += missing(value, kind, f"{place}.") if isinstance(value, dict) else [place]
        elif not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            found.append(place)
    return found


def test_every_documented_key_is_there_with_its_type(summary: dict[str, Any]) -> None:
    assert missing(summary, DOCUMENTED) == []
    assert [missing(site, DOCUMENTED_OF_A_SITE) for site in summary["sites"]] == [[]] * 4


def test_every_row_has_every_measure(summary: dict[str, Any]) -> None:
    assert set(summary["metrics"]) == {
        "federated", "pooled_nonprivate", "pooled_dp", "federated_nonprivate", "federated_local_dp",
        "best_single_site_dp",
    }  # fmt: skip
    for row in summary["metrics"].values():
        assert set(row) == METRIC_KEYS
        assert all(isinstance(row[key], int | float) for key in METRIC_KEYS)


def test_history_has_one_entry_a_round(summary: dict[str, Any]) -> None:
    assert [entry["round"] for entry in summary["history"]] == list(range(1, ROUNDS + 1))
    assert {key for entry in summary["history"] for key in entry} == {"round", "accuracy", "loss"}
    assert summary["history"][-1]["accuracy"] == summary["metrics"]["federated"]["accuracy"]


def test_attempts_are_those_that_were_made(summary: dict[str, Any]) -> None:
    assert (summary["secure_sum"]["attempts"], summary["secure_sum"]["attempts_spare"]) == (ROUNDS, SPARE)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The root of Balle and Wang's expression for delta, by bisection."""

    def excess(epsilon: float) -> float:
        upper = norm.cdf(mu / 2 - epsilon / mu)
        return float(upper - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta)

    return float(brentq(excess, 0.0, 200.0))


@pytest.mark.parametrize(
    ("key", "multiplier"), [("epsilon", "noise_multiplier"), ("epsilon_alone", "noise_multiplier_alone")]
)
def test_epsilon_follows_from_the_lines_of_the_ledgers(
    out: Path, summary: dict[str, Any], key: str, multiplier: str
) -> None:
    for site in summary["sites"]:
        lines = (out / "sites" / site["name"] / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        charged = [line["event"] for line in map(json.loads, lines) if line["kind"] == "reserve"]
        assert len(charged) == ROUNDS
        mu = math.sqrt(sum(event["steps"] / event[multiplier] ** 2 for event in charged))
        assert site[key] == pytest.approx(gaussian_epsilon(mu, 1e-5) + MARGIN, abs=2e-3)
        assert site["ledger_entries"] == len(lines)
    assert summary["privacy"][key] == max(site[key] for site in summary["sites"])


def test_epsilon_stays_within_target_and_limits(summary: dict[str, Any]) -> None:
    assert summary["privacy"]["epsilon"] <= summary["privacy"]["target_epsilon"]
    for site in summary["sites"]:
        assert site["epsilon"] <= site["epsilon_limit"]
        assert site["epsilon_alone"] <= site["epsilon_alone_limit"]


def test_accuracy_follows_from_the_released_file_and_the_public_rows(out: Path, summary: dict[str, Any]) -> None:
    scenario, bundle = load_scenario("breast"), load_breast_cancer()
    source = load_source(scenario.data, scenario.plan.task.classes, None)
    test = split_public(source, scenario.data, name="breast").test
    plan = json.loads((out / "plan.json").read_bytes())["plan"]["normalisation"]
    rows = (bundle.data[test] - np.array(plan["center"])) / np.array(plan["scale"])
    rows = np.clip(rows, -plan["limit"], plan["limit"])
    rows /= np.maximum(1.0, np.linalg.norm(rows, axis=1, keepdims=True) / plan["record_norm"])
    model = load_file(out / "model" / "model.safetensors")
    scores = rows @ model["head.weight"].T + model["head.bias"]
    malignant = scores[:, 1] > scores[:, 0]
    federated = summary["metrics"]["federated"]
    assert federated["accuracy"] == np.mean(malignant == (bundle.target[test] == 0))
    assert federated["n_test"] == len(test) == 100


def test_records_and_patients_add_up_to_the_private_ones(summary: dict[str, Any]) -> None:
    assert sum(site["records"] for site in summary["sites"]) == 426
    assert sum(site["patients"] for site in summary["sites"]) == 426
    assert sum(site["deid"]["released"] for site in summary["sites"]) == 426


def test_the_scan_counts_every_file_that_is_there(out: Path, summary: dict[str, Any]) -> None:
    files = [path for path in out.rglob("*") if path.is_file()]
    assert (summary["residual_scan"]["files"], summary["residual_scan"]["hits"]) == (len(files), 0)


def test_the_texts_are_searched_as_they_are_written(summary: dict[str, Any]) -> None:
    others = {**summary["residual_scan"], "files": 10, "hits": 1}
    texts = dict(searched_texts(dict(summary), others, ResidualScan([["Breast cancer diagnosis at four hospitals"]])))
    assert set(texts) == {SUMMARY_FILE, REPORT_FILE}
    scan = json.loads(texts[SUMMARY_FILE])["residual_scan"]
    assert (scan["files"], scan["hits"]) == (12, 1 + 2)
    assert "identifiers of patients" in texts[REPORT_FILE].decode()
