"""What a frozen public backbone sees in a picture: computed once, kept encrypted."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors

from client.device import DeviceName, choose_device, keep_full_precision
from client.memory import give_back_freed_memory
from client.squeezenet import squeezenet_features
from common.canonical import DIGEST_PREFIX, digest_json
from common.errors import ConfigurationError, TrustError

BATCH_PICTURES = 16
POOLING = "mean-1"  # changes with `pool`, so that no cache mixes two poolings
LARGEST_WEIGHTS_BYTES = 1 << 30

_PREFIX = "features."
_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pictures, public; what torchvision's weights were trained with
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A frozen network from pictures to feature vectors. Made by `load_backbone`.

    Attributes:
        name: As in the plan.
        weights: `sha256:<hex>` of the file that its weights came from.
        module: In eval mode, nothing trainable; (n, 3, 224, 224) to maps (n, width, h, w).
        width: Length of a feature vector.
    """

    name: str
    weights: str
    module: torch.nn.Module
    width: int


def load_backbone(name: str, weights_path: Path, *, expected: str) -> Backbone:
    """A backbone whose weights are the ones that the plan names.

    The digest is taken of the bytes that are then parsed, before anything looks into them.

    Args:
        name: `squeezenet1_1`.
        weights_path: A safetensors file with the tensors `features.*`.
        expected: `sha256:<hex>` from the plan.

    Raises:
        ConfigurationError: If the backbone is unknown or the file is not there.
        TrustError: If the file is not the pinned one, or does not hold this backbone's weights.
    """
    if name != "squeezenet1_1":
        raise ConfigurationError(f"no backbone is called {name!r}", hint="squeezenet1_1 is one")
    try:
        if weights_path.stat().st_size > LARGEST_WEIGHTS_BYTES:
            raise TrustError(f"the weights file of {name} has more than {LARGEST_WEIGHTS_BYTES} bytes")
        content = weights_path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the weights of {name} cannot be read from {weights_path}: {error.strerror}",
            hint="put the file there, or name another one",
        ) from error
    found = DIGEST_PREFIX + hashlib.sha256(content).hexdigest()
    if found != expected:
        raise TrustError(
            f"the weights of {name} are {found[:19]}…, and the plan pins {expected[:19]}…",
            hint="fetch the file that the plan names; never change the pin to fit a file",
        )
    module = _squeezenet_features()
    try:
        tensors = {key.removeprefix(_PREFIX): tensor for key, tensor in load_tensors(content).items()}
        module.load_state_dict(tensors, assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise TrustError(f"the pinned file does not hold the weights of {name}") from error
    return Backbone(name=name, weights=found, module=module.eval().requires_grad_(False), width=512)


def extract(
    backbone: Backbone, pictures: Iterable[NDArray[np.uint8]], *, device: DeviceName = "auto"
) -> NDArray[np.float32]:
    """Feature vectors of pictures, in their order; float32 of shape (n, width).

    Pictures pass in batches of one fixed size, the last one filled up with zeros, so that a picture's features depend
    on the others by less than 1e-5. The number of CPU threads is the caller's choice.

    Args:
        pictures: Each uint8 of shape (224, 224, 3), RGB.
        device: `auto` is the GPU where there is one.
    """
    keep_full_precision()
    place = choose_device(device)
    module = backbone.module.to(place)
    mean = torch.tensor(_MEAN, device=place).view(1, 3, 1, 1)
    std = torch.tensor(_STD, device=place).view(1, 3, 1, 1)
    found = [np.empty((0, backbone.width), dtype=np.float32)]
    with torch.inference_mode():
        for stack in _batches(pictures):
            padded = np.zeros((BATCH_PICTURES, *stack.shape[1:]), dtype=np.uint8)
            padded[: len(stack)] = stack
            raw = torch.from_numpy(padded).to(place).permute(0, 3, 1, 2).float() / 255.0
            maps = module((raw - mean) / std)
            found.append(pool(maps)[: len(stack)].cpu().numpy())
            del raw, maps
    give_back_freed_memory()
    return np.concatenate(found)


def pool(maps: torch.Tensor) -> torch.Tensor:
    """One vector a picture from maps (n, width, h, w): the mean over places. Change `POOLING` with it."""
    return maps.mean(dim=(2, 3))


def feature_key(backbone: Backbone, image_digests: Sequence[str]) -> str:
    """64 hex digits that name the features of these pictures, in this order, by this backbone and pooling."""
    facts = {
        "version": 1,
        "backbone": backbone.name,
        "weights": backbone.weights,
        "pooling": POOLING,
        "images": list(image_digests),
    }
    return digest_json("features", facts).removeprefix(DIGEST_PREFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCache:
    """Features on disk, encrypted by the site.

    Attributes:
        directory: Where the sealed files lie.
        seal: Encrypts bytes into a path, atomically and bound to it.
        unseal: The bytes that `seal` wrote; raises FileNotFoundError if there are none, TrustError if they changed.
    """

    directory: Path
    seal: Callable[[Path, bytes], None]
    unseal: Callable[[Path], bytes]

    def fetch(self, key: str, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The features under a key of `feature_key`; computed and kept if this is the first time."""
        path = self.directory / f"{key}.sealed"
        try:
            return load_arrays(self.unseal(path))["features"]
        except FileNotFoundError:
            features = compute()
            self.seal(path, save_arrays({"features": np.ascontiguousarray(features)}))
            return features


def _batches(pictures: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    stream = iter(pictures)
    while batch := list(islice(stream, BATCH_PICTURES)):
        stack = np.stack(batch)
        if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[3] != 3:
            raise ValueError(f"a picture is uint8 of shape (height, width, 3), not {stack.dtype} {stack.shape[1:]}")
        yield stack


def _squeezenet_features() -> torch.nn.Module:
    with torch.device("meta"):  # no default initialisation, which would draw random numbers for nothing
        return squeezenet_features()
