"""What a coordinator prepares before a run and leaves behind after it: one directory.

plan.json, manifest.json   signed documents               models/round-NNNN.f32   released models, if kept
trust.json                 pinned keys                    witnesses.jsonl         heads of the sites' ledgers
coordinator.pem            signing key, encrypted         result.json             rounds, attempts, sites, bytes
run.json                   settings of this run           model/                  the released model, signed
storage.key                seals checkpoints, encrypted   checkpoint/             where the run stands, sealed
progress.json              the same for anybody to read   log.jsonl               what happened
stop                       put there by who wants the run to be closed after the attempt that is under way
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from common.canonical import canonical_json
from common.crypto.keys import SigningKey
from common.crypto.seal import StorageKey
from common.errors import ConfigurationError, TrustError
from common.files import write_atomic
from common.plan import Manifest, TrainingPlan
from common.settings import Settings, parse_json_settings
from common.signed import read_signed, write_signed
from common.trust import TrustFile, read_trust, write_trust

PUBLIC: Final = 0o644
RESULT_FILE: Final = "result.json"
PROGRESS_FILE: Final = "progress.json"
CHECKPOINT_DIRECTORY: Final = "checkpoint"
STOP_FILE: Final = "stop"
LOCK_FILE: Final = "run.lock"
LOG_FILE: Final = "log.jsonl"


class RunSettings(Settings):
    """How the coordinator runs, beyond what the plan says; nothing here concerns privacy.

    Attributes:
        seed: Of the public initial model.
        setup_timeout_s: Longest wait for sites to join.
        round_timeout_s: Longest wait for the answers of one attempt.
        resend_after_s: A node that has not answered for so long gets the same request once more; 0 is never.
        keep_models: Keep every round's released model for the learning curve.
        checkpoints: Write down before every attempt where the run stands, so that it can be resumed.
    """

    version: int = 1
    seed: int = 0
    setup_timeout_s: float = Field(default=120.0, gt=0)
    round_timeout_s: float = Field(default=120.0, gt=0)
    resend_after_s: float = Field(default=20.0, ge=0)
    keep_models: bool = False
    checkpoints: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    """A run directory, opened.

    Attributes:
        key: Signs every message to the sites.
        storage: Seals the checkpoints of this run and nothing else.
    """

    root: Path
    plan: TrainingPlan
    manifest: Manifest
    trust: TrustFile
    key: SigningKey
    storage: StorageKey
    settings: RunSettings

    def model_path(self, round_number: int) -> Path:
        """Where the released model of one round is kept."""
        return self.root / "models" / f"round-{round_number:04d}.f32"


def prepare_run(
    root: Path,
    *,
    plan: TrainingPlan,
    manifest: Manifest,
    trust: TrustFile,
    key: SigningKey,
    passphrase: bytes,
    settings: RunSettings,
) -> PreparedRun:
    """Write everything that a coordinator process needs to run this plan.

    What an earlier run left in the directory and could be taken for this one's, is removed first.
    """
    for name in (RESULT_FILE, PROGRESS_FILE, STOP_FILE):
        (root / name).unlink(missing_ok=True)
    shutil.rmtree(root / CHECKPOINT_DIRECTORY, ignore_errors=True)
    storage = StorageKey.generate()
    write_signed(root / "plan.json", "plan", plan.to_json(), key, mode=PUBLIC)
    write_signed(root / "manifest.json", "manifest", manifest.to_json(), key, mode=PUBLIC)
    write_trust(root / "trust.json", trust)
    write_atomic(root / "coordinator.pem", key.to_pem(passphrase))
    write_atomic(root / "storage.key", storage.to_sealed_bytes(passphrase))
    write_atomic(root / "run.json", canonical_json(settings.model_dump(mode="json")) + b"\n")
    return PreparedRun(
        root=root, plan=plan, manifest=manifest, trust=trust, key=key, storage=storage, settings=settings
    )


def load_run(root: Path, *, passphrase: bytes) -> PreparedRun:
    """Open a prepared run; raises TrustError or ConfigurationError if a document is changed or missing."""
    trust = read_trust(root / "trust.json")
    try:
        key = SigningKey.from_pem((root / "coordinator.pem").read_bytes(), passphrase)
        content = (root / "run.json").read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{root}: no prepared run, or its files cannot be read") from error
    if key.public_key != trust.coordinator_key:
        raise TrustError("coordinator.pem is not the pinned coordinator key")
    plan = read_signed(root / "plan.json", "plan", trust.coordinator_key)
    manifest = read_signed(root / "manifest.json", "manifest", trust.coordinator_key)
    return PreparedRun(
        root=root,
        plan=parse_json_settings(canonical_json(plan), TrainingPlan, source="plan.json"),
        manifest=parse_json_settings(canonical_json(manifest), Manifest, source="manifest.json"),
        trust=trust,
        key=key,
        storage=_storage_key(root / "storage.key", passphrase),
        settings=parse_json_settings(content, RunSettings, source="run.json"),
    )


def _storage_key(path: Path, passphrase: bytes) -> StorageKey:
    """The key of the run's checkpoints; a run that was prepared before there were any gets one now."""
    try:
        return StorageKey.from_sealed_bytes(path.read_bytes(), passphrase)
    except FileNotFoundError:
        storage = StorageKey.generate()
        write_atomic(path, storage.to_sealed_bytes(passphrase))
        return storage
