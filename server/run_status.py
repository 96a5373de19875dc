"""How a run fares, told from the files in its directory, its lock, and what Flower says of it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from common.errors import BackendFailed, ConfigurationError, RunStopped
from common.settings import Settings
from server.closing import RunResult
from server.flower_control import FINISHED, FlowerRun
from server.lock import exclusive
from server.outcome import Outcome, read_outcome
from server.progress import Progress, read_progress
from server.rundir import LOCK_FILE, RESULT_FILE
from server.submission import Submission, read_submission
from server.superlink import FlowerDirectory
from server.upstate import read_up

State = Literal["starting", "waiting", "running", "completed", "failed", "stopped", "interrupted"]
LAST_WORDS_S: Final = 2.0
"""How long a ServerApp that let go of its lock may take to write its outcome."""
ENDED: Final[frozenset[State]] = frozenset({"completed", "failed", "stopped", "interrupted"})
UNKNOWN_ERROR: Final = "Unknown"

_LOOK_AGAIN_S = 0.1

FlowerRuns = Callable[[], dict[str, FlowerRun]]


class RunStatus(Settings):
    """How one run fares.

    Attributes:
        plan: What it was called by whoever started it.
        state: `starting` until its ServerApp is at work, `waiting` for sites, `running`, or how it ended;
            `interrupted` if its ServerApp died and the run can be resumed.
        error: The name of the error that it failed with.
        rounds: Completed; `of` planned.
        left: Sites that are not there, with the name of why.
        waiting_for: Sites that are waited for, with what is known of them.
        closed: Whether the sites were told that it is over; it can be resumed if not.
        hand_overs: How often it was given to Flower; 0 if that never succeeded.
    """

    run_id: str
    plan: str
    prepared: str
    state: State
    error: str = ""
    rounds: int = 0
    of: int = 0
    attempts: int = 0
    attempts_planned: int = 0
    present: tuple[str, ...] = ()
    left: dict[str, str] = Field(default_factory=dict)
    waiting_for: dict[str, str] = Field(default_factory=dict)
    closed: bool = False
    hand_overs: int = 0

    @property
    def words(self) -> str:
        """The state in a few words."""
        return {
            "starting": "starting",
            "waiting": "waiting for sites",
            "running": f"running {self.rounds}/{self.of}",
            "failed": f"failed {self.error}" + ("" if self.closed else ": resume"),
            "interrupted": f"{'interrupted' if self.hand_overs else 'never begun'}: resume",
        }.get(self.state, self.state)


def run_status(run_dir: Path, *, flower_runs: FlowerRuns, patience_s: float = 0.0) -> RunStatus:
    """How the run in this directory fares.

    Args:
        run_dir: A directory that `server.submission.prepare` wrote.
        flower_runs: What Flower says; asked only if the files do not tell. Raises BackendFailed if nobody answers.
        patience_s: How long to wait for the last word of a ServerApp that seems to have died; `LAST_WORDS_S` for one
            that was at work a moment ago.
    """
    submission, works = read_submission(run_dir), is_at_work(run_dir)
    progress = read_progress(run_dir)
    state, error = _state(
        run_dir, submission, works=works, progress=progress, flower_runs=flower_runs, patience_s=patience_s
    )
    result = read_result(run_dir)
    shown: dict[str, Any] = {}
    if progress is not None:
        names = ("rounds", "of", "attempts", "attempts_planned", "present", "left", "waiting_for")
        shown = {name: getattr(progress, name) for name in names}
    if result is not None:
        shown |= {"rounds": result.rounds, "attempts": result.attempts, "left": result.left, "waiting_for": {}}
    return RunStatus(
        run_id=run_dir.name,
        plan=submission.plan_name,
        prepared=submission.prepared,
        state=state,
        error=error,
        closed=result is not None,
        hand_overs=len(submission.hand_overs),
        **shown,
    )


def is_at_work(run_dir: Path) -> bool:
    """Whether a ServerApp holds the run's lock now."""
    if not (run_dir / LOCK_FILE).exists():
        return False
    try:
        with exclusive(run_dir / LOCK_FILE, timeout_s=0.0):
            return False
    except ConfigurationError:
        return True


def read_result(run_dir: Path) -> RunResult | None:
    """What came of a run; None if it is not over. Raises ConfigurationError if the file is malformed."""
    try:
        document = json.loads((run_dir / RESULT_FILE).read_bytes())
        document.pop("version")
        return RunResult(**document)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{run_dir / RESULT_FILE}: cannot be read") from error


def asks_flower(root: Path) -> FlowerRuns:
    """What asks the SuperLink that is up on a coordinator's directory."""

    def ask() -> dict[str, FlowerRun]:
        if read_up(root) is None:
            raise BackendFailed("the coordinator is not up")
        return FlowerDirectory(root=root / "flower").control().runs()

    return ask


def _state(
    run_dir: Path,
    submission: Submission,
    *,
    works: bool,
    progress: Progress | None,
    flower_runs: FlowerRuns,
    patience_s: float,
) -> tuple[State, str]:
    """The state and the name of the error."""
    deadline = time.monotonic() + patience_s
    while True:
        outcome = read_outcome(run_dir)
        if outcome is not None:
            return _ended(outcome)
        if works:
            waits = progress is None or progress.stage == "join"
            return ("waiting" if waits else "running"), ""
        closed = (run_dir / RESULT_FILE).exists()
        if not closed and _may_start(submission, progress, flower_runs):
            return "starting", ""
        if time.monotonic() >= deadline:
            # Dead between its result and its last word, it cannot be resumed, and nobody knows what it would have said.
            return ("failed", UNKNOWN_ERROR) if closed else ("interrupted", "")
        time.sleep(_LOOK_AGAIN_S)


def _ended(outcome: Outcome) -> tuple[State, str]:
    if not outcome.error:
        return "completed", ""
    return ("stopped", "") if outcome.error == RunStopped.__name__ else ("failed", outcome.error)


def _may_start(submission: Submission, progress: Progress | None, flower_runs: FlowerRuns) -> bool:
    """Whether Flower has the run and its ServerApp was not at work since it was handed over."""
    if not submission.hand_overs:
        return False
    latest = submission.hand_overs[-1]
    if progress is not None and progress.time > latest.time:
        return False
    try:
        found = flower_runs().get(latest.flower_run)
    except BackendFailed:
        return False
    return found is not None and found.status != FINISHED
