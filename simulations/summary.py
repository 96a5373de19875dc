"""What `summary.json` says of a run: everything worked out again from ledgers, model and public rows."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.training.batch import PatientBatch, group_by_patient
from client.training.engine import choose_engine
from common.cli import installed_version
from common.metrics import Metrics, evaluate, wilson_interval
from common.model import cross_entropy, predict
from common.plan import TrainingPlan
from common.privacy.accountant import EPSILON_MARGIN
from common.privacy.budget import RELATION
from common.privacy.events import MechanismEvent
from common.privacy.gaussian import gaussian_epsilon
from common.report.audit import AuditVerdict, LedgerVerdict, verify_paths
from server.release import read_release
from server.rundir import RESULT_FILE
from simulations.comparison import (
    Peers,
    best_single_site_dp,
    federated_local_dp,
    federated_nonprivate,
    pooled_dp,
    pooled_nonprivate,
)
from simulations.held_out import evaluation_summary
from simulations.run import Simulation

SUMMARY_VERSION = 1
COMPARISON_ROWS = (
    "pooled_nonprivate",
    "pooled_dp",
    "federated_nonprivate",
    "federated_local_dp",
    "best_single_site_dp",
)
GROUP_SIZES = (2, 5)
SPENT_FIELDS = (
    "epsilon",
    "epsilon_alone",
    "epsilon_limit",
    "epsilon_alone_limit",
    "delta",
    "unit",
    "relation",
    "unsettled",
)


def summarise(simulation: Simulation, *, comparison: bool, report: Callable[[str], None]) -> dict[str, Any]:
    """The document of `summary.json` v1.

    Privacy numbers come from the ledgers on disk through the auditor's own code, the model from the signed release.
    """
    clock = time.perf_counter()
    out, plan, manifest = simulation.options.out, simulation.plan, simulation.manifest
    result = json.loads((out / RESULT_FILE).read_bytes())
    report("verifying the ledgers")
    verdict = verify_paths([out])
    parameters = read_release(out / "model", plan=plan, key=manifest.coordinator_key)
    metrics: dict[str, Metrics | None] = {"federated": _test_metrics(simulation, parameters)}
    noise = "each its own full noise" if manifest.mode == "local" else "noise shared"
    notes = {"federated": f"{len(manifest.roster)} sites, {noise}, under a secure sum"}
    metrics |= dict.fromkeys(COMPARISON_ROWS)
    if comparison:
        compared, compared_notes = compare(peers_of(simulation), report=report)
        metrics |= compared
        notes |= compared_notes
    document: dict[str, Any] = {
        "version": SUMMARY_VERSION,
        "fedward_version": installed_version(),
        "run_id": manifest.run_id,
        "scenario": simulation.scenario.name,
        "title": simulation.scenario.title,
        "started": simulation.started.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "mode": manifest.mode,
        "backend": simulation.options.backend,
        "seed": simulation.options.seed,
        "rounds": result["rounds"],
        "planned_rounds": manifest.rounds,
        "plan_digest": plan.digest,
        "manifest_digest": manifest.digest,
        "model_digest": result["model_digest"],
        "task": {"classes": list(plan.task.classes), "positive": plan.task.positive},
        "model": {
            "head": plan.model.head,
            "backbone": plan.model.backbone,
            "weights": plan.model.weights,
            "parameters": manifest.dimension,
        },
        "privacy": _privacy(simulation, verdict),
        "ledger_verdict": verdict.words,
        "sites": _sites(simulation, verdict, result["left"]),
        "metrics": {name: None if row is None else row.to_json() for name, row in metrics.items()},
        "comparison_notes": notes,
        "comparison_intervals": {
            name: list(wilson_interval(round(row.accuracy * row.n_test), row.n_test))
            for name, row in metrics.items()
            if row is not None and row.accuracy is not None
        },
        "history": _history(simulation),
        "evaluation": evaluation_summary(simulation, verdict),
        "secure_sum": {
            "dropouts": manifest.dropouts,
            "exchanges": result["exchanges"],
            "bytes_per_parameter": result["bytes_up"] / manifest.dimension,
            "attempts": result["attempts"],
            "attempts_spare": manifest.spare_attempts,
            "site_dropouts": len(result["left"]),
            "sites": len(manifest.roster),
            "minimum_cohort": manifest.minimum_cohort,
            "colluding": manifest.colluding,
            "shares": len(manifest.roster) - manifest.colluding if manifest.mode == "pooled" else 1,
            "dimension": manifest.dimension,
            "scale": manifest.scale,
        },
    }
    document["residual_scan"] = None
    document["seconds"] = round(simulation.training_seconds + time.perf_counter() - clock, 3)
    return document


def compare(peers: Peers, *, report: Callable[[str], None]) -> tuple[dict[str, Metrics | None], dict[str, str]]:
    """Train every comparison row; metrics on the test rows and a line about each."""
    report("comparing: the same records pooled, without privacy")
    rows: dict[str, Metrics | None] = {"pooled_nonprivate": peers.test_metrics(pooled_nonprivate(peers))}
    report("comparing: the same records pooled, with privacy")
    pooled, which = pooled_dp(peers)
    rows["pooled_dp"] = peers.test_metrics(pooled)
    report("comparing: federated without privacy")
    rows["federated_nonprivate"] = peers.test_metrics(federated_nonprivate(peers))
    report("comparing: every site with its own full noise")
    rows["federated_local_dp"] = peers.test_metrics(federated_local_dp(peers))
    report("comparing: every site alone")
    alone, site = best_single_site_dp(peers)
    chosen = "chosen on the public tuning rows" if len(peers.public.tuning_labels) else "the largest"
    rows["best_single_site_dp"] = peers.test_metrics(alone)
    return rows, {
        "pooled_nonprivate": "all records in one place, full-batch descent",
        "pooled_dp": f"all records in one place: {which}",
        "federated_nonprivate": "FedAvg, nothing clipped, no noise",
        "federated_local_dp": "every site adds its own full noise; needs nobody's honesty",
        "best_single_site_dp": f"site {site + 1} of {len(peers.sites)}, {chosen}",
    }


def peers_of(simulation: Simulation) -> Peers:
    """The private records that the sites trained on, as a simulator may see them, for the comparison rows."""
    source, plan = simulation.source, simulation.plan
    classes = len(plan.task.classes)

    def batch(rows: NDArray[np.int64]) -> PatientBatch:
        found = group_by_patient(simulation.of_rows(rows), source.labels[rows], source.patients[rows], classes=classes)
        return found.by_record() if plan.privacy.unit == "record" else found

    return Peers(
        plan=plan,
        comparison=simulation.scenario.comparison,
        sites=[batch(site.training_rows) for site in simulation.sites],
        nominal=[entry.nominal_patients for entry in simulation.manifest.roster],
        pooled=batch(np.sort(np.concatenate([site.training_rows for site in simulation.sites]))),
        public=simulation.public,
        engine=choose_engine(plan.model, classes, device=simulation.options.device)[0],
        seed=simulation.options.seed,
    )


def _test_metrics(simulation: Simulation, parameters: NDArray[np.float32]) -> Metrics:
    task, plan = simulation.plan.task, simulation.plan
    probabilities = predict(plan.model, len(task.classes), parameters, simulation.public.test_features)
    return evaluate(probabilities, simulation.public.test_labels, positive=task.classes.index(task.positive))


def _history(simulation: Simulation) -> list[dict[str, Any]]:
    plan, public = simulation.plan, simulation.public
    rows = []
    for number, parameters in enumerate(simulation.history, start=1):
        probabilities = predict(plan.model, len(plan.task.classes), parameters, public.test_features)
        rows.append(
            {
                "round": number,
                "accuracy": float((probabilities.argmax(axis=1) == public.test_labels).mean()),
                "loss": cross_entropy(probabilities, public.test_labels),
            }
        )
    return rows


def _privacy(simulation: Simulation, verdict: AuditVerdict) -> dict[str, Any]:
    """The run's guarantee: the largest spend of any site, and what it means for larger changes."""
    plan, manifest = simulation.plan, simulation.manifest
    spent = [population for ledger in verdict.ledgers for population in ledger.populations]
    return {
        "epsilon": max((population.epsilon for population in spent), default=None),
        "epsilon_alone": max((population.epsilon_alone for population in spent), default=None),
        "delta": plan.privacy.delta,
        "unit": plan.privacy.unit,
        "relation": RELATION,
        "target_epsilon": plan.privacy.epsilon,
        "colluding": manifest.colluding,
        "noise_multiplier": manifest.noise_multiplier,
        "clipping_norm": plan.privacy.clipping_norm,
        "nominal_patients": plan.privacy.nominal_patients,
        "replace_one": _group(verdict, plan, 2),
        "groups": {str(size): _group(verdict, plan, size) for size in GROUP_SIZES},
    }


