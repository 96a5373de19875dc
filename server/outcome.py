"""How a run's ServerApp ended, written where whoever started Flower looks for it.

Flower reports a run as completed whenever its ServerApp returns, and as failed without saying how. The ServerApp runs
in another process than the command that wants to know.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import errors
from common.canonical import canonical_json
from common.errors import BackendFailed, FederationError
from common.files import write_atomic

OUTCOME_FILE = "outcome.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a ServerApp.

    Attributes:
        error: Class name of what it raised; empty if it returned.
        fact: The error's fact, if it was a FederationError.
        hint: The error's hint, likewise.
    """

    error: str = ""
    fact: str = ""
    hint: str = ""

    def raise_error(self) -> None:
        """Raise again what the ServerApp raised: the same FederationError, or BackendFailed for anything else."""
        if not self.error:
            return
        raised = getattr(errors, self.error, None)
        if isinstance(raised, type) and issubclass(raised, FederationError):
            raise raised(self.fact, hint=self.hint)
        raise BackendFailed(f"the coordinator ended with {self.error}")


@contextmanager
def outcome_written(run_dir: Path) -> Iterator[None]:
    """Write how the block ends into `run_dir`; what it raises goes on."""
    try:
        yield
    except FederationError as error:
        _write(run_dir, Outcome(error=type(error).__name__, fact=error.fact, hint=error.hint))
        raise
    except Exception as error:
        _write(run_dir, Outcome(error=type(error).__name__))
        raise
    _write(run_dir, Outcome())


def read_outcome(run_dir: Path) -> Outcome | None:
    """The outcome in `run_dir`; None while there is none."""
    try:
        document = json.loads((run_dir / OUTCOME_FILE).read_bytes())
    except FileNotFoundError:
        return None
    return Outcome(error=document["error"], fact=document["fact"], hint=document["hint"])


def remove_outcome(run_dir: Path) -> None:
    """Forget an earlier outcome."""
    (run_dir / OUTCOME_FILE).unlink(missing_ok=True)


def _write(run_dir: Path, outcome: Outcome) -> None:
    document = {"version": 1, "error": outcome.error, "fact": outcome.fact, "hint": outcome.hint}
    write_atomic(run_dir / OUTCOME_FILE, canonical_json(document))
