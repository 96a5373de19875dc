"""What people do with a run of the coordinator that is up: hand it to Flower, wait for it, stop it, read its end."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from common.canonical import canonical_json
from common.errors import BackendFailed, ConfigurationError, QuorumLost
from common.plan import Manifest, TrainingPlan
from common.settings import parse_json_settings
from common.signed import read_signed
from server.actlog import ActLog
from server.acts import Actor
from server.cost import run_cost
from server.evaluation import EVALUATION_FILE
from server.home import read_public_key
from server.lock import exclusive
from server.moments import utc_now
from server.outcome import read_outcome, remove_outcome
from server.run_status import ENDED, LAST_WORDS_S, RunStatus, asks_flower, read_result, run_status
from server.rundir import STOP_FILE, RunSettings
from server.submission import note_hand_over, read_submission
from server.superlink import FlowerDirectory, run_output, submit_run
from server.upstate import require_up

STOP_ROOM_S: Final = 150.0
"""What a run has for closing itself at its sites, beyond the attempt that is under way."""

_LOOK_AGAIN_S = 0.5
_FLOWER_STOPS_S = 60.0

Tell = Callable[[str], None]


def hand_over(
    root: Path, run_dir: Path, *, act: str, actor: Actor, detail: Mapping[str, str | int], closing: bool = False
) -> None:
    """Give a prepared or interrupted run to Flower; the act is written down first.

    Args:
        root: The coordinator's directory.
        run_dir: One that `server.submission.prepare` made.
        act: `run`, `resume` or `stop`.
        actor: Who wants it.
        detail: For the log of acts.
        closing: The run goes on only to be closed at its sites; an earlier wish to stop it is forgotten otherwise.

    Raises:
        ConfigurationError: If it is over or at work.
        BackendFailed: If nothing is up, or Flower does not take it; the hint says how it is handed over once more.
    """
    require_superlink(root)
    with exclusive(run_dir / "hand-over.lock"):
        refuse_unless_resumable(root, run_dir)
        ActLog.open(root).append(act, actor=actor, subject=run_dir.name, detail=detail)
        remove_outcome(run_dir)
        (run_dir / STOP_FILE).touch() if closing else (run_dir / STOP_FILE).unlink(missing_ok=True)
        now = utc_now()
        try:
            flower_run = submit_run(FlowerDirectory(root=root / "flower"), run_dir=run_dir)
        except BackendFailed as error:
            again = f"fedward server {'stop' if closing else 'resume'} {run_dir.name}"
            raise BackendFailed(error.fact, hint=f"nothing is lost; once more with: {again}\n{error.hint}") from error
        note_hand_over(run_dir, flower_run=flower_run, now=now)


def require_superlink(root: Path) -> None:
    """Return only if a coordinator is up and its SuperLink answers; raises BackendFailed."""
    require_up(root)
    try:
        FlowerDirectory(root=root / "flower").control().runs()
    except BackendFailed as error:
        raise BackendFailed(
            f"the coordinator is up, its SuperLink is not: {error.fact}",
            hint=f"fedward server up starts it again in a moment; if not, see {root / 'flower' / 'superlink.log'}",
        ) from error


def refuse_unless_resumable(root: Path, run_dir: Path) -> None:
    """Return only for a run that is neither over nor at work; raises ConfigurationError."""
    status = run_status(run_dir, flower_runs=asks_flower(root))
    if status.closed:
        raise ConfigurationError(
            f"{status.run_id} is over ({status.words}): it was closed at the sites", hint="start another run"
        )
    if status.state not in ENDED:
        raise ConfigurationError(f"{status.run_id} is at work ({status.words})", hint="see: fedward server runs")


def wait_for_end(root: Path, run_dir: Path, *, tell: Tell) -> RunStatus:
    """Follow a run until it ends, one line for each step; returns how it fares then."""
    told, flower_runs = "", asks_flower(root)
    while True:
        status = run_status(run_dir, flower_runs=flower_runs, patience_s=LAST_WORDS_S)
        line = _progress_line(status)
        if line != told:
            told = line
            tell(line)
        if status.state in ENDED:
            return status
        time.sleep(_LOOK_AGAIN_S)


def raise_if_failed(root: Path, run_dir: Path, status: RunStatus) -> None:
    """Raise again the error with which a run ended, if it did.

    Raises:
        FederationError: The very error of the run. BackendFailed: If its ServerApp died.
        QuorumLost: If it ended without an error and without a round: nothing was trained.
    """
    outcome = read_outcome(run_dir)
    log = "" if outcome is not None and outcome.foreseen else _last_words(root, run_dir)
    if status.state == "interrupted" or (outcome is None and status.state == "failed"):
        hint = log if status.closed else f"fedward server resume {status.run_id}\n{log}".strip()
        raise BackendFailed(
            f"{status.run_id}: its process on this machine ended without a word after {status.rounds} rounds", hint=hint
        )
    if outcome is not None:
        again = "" if status.closed else f"its sites were not told; fedward server resume {status.run_id}\n"
        outcome.raise_error(log=again + log)
    result = read_result(run_dir)
    if result is None or result.rounds == 0:
        raise QuorumLost(f"{status.run_id}: no round was completed")


def stop_run(root: Path, run_dir: Path, *, actor: Actor, timeout_s: float | None, tell: Tell) -> RunStatus:
    """Close a run cleanly: after the attempt that is under way its model is released and every site is told.

    A run that is not over and not at work is handed to Flower once more, to be closed.

    Args:
        root: The coordinator's directory.
        run_dir: The run's.
        actor: Who wants it.
        timeout_s: How long the run may take for it before Flower ends it; by default one attempt and some minutes.
        tell: Is given lines for people.

    Raises:
        ConfigurationError: If the run is over already.
        BackendFailed: If it had to be ended the hard way: the sites were not told, and `resume` or `stop` can do it.
    """
    require_up(root)
    status = run_status(run_dir, flower_runs=asks_flower(root))
    if status.closed:
        raise ConfigurationError(f"{status.run_id} is over already ({status.words})")
    if status.state in ENDED:
        hand_over(root, run_dir, act="stop", actor=actor, detail={}, closing=True)
    else:
        ActLog.open(root).append("stop", actor=actor, subject=run_dir.name)
        (run_dir / STOP_FILE).touch()
    patience_s = _patience_s(run_dir) if timeout_s is None else timeout_s
    tell(f"{status.run_id} is asked to end after the attempt that is under way; at most {patience_s:.0f} s")
    ended = _wait_at_most(root, run_dir, patience_s)
    if ended is None:
        control = FlowerDirectory(root=root / "flower").control()
        control.stop(read_submission(run_dir).hand_overs[-1].flower_run)
        ended = _wait_at_most(root, run_dir, _FLOWER_STOPS_S)
    if ended is None or not ended.closed:
        raise BackendFailed(
            f"{status.run_id} did not close itself at the sites within {patience_s:.0f} s; Flower ended it",
            hint=f"fedward server stop {status.run_id} closes it later, fedward server resume goes on with it",
        )
    return ended


def result_document(root: Path, run_dir: Path, status: RunStatus) -> dict[str, Any]:
    """What came of a run that is over: its status, cost, and where its files are."""
    plan, manifest = read_documents(root, run_dir)
    evaluation = run_dir / EVALUATION_FILE
    evaluations = int(json.loads(evaluation.read_bytes())["attempts"]) if evaluation.exists() else 0
    return {
        "version": 1,
        **status.model_dump(mode="json"),
        "plan_digest": manifest.plan_digest,
        "manifest_digest": manifest.digest,
        "colluding": manifest.colluding,
        "privacy": run_cost(plan, manifest, attempts=status.attempts, evaluations=evaluations),
        "directory": str(run_dir),
        "model": str(run_dir / "model") if (run_dir / "model").exists() else "",
        "evaluation": str(evaluation) if evaluations else "",
    }


def read_documents(root: Path, run_dir: Path) -> tuple[TrainingPlan, Manifest]:
    """Plan and manifest of a run, their signatures checked; needs no passphrase."""
    key = read_public_key(root)
    plan, manifest = (read_signed(run_dir / f"{name}.json", name, key) for name in ("plan", "manifest"))
    return (
        parse_json_settings(canonical_json(plan), TrainingPlan, source="plan.json"),
        parse_json_settings(canonical_json(manifest), Manifest, source="manifest.json"),
    )


def _last_words(root: Path, run_dir: Path) -> str:
    """What the run's ServerApp printed last."""
    handed = read_submission(run_dir).hand_overs
    return run_output(FlowerDirectory(root=root / "flower"), handed[-1].flower_run) if handed else ""


def _wait_at_most(root: Path, run_dir: Path, timeout_s: float) -> RunStatus | None:
    deadline, flower_runs = time.monotonic() + timeout_s, asks_flower(root)
    while True:
        status = run_status(run_dir, flower_runs=flower_runs, patience_s=LAST_WORDS_S)
        if status.state in ENDED:
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(_LOOK_AGAIN_S)


def _patience_s(run_dir: Path) -> float:
    content = (run_dir / "run.json").read_bytes()
    return parse_json_settings(content, RunSettings, source="run.json").round_timeout_s + STOP_ROOM_S


def _progress_line(status: RunStatus) -> str:
    line = f"{status.run_id}: {status.words}"
    if status.state == "waiting" and status.waiting_for:
        line += " " + ", ".join(f"{site} ({why})" for site, why in sorted(status.waiting_for.items()))
    if status.state == "running":
        line += f", attempt {status.attempts} of at most {status.attempts_planned}, {len(status.present)} sites"
        if status.left:
            line += "; away: " + ", ".join(f"{site} ({why})" for site, why in sorted(status.left.items()))
    return line