def _group(verdict: AuditVerdict, plan: TrainingPlan, size: int) -> dict[str, float] | None:
    """Epsilon for `size` patients at once: full batches are one Gaussian of `size` times the mean shift.

    Replacing one patient is removing one and adding one, so it is bounded by a group of two. None for sampled plans,
    where that argument does not hold.
    """
    worst = 0.0
    for ledger in verdict.ledgers:
        for account in ledger.report.populations.values() if ledger.report is not None else ():
            if any(event.sampling_rate < 1 for event in account.events):
                return None
            worst = max(worst, _squared_mu(account.events))
    if worst == 0.0:
        return None
    delta = plan.privacy.delta
    return {"epsilon": gaussian_epsilon(size * worst**0.5, delta) + EPSILON_MARGIN, "delta": delta}


def _squared_mu(events: tuple[MechanismEvent, ...]) -> float:
    return sum(event.steps / event.noise_multiplier**2 for event in events)


def _sites(simulation: Simulation, verdict: AuditVerdict, left: Mapping[str, str]) -> list[dict[str, Any]]:
    by_site = {ledger.site: ledger for ledger in verdict.ledgers}
    return [
        {
            "name": site.home.name,
            "records": len(site.rows),
            "patients": site.patients,
            "status": f"refused: {left[site.home.name]}" if site.home.name in left else "completed",
            **_spent(by_site[site.home.name]),
            "deid": site.deid.to_json(),
        }
        for site in simulation.sites
    ]


def _spent(ledger: LedgerVerdict) -> dict[str, Any]:
    """What the site's ledger proves; null where it proves nothing, which is not zero."""
    report = ledger.report
    population = ledger.populations[0] if ledger.populations else None
    spent = {name: getattr(population, name, None) for name in SPENT_FIELDS}
    return {
        **spent,
        "ledger_entries": report.entries if report else None,
        "ledger_head": report.head.digest if report else None,
        "witnessed_seq": report.witnessed_seq if report else None,
    }


def residual_scan(simulation: Simulation, directory: Path) -> dict[str, Any]:
    """Search every file under the out directory, and what was searched of the messages, for any identifier.

    Messages that pass between other processes are not seen here; their number is then unknown, not zero.
    """
    messages = simulation.message_scan
    tree = messages.scan.scan_tree(directory)
    return {
        "files": tree.files,
        "bytes": tree.bytes + messages.size_bytes,
        "messages": messages.messages if simulation.options.backend == "inline" else None,
        "identifiers": tree.identifiers,
        "hits": len(tree.hits) + len(messages.hits),
    }
