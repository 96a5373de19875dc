"""The JSON document of `fedward audit report`: everything that the files prove, and what they do not."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError, FederationError, LedgerCorrupt
from common.exits import EXITS
from common.privacy.account import AttemptState, PopulationAccount
from common.privacy.budget import RELATION, View
from common.privacy.entries import format_time
from common.report.attack_results import read_attacks
from common.report.audit import AuditVerdict, LedgerVerdict
from common.report.concerns import concerns, not_told
from common.report.evidence import Holding, own_book, run_of
from common.report.history import LedgerHistory, read_history
from common.report.phrases import answers, ended, mechanism, plan_sentences
from common.report.rundocs import DEID_NAME, RunDocuments, read_deid, read_run
from common.report.spending import curve, filter_facts, spent
from common.report.stretches import fold

DOSSIER_VERSION = 1


def audit_dossier(verdict: AuditVerdict, *, written: datetime, fedward_version: str) -> dict[str, Any]:
    """The document, version 1, as `common/FORMATS.md` describes it.

    Guarantee: nothing but JSON values, no NaN and no infinity; what is unknown is None, never 0.

    Args:
        verdict: What the ledgers prove.
        written: When; with a time zone.
        fedward_version: Of the program that writes it.
    """
    runs = _runs(verdict)
    attacks = [read_attacks(path) for path in runs]
    for run, (_, problems) in zip(runs.values(), attacks, strict=True):
        run.problems += problems
    holdings: dict[int, dict[str, list[Holding]]] = {}
    ledgers = []
    for ledger in verdict.ledgers:
        evidence = ledger.evidence
        if evidence is not None and id(evidence) not in holdings:
            holdings[id(evidence)] = evidence.holdings()
        held = holdings[id(evidence)].get(ledger.site, []) if evidence is not None else []
        ledgers.append(_ledger(ledger, held, runs[_directory(ledger)]))
    error = verdict.error
    document: dict[str, Any] = {
        "version": DOSSIER_VERSION,
        "fedward_version": fedward_version,
        "written": format_time(written),
        "verdict": verdict.words,
        "exit_code": error.exit_code if error is not None else 0,
        "keys": verdict.keys,
        "attention": [],
        "ledgers": ledgers,
        "runs": [_run(run) for run in runs.values() if run.plan or run.manifest or run.model or run.problems],
        "attacks": [result for found, _ in attacks for result in found],
        "leaves": [exit_.to_json() for exit_ in EXITS],
        "not_told": not_told(verdict),
    }
    document["attention"] = concerns(document)
    return document


def _runs(verdict: AuditVerdict) -> dict[Path, RunDocuments]:
    runs: dict[Path, RunDocuments] = {}
    for ledger in verdict.ledgers:
        path = _directory(ledger)
        if path not in runs:
            trust = ledger.evidence.trust if ledger.evidence is not None else None
            runs[path] = read_run(path, trust.coordinator_key if trust is not None else None)
    return runs


def _directory(ledger: LedgerVerdict) -> Path:
    return run_of(ledger.path) if ledger.evidence is None else ledger.evidence.run


def _ledger(ledger: LedgerVerdict, held: Sequence[Holding], run: RunDocuments) -> dict[str, Any]:
    report, evidence = ledger.report, ledger.evidence
    pinned = None
    if evidence is not None and evidence.trust is not None and ledger.site in evidence.trust.sites:
        pinned = evidence.trust.site_key(ledger.site)
    history = read_history(ledger.content, report=report, key=pinned, site=ledger.site)
    lines = history.lines
    return ledger.to_json() | {
        "path": _printable(str(ledger.path)),
        "error": _error(ledger.error),
        "lines_read": len(lines),
        "complete": report is not None and not isinstance(ledger.error, LedgerCorrupt),
        "fingerprint": report.key.fingerprint if report and report.key else None,
        "first_time": lines[0].time if lines else None,
        "last_time": lines[-1].time if lines else None,
        "clock_back_at": _clock_back_at(history),
        "witnesses": _witnesses(ledger, held, history),
        "populations": [
            _population(name, account, history, run) for name, account in history.populations.items()
        ],
        "deid": _deid(ledger.path),
        "lines": [line.to_json() for line in lines],
    }  # fmt: skip


def _error(error: FederationError | None) -> dict[str, str] | None:
    if error is None:
        return None
    return {"name": type(error).__name__, "fact": _printable(error.fact), "hint": _printable(error.hint)}


def _population(name: str, account: PopulationAccount, history: LedgerHistory, run: RunDocuments) -> dict[str, Any]:
    budget = account.budget
    opened = next(line for line in history.lines if line.kind == "open" and line.population == name)
    events = []
    for stretch in fold(account, history.lines, name):
        known = run.manifest is not None and stretch.event.manifest_digest == run.manifest.digest
        norm = run.clipping_norm if known else None
        words = mechanism(stretch.event, unit=budget.unit.value, clipping_norm=norm)
        events.append(
            stretch.to_json()
            | {"words": f"{words} {ended(stretch.state)}", "manifest_known": known, "label": answers(stretch)}
        )
    return {
        "name": name,
        "opened": opened.time,
        "delta": budget.delta,
        "unit": budget.unit.value,
        "relation": RELATION,
        "charged": account.reserves,
        "settled": account.count(AttemptState.SETTLED),
        "burned": account.count(AttemptState.BURNED),
        "unsettled": len(account.unsettled),
        **{view.value: spent(account, view) for view in View},
        "filter": filter_facts(account),
        "curve": _dated(curve(account), account, history, name),
        "events": events,
    }


def _dated(
    rows: list[dict[str, Any]], account: PopulationAccount, history: LedgerHistory, name: str
) -> list[dict[str, Any]]:
    """Each row with the entry that reserved its last answer, and that entry's time."""
    reserves = [line for line in history.lines if line.kind == "reserve" and line.population == name]
    return [{**row, "seq": reserves[row["charged"] - 1].seq, "time": reserves[row["charged"] - 1].time} for row in rows]


