"""A model as it is published and read back: parameters, a card, and the coordinator's signature over both."""

import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from common.canonical import canonical_json, digest_bytes
from common.crypto.keys import SigningKey, VerifyKey
from common.errors import ConfigurationError, TrustError
from common.files import write_atomic
from common.model import parameter_shapes, split_parameters
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


def read_release(directory: Path, *, plan: TrainingPlan, key: str) -> NDArray[np.float32]:
    """The parameters of a released model, shape (d,), as `release_model` wrote them.

    Raises:
        ConfigurationError: If a file is missing or malformed.
        TrustError: If the card is not signed by `key`, or a digest or shape is not the one it names.
    """
    try:
        card_bytes = (directory / "card.json").read_bytes()
        signature = json.loads((directory / "signature.json").read_bytes())["signature"]
        content = (directory / "model.safetensors").read_bytes()
        VerifyKey.parse(key).verify("model-card", card_bytes, b64decode(signature, validate=True))
        card = json.loads(card_bytes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{directory}: no released model can be read") from error
    if card["file_digest"] != digest_bytes("model-file", content) or card["plan_digest"] != plan.digest:
        raise TrustError(f"{directory}: the model is not the one that its card describes")
    tensors = load(content)
    shapes = parameter_shapes(plan.model, len(plan.task.classes))
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise TrustError(f"{directory}: the model has other shapes than its plan")
    parameters = np.concatenate([tensors[name].reshape(-1) for name in shapes]).astype(np.float32)
    if parameters_digest(parameters) != card["model_digest"]:
        raise TrustError(f"{directory}: the parameters are not the ones that the card names")
    return parameters
