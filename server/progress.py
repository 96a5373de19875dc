"""How far a run is, for anybody to read: a small public file that whoever wants to know reads without a passphrase."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from common.errors import ConfigurationError
from common.files import write_atomic
from common.settings import Settings
from server.moments import TimeText
from server.rundir import PROGRESS_FILE, PUBLIC

Stage = Literal["join", "train", "evaluate", "finish"]


class Progress(Settings):
    """Where a run stands; nothing here is secret, and nothing is decided by it.

    Attributes:
        time: When it was written.
        stage: `join` while sites are waited for, `finish` while the run is being closed.
        rounds: Rounds completed.
        of: Rounds planned.
        attempts: Attempts made.
        attempts_planned: The most there may be.
        present: Sites that are counted on.
        left: Sites that are not there, with the name of why.
        waiting_for: While stage is `join`: sites that are waited for, with what is known of them.
    """

    version: Literal[1] = 1
    run_id: str
    time: TimeText
    stage: Stage
    rounds: int
    of: int
    attempts: int
    attempts_planned: int
    present: tuple[str, ...]
    left: dict[str, str]
    waiting_for: dict[str, str]


def write_progress(run_dir: Path, progress: Progress) -> None:
    """Replace the file."""
    write_atomic(run_dir / PROGRESS_FILE, progress.model_dump_json().encode() + b"\n", mode=PUBLIC)


def read_progress(run_dir: Path) -> Progress | None:
    """How far the run in this directory is; None if it has not begun.

    Raises:
        ConfigurationError: If the file is malformed.
    """
    try:
        return Progress.model_validate_json((run_dir / PROGRESS_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ConfigurationError(f"{run_dir / PROGRESS_FILE}: cannot be read") from error
