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
from common.errors import BackendFailed, ConfigurationError, FederationError
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

    @property
    def foreseen(self) -> bool:
        """Whether the ServerApp returned, or ended with an error that a user can act on."""
        return not self.error or self._class() is not None

    def raise_error(self, *, log: str = "") -> None:
        """Raise again what the ServerApp raised, if it did: the same FederationError, or BackendFailed with `log`."""
        raised = self._class()
        if raised is not None:
            raise raised(self.fact, hint=self.hint)
        if self.error:
            raise BackendFailed(f"the coordinator ended with {self.error}", hint=log)

    def _class(self) -> type[FederationError] | None:
        found = getattr(errors, self.error, None) if self.error else None
        return found if isinstance(found, type) and issubclass(found, FederationError) else None


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
    """The outcome in `run_dir`; None while there is none. Raises ConfigurationError if the file is malformed."""
    try:
        document = json.loads((run_dir / OUTCOME_FILE).read_bytes())
        return Outcome(error=document["error"], fact=document["fact"], hint=document["hint"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{run_dir / OUTCOME_FILE}: cannot be read") from error


def remove_outcome(run_dir: Path) -> None:
    """Forget an earlier outcome."""
    (run_dir / OUTCOME_FILE).unlink(missing_ok=True)


def _write(run_dir: Path, outcome: Outcome) -> None:
    document = {"version": 1, "error": outcome.error, "fact": outcome.fact, "hint": outcome.hint}
    write_atomic(run_dir / OUTCOME_FILE, canonical_json(document))
