"""What a simulation leaves behind: summary.json, report.html, and a few lines for the terminal."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.canonical import canonical_json
from common.files import write_atomic
from common.report.page import render_report
from simulations.residual import ResidualScan
from simulations.run import SimulationOptions, simulate
from simulations.scenario import Scenario
from simulations.summary import residual_scan, summarise

SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"
ROW_NAMES = {
    "federated": "this run",
    "pooled_nonprivate": "pooled, not private",
    "pooled_dp": "pooled, private",
    "federated_nonprivate": "federated, not private",
    "federated_local_dp": "federated, each site its own noise",
    "best_single_site_dp": "best single site, private",
}


def simulate_to_directory(
    scenario: Scenario, options: SimulationOptions, *, comparison: bool, report: Callable[[str], None]
) -> dict[str, Any]:
    """Run a scenario and write its results; returns the summary.

    The residual scan reads every other file first. Summary and report, its counts already in them, are searched as they
    will be written; what is found there is counted, and they are made and searched again until the count is true.
    """
    simulation = simulate(scenario, options, report=report)
    summary = summarise(simulation, comparison=comparison, report=report)
    report("searching everything for identifiers")
    for name, text in searched_texts(summary, residual_scan(simulation, options.out), simulation.message_scan.scan):
        write_atomic(options.out / name, text, mode=0o644)
    return summary


def searched_texts(summary: dict[str, Any], others: dict[str, Any], scan: ResidualScan) -> list[tuple[str, bytes]]:
    """Name and text of summary and report, with the scan's counts in them, themselves included.

    Args:
        others: Counts of everything else; they are completed and put into `summary`.
    """
    found, size = 0, 0
    while True:
        counts = {"files": others["files"] + 2, "bytes": others["bytes"] + size, "hits": others["hits"] + found}
        summary["residual_scan"] = {**others, **counts}
        texts = [
            (SUMMARY_FILE, canonical_json(summary) + b"\n"),
            (REPORT_FILE, render_report(summary).encode()),
        ]
        hits = sum(len(scan.scan_bytes(text)) for _, text in texts)
        if size and hits <= found:
            return texts
        found, size = hits, sum(len(text) for _, text in texts)


def summary_text(summary: dict[str, Any], out: Path) -> str:
    """The run in a dozen lines."""
    privacy = summary["privacy"]
    lines = [
        f"{summary['title']}: {summary['rounds']} rounds over {len(summary['sites'])} sites "
        f"in {summary['seconds']:.1f} s",
        f"epsilon {_rounded_up(privacy['epsilon'])}, alone {_rounded_up(privacy['epsilon_alone'])} "
        f"(delta {privacy['delta']:g}, per {privacy['unit']}, add or remove one)",
    ]
    for name, label in ROW_NAMES.items():
        metrics = summary["metrics"].get(name)
        if metrics is not None:
            lines.append(f"  {label:<36} accuracy {100 * metrics['accuracy']:5.1f} %")
    scan = summary["residual_scan"]
    searched = f"{scan['files']} files"
    if scan["messages"] is not None:
        searched += f" and {scan['messages']} messages"
    lines += [
        f"ledgers: {summary['ledger_verdict']}",
        f"searched {searched} for {scan['identifiers']} identifiers of patients: {scan['hits']} found",
        f"report: {out / REPORT_FILE}",
    ]
    return "\n".join(lines)


def read_summary(out: Path) -> dict[str, Any]:
    """The summary in an out directory."""
    document: dict[str, Any] = json.loads((out / SUMMARY_FILE).read_bytes())
    return document


def _rounded_up(epsilon: float) -> str:
    """Two digits, never less than the truth."""
    return f"{math.ceil(100 * epsilon) / 100:.2f}"
