"""What a site must remember of a run between two messages: sealed on disk, so that any process can go on."""

import json
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.home import SiteHome
from common.canonical import canonical_json
from common.crypto.masking import RunKeys, RunPublicKeys
from common.errors import TrustError
from common.files import write_atomic
from common.plan import Manifest, TrainingPlan
from common.wire_pb2 import Masked

RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """One run as a site sees it.

    Attributes:
        population: Whose budget the run spends.
        keys: This site's private keys of the run.
        peers: The public run keys of every other site that joined; empty before the keys were exchanged.
        ciphertexts: The ML-KEM ciphertext this site made for each peer whose name sorts later.
        pair_secrets: The secrets known so far.
        closed: No further round is answered.
        minimum_patients: What the policy asked for when the run was joined; None in states from before it was kept.
    """

    plan: TrainingPlan
    manifest: Manifest
    population: str
    keys: RunKeys = field(repr=False)
    peers: dict[str, RunPublicKeys] = field(default_factory=dict, repr=False)
    ciphertexts: dict[str, bytes] = field(default_factory=dict, repr=False)
    pair_secrets: dict[str, bytes] = field(default_factory=dict, repr=False)
    closed: bool = False
    minimum_patients: int | None = None


def save_state(home: SiteHome, state: RunState) -> None:
    """Seal the state, atomically."""
    document = {
        "version": 1,
        "plan": state.plan.to_json(),
        "manifest": state.manifest.to_json(),
        "population": state.population,
        "keys": _text(state.keys.to_bytes()),
        "peers": {name: [_text(keys.x25519), _text(keys.mlkem)] for name, keys in state.peers.items()},
        "ciphertexts": {name: _text(value) for name, value in state.ciphertexts.items()},
        "pair_secrets": {name: _text(value) for name, value in state.pair_secrets.items()},
        "closed": state.closed,
        "minimum_patients": state.minimum_patients,
    }
    home.seal(home.run_path(state.manifest.run_id) / "state.sealed", canonical_json(document))


def load_state(home: SiteHome, run_id: str) -> RunState:
    """The state of a run; raises TrustError if this site never joined it, or the name is no run's."""
    if not RUN_ID.fullmatch(run_id):
        raise TrustError("a message names a run by something that is no run identifier")
    try:
        document = json.loads(home.unseal(home.run_path(run_id) / "state.sealed"))
    except FileNotFoundError as error:
        raise TrustError(f"{home.name}: this site has not joined run {run_id!r}") from error
    return RunState(
        plan=TrainingPlan.model_validate(document["plan"]),
        manifest=Manifest.model_validate(document["manifest"]),
        population=document["population"],
        keys=RunKeys.from_bytes(b64decode(document["keys"])),
        peers={
            name: RunPublicKeys(x25519=b64decode(pair[0]), mlkem=b64decode(pair[1]))
            for name, pair in document["peers"].items()
        },
        ciphertexts={name: b64decode(value) for name, value in document["ciphertexts"].items()},
        pair_secrets={name: b64decode(value) for name, value in document["pair_secrets"].items()},
        closed=document["closed"],
        minimum_patients=document.get("minimum_patients"),
    )


def forget_secrets(state: RunState) -> RunState:
    """The state of a closed run: no key or pair secret is left, so no mask of it can be made again."""
    if state.closed:
        return state
    return replace(state, keys=RunKeys.generate(), peers={}, ciphertexts={}, pair_secrets={}, closed=True)


def joined(home: SiteHome, run_id: str) -> bool:
    """Whether this site has a state for the run."""
    return (home.run_path(run_id) / "state.sealed").exists()


class Outbox:
    """The last masked answer of a run, on disk before it is settled and sent; resent as it is after a crash.

    The last evaluation has a file of its own; its message, `Histogram`, has the fields of `Masked`.
    """

    def __init__(self, home: SiteHome, run_id: str, *, evaluation: bool = False) -> None:
        self._path = home.run_path(run_id) / ("evaluation.bin" if evaluation else "outbox.bin")

    def write(self, answer: Masked) -> None:
        """Put an answer on disk, in the place of the one before."""
        write_atomic(self._path, answer.SerializeToString(deterministic=True))

    def read(self) -> Masked | None:
        """The last answer; None before the first."""
        try:
            return Masked.FromString(self._path.read_bytes())
        except FileNotFoundError:
            return None


def save_local_update(home: SiteHome, run_id: str, round_number: int, units: NDArray[np.int64]) -> None:
    """Keep a site's own noised update of one round, sealed: a retry masks it again and is not charged again."""
    home.seal(_local_path(home, run_id, round_number), units.astype("<i8").tobytes())
    for stale in home.run_path(run_id).glob("update-*.sealed"):
        if stale != _local_path(home, run_id, round_number):
            stale.unlink()


def load_local_update(home: SiteHome, run_id: str, round_number: int) -> NDArray[np.int64] | None:
    """The update kept for this round; None if there is none."""
    try:
        return np.frombuffer(home.unseal(_local_path(home, run_id, round_number)), dtype="<i8").astype(np.int64)
    except FileNotFoundError:
        return None


def _local_path(home: SiteHome, run_id: str, round_number: int) -> Path:
    return home.run_path(run_id) / f"update-{round_number:06d}.sealed"


def _text(value: bytes) -> str:
    return b64encode(value).decode()