def _witnesses(ledger: LedgerVerdict, held: Sequence[Holding], history: LedgerHistory) -> dict[str, Any]:
    own, read = own_book(ledger.path), len(history.lines)
    covered = ledger.report.witnessed_seq if ledger.report is not None else None
    return {
        "covered": covered,
        "uncovered": None if covered is None else read - covered,
        "holders": [
            {
                "held_by": holding.held_by,
                "path": _printable(str(holding.path)),
                "heads": len(holding.heads),
                "last_seq": holding.heads[-1][0],
                "last_head": holding.heads[-1][1],
                "agrees": _agrees(holding, history),
            }
            for holding in held
            if holding.path != own
        ],
    }


def _agrees(holding: Holding, history: LedgerHistory) -> bool | None:
    """Whether every head is one of the ledger's; None if one lies behind what could be read."""
    known = {line.seq: line.digest for line in history.lines}
    if any(known.get(seq, digest) != digest for seq, digest in holding.heads):
        return False
    return None if any(seq > len(known) for seq, _ in holding.heads) else True


def _clock_back_at(history: LedgerHistory) -> int | None:
    """The first entry that is dated before the one before it."""
    times = [line.time for line in history.lines]
    return next((place + 2 for place, (now, then) in enumerate(pairwise(times)) if then < now), None)


def _deid(ledger: Path) -> Mapping[str, Any] | None:
    try:
        return read_deid(ledger.parent / DEID_NAME)
    except ConfigurationError as error:
        return {"error": error.fact}


def _run(run: RunDocuments) -> dict[str, Any]:
    fits = run.plan is not None and run.manifest is not None and run.manifest.plan_digest == run.plan.digest
    return {
        "path": _printable(str(run.path)),
        "run_id": run.manifest.run_id if run.manifest else None,
        "plan_digest": run.plan.digest if run.plan else None,
        "manifest_digest": run.manifest.digest if run.manifest else None,
        "plan": run.plan.to_json() if run.plan else None,
        "plan_words": plan_sentences(run.plan, run.manifest if fits else None) if run.plan else [],
        "roster": list(run.manifest.names) if run.manifest else None,
        "model": run.model,
        "signatures_checked": run.checked,
        "problems": [_printable(problem) for problem in run.problems],
    }


def _printable(text: str) -> str:
    """The text without what UTF-8 cannot carry, such as the undecodable bytes of a file's name."""
    return text.encode("utf-8", "replace").decode("utf-8")
