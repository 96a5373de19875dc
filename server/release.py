"""A model as it is published: parameters, a card, and the coordinator's signature over both."""

from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from common.canonical import canonical_json, digest_bytes
from common.crypto.keys import SigningKey
from common.files import write_atomic
from common.model import split_parameters
from common.parameters import parameters_digest
from common.plan import Manifest, TrainingPlan


def release_model(
    directory: Path,
    *,
    parameters: NDArray[np.float32],
    plan: TrainingPlan,
    manifest: Manifest,
    rounds: int,
    key: SigningKey,
) -> str:
    """Write `model.safetensors`, `card.json` and `signature.json`; returns the digest of the parameters."""
    content = save(split_parameters(plan.model, len(plan.task.classes), parameters))
    digest = parameters_digest(parameters)
    card: dict[str, Any] = {
        "version": 1,
        "run_id": manifest.run_id,
        "model_digest": digest,
        "file_digest": digest_bytes("model-file", content),
        "plan_digest": plan.digest,
        "manifest_digest": manifest.digest,
        "rounds": rounds,
        "task": plan.task.model_dump(mode="json"),
        "model": plan.model.model_dump(mode="json"),
        "normalisation": plan.normalisation.model_dump(mode="json"),
        "privacy": plan.privacy.model_dump(mode="json"),
    }
    card_bytes = canonical_json(card)
    signature = {
        "version": 1,
        "public_key": key.public_key.text,
        "signature": b64encode(key.sign("model-card", card_bytes)).decode(),
    }
    write_atomic(directory / "model.safetensors", content, mode=0o644)
    write_atomic(directory / "card.json", card_bytes, mode=0o644)
    write_atomic(directory / "signature.json", canonical_json(signature), mode=0o644)
    return digest
