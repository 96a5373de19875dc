"""Where a run stands, on disk before every step, so that a coordinator that died can go on as if it had not.

checkpoint/index.sealed                      everything but the arrays: small, written before every attempt
checkpoint/state-<random>-<array>.sealed     the model and what the optimizer remembers, written once a round

Both are sealed under the run's storage key and for this run alone. The index names the state it belongs to; an older
state is removed only when an index that names a newer one is durable.
"""

import os
import shutil
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator, ValidationError

from common.crypto.seal import open_sealed, seal_bytes
from common.errors import ConfigurationError, TrustError
from common.files import write_atomic
from common.settings import Settings
from server.aggregate import FloatArray, ServerState
from server.cohort import CohortRecord
from server.evaluation import EvaluationsRecord
from server.progress import Stage
from server.rundir import CHECKPOINT_DIRECTORY, PROGRESS_FILE, RESULT_FILE, PreparedRun

ARRAYS: Final = ("current", "velocity", "second_moment", "average_sum")
INDEX_FILE: Final = "index.sealed"

BytesAsText = Annotated[
    bytes,
    PlainValidator(lambda value: value if isinstance(value, bytes) else b64decode(value, validate=True)),
    PlainSerializer(lambda value: b64encode(value).decode(), when_used="json"),
]


class Failure(Settings):
    """The error with which a run will end once it is closed."""

    error: str
    fact: str
    hint: str


class StateReference(Settings):
    """Which files hold the state; none for the model that a run starts with, which follows from the plan.

    Attributes:
        arrays: Those that are not zero everywhere.
    """

    token: str
    rounds: int
    average_weight: float
    arrays: tuple[str, ...]


class Checkpoint(Settings):
    """Everything that the coordinator's loop needs to go on, but the arrays.

    Attributes:
        round_number: The round that is worked on.
        attempt: Of this round, or of its evaluation; 0 before the first.
        in_flight: The cohort of that attempt, if it may have been sent.
        attempts: Of the whole run, evaluations not counted.
        joined: Each site's agreement as it was signed.
        nodes: Flower's node per site, as text.
        heads: Last heads, as `SignedHead.to_json` writes them.
        told: Whose run keys each site was told.
        unsent: Serialised ciphertexts that are still to be delivered.
    """

    version: Literal[1] = 1
    run_id: str
    manifest_digest: str
    stage: Stage
    round_number: int
    attempt: int
    in_flight: tuple[str, ...]
    attempts: int
    exchanges: int
    bytes_up: int
    joined: dict[str, BytesAsText]
    nodes: dict[str, str]
    heads: tuple[dict[str, Any], ...]
    told: dict[str, tuple[str, ...]]
    unsent: tuple[BytesAsText, ...]
    cohort: CohortRecord
    evaluations: EvaluationsRecord
    failure: Failure | None = None
    state: StateReference | None = None


class CheckpointStore:
    """The checkpoint of one run; at most one process writes it."""

    def __init__(self, run: PreparedRun) -> None:
        self._root = run.root
        self._directory = run.root / CHECKPOINT_DIRECTORY
        self._storage = run.storage
        self._run_id, self._digest = run.manifest.run_id, run.manifest.digest
        self._dimension = run.manifest.dimension
        self._written: tuple[ServerState, StateReference] | None = None

    def save(self, checkpoint: Checkpoint, state: ServerState) -> None:
        """Make a checkpoint durable; the one before stays valid until it is.

        Args:
            checkpoint: Its `state` is filled in here.
            state: Written only if it is another object than the last time, and a round was completed.
        """
        reference = self._save_state(state)
        content = checkpoint.model_copy(update={"state": reference}).model_dump_json().encode()
        self._seal(INDEX_FILE, content)
        self._remove_states(but=reference.token if reference is not None else "")

    def load(self) -> tuple[Checkpoint, ServerState | None] | None:
        """The last durable checkpoint and the state, None for the model that a run starts with; None if there is none.

        Raises:
            TrustError: If a file was changed, cut, or is another run's.
            ConfigurationError: If a run was begun here and its checkpoint, or a part, is gone or of another version.
        """
        if not (self._directory / INDEX_FILE).exists():
            self._refuse_if_begun()
            return None
        try:
            checkpoint = Checkpoint.model_validate_json(self._unseal(INDEX_FILE))
        except ValidationError as error:
            raise ConfigurationError(
                f"{self._directory / INDEX_FILE}: not a checkpoint of this release", hint="resume with the older one"
            ) from error
        if (checkpoint.run_id, checkpoint.manifest_digest) != (self._run_id, self._digest):
            raise TrustError(f"{self._directory / INDEX_FILE}: the checkpoint of another run")
        state = None if checkpoint.state is None else self._load_state(checkpoint.state)
        if state is not None and checkpoint.state is not None:
            self._written = (state, checkpoint.state)
        return checkpoint, state

    def remove(self) -> None:
        """Forget everything: the run is over."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _save_state(self, state: ServerState) -> StateReference | None:
        if state.rounds == 0:
            return None
        if self._written is not None and self._written[0] is state:
            return self._written[1]
        reference = StateReference(
            token=os.urandom(8).hex(),
            rounds=state.rounds,
            average_weight=state.average_weight,
            arrays=tuple(name for name in ARRAYS if name == "current" or getattr(state, name).any()),
        )
        for name in reference.arrays:
            self._seal(_state_file(reference.token, name), getattr(state, name).astype("<f8", copy=False).tobytes())
        self._written = (state, reference)
        return reference

    def _load_state(self, reference: StateReference) -> ServerState:
        arrays = {name: self._load_array(reference, name) for name in ARRAYS}
        return ServerState(**arrays, average_weight=reference.average_weight, rounds=reference.rounds)

    def _load_array(self, reference: StateReference, name: str) -> FloatArray:
        if name not in reference.arrays:
            return np.zeros(self._dimension)
        content = self._unseal(_state_file(reference.token, name))
        if len(content) != 8 * self._dimension:
            raise TrustError(f"{name}: {len(content)} bytes, {8 * self._dimension} for {self._dimension} parameters")
        array: NDArray[np.float64] = np.frombuffer(content, dtype="<f8").astype(np.float64)
        return array

    def _refuse_if_begun(self) -> None:
        states = self._directory.glob("state-*.sealed") if self._directory.exists() else ()
        if any(True for _ in states) or (self._root / PROGRESS_FILE).exists():
            raise ConfigurationError(
                f"{self._directory}: run {self._run_id} was begun and its checkpoint is gone",
                hint="put it back from a backup and resume, or start another run; this one is not started over",
            )

    def _remove_states(self, *, but: str) -> None:
        for path in self._directory.glob("state-*.sealed"):
            if not but or not path.name.startswith(f"state-{but}-"):
                path.unlink()

    def _seal(self, name: str, content: bytes) -> None:
        write_atomic(self._directory / name, seal_bytes(content, self._storage, purpose=self._purpose(name)))

    def _unseal(self, name: str) -> bytes:
        try:
            sealed = (self._directory / name).read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"{self._directory / name}: a part of the checkpoint cannot be read", hint="put it back from a backup"
            ) from error
        return open_sealed(sealed, self._storage, purpose=self._purpose(name))

    def _purpose(self, name: str) -> str:
        return f"{self._run_id}/{self._digest}/{CHECKPOINT_DIRECTORY}/{name}"


def is_resumable(run_dir: Path) -> bool:
    """Whether a run was begun here and is not over; no passphrase is needed to know."""
    return (run_dir / CHECKPOINT_DIRECTORY / INDEX_FILE).exists() and not (run_dir / RESULT_FILE).exists()


def refuse_if_over(run_dir: Path) -> None:
    """Return only if the run in this directory is not over yet; else raise ConfigurationError."""
    if (run_dir / RESULT_FILE).exists():
        raise ConfigurationError(
            f"{run_dir}: this run is over, its result stands in {RESULT_FILE}", hint="start another run"
        )


def _state_file(token: str, name: str) -> str:
    return f"state-{token}-{name}.sealed"
