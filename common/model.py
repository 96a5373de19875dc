"""The trained part of a network as one flat vector: its layout, its first values and what it predicts.

The vector is float32 and holds the parameters in the order of `parameter_shapes`, each in row-major order. torch is
imported only where an `mlp` or a `cnn` is built.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigurationError
from common.plan import ModelSection, NormalisationSection

if TYPE_CHECKING:
    import torch

PREDICTION_ROWS = 1024

_KERNEL = 3
_CHANNELS_PER_GROUP = 4


def parameter_shapes(model: ModelSection, classes: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every trained parameter, in the order of the flat vector and of the module's state dict.

    Raises:
        ConfigurationError: If a `cnn` halves its picture more often than height and width allow.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if model.head == "cnn":
        _check_halvings(model)
    width = model.inputs[0]
    for block, hidden in enumerate(model.hidden):
        if model.head == "cnn":
            shapes[f"conv{block}.weight"] = (hidden, width, _KERNEL, _KERNEL)
            shapes[f"conv{block}.bias"] = (hidden,)
            shapes[f"norm{block}.weight"] = (hidden,)
            shapes[f"norm{block}.bias"] = (hidden,)
        else:
            shapes[f"hidden{block}.weight"] = (hidden, width)
            shapes[f"hidden{block}.bias"] = (hidden,)
        width = hidden
    shapes["head.weight"] = (classes, width)
    shapes["head.bias"] = (classes,)
    return shapes


def dimension(model: ModelSection, classes: int) -> int:
    """Number of trained parameters, d."""
    return sum(math.prod(shape) for shape in parameter_shapes(model, classes).values())


def split_parameters(
    model: ModelSection, classes: int, parameters: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """The flat vector as named arrays, without a copy.

    Raises:
        ValueError: If the vector is not float32 of shape (d,).
    """
    size = dimension(model, classes)
    if parameters.dtype != np.float32 or parameters.shape != (size,):
        raise ValueError(f"parameters are float32 of shape ({size},), not {parameters.dtype} of {parameters.shape}")
    parts, start = {}, 0
    for name, shape in parameter_shapes(model, classes).items():
        stop = start + math.prod(shape)
        parts[name] = parameters[start:stop].reshape(shape)
        start = stop
    return parts


def initial_parameters(model: ModelSection, classes: int, *, seed: int) -> NDArray[np.float32]:
    """The public starting point, the same on every platform for one seed.

    A linear head starts at zero. In `mlp` and `cnn` a weight is uniform with variance 1 / fan-in (LeCun et al. 1998,
    "Efficient BackProp", section 4.6, for tanh), a bias zero, a normalisation weight one. The numbers are made from the
    raw stream of PCG64, which numpy keeps stable, and from exactly rounded operations only.

    Args:
        seed: ≥ 0; without effect for a linear head.
    """
    stream = np.random.PCG64(seed)
    parts: list[NDArray[np.float64]] = []
    for name, shape in parameter_shapes(model, classes).items():
        size = math.prod(shape)
        if name.startswith("norm") and name.endswith("weight"):
            parts.append(np.ones(size))
        elif len(shape) == 1 or model.head == "linear":
            parts.append(np.zeros(size))
        else:
            between_ones = (np.asarray(stream.random_raw(size)) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
            parts.append(between_ones * math.sqrt(3.0 / math.prod(shape[1:])))
    return np.concatenate(parts).astype(np.float32)


def build_module(model: ModelSection, classes: int, parameters: NDArray[np.float32]) -> "torch.nn.Module":
    """The trained part as a torch module in eval mode, holding a copy of the parameters.

    `mlp`: Linear and tanh for each hidden width. `cnn`: for each channel count Conv3x3 with padding 1, GroupNorm, tanh
    and average pooling by 2, then the mean over what is left of the picture. Both end in Linear. No layer mixes
    records, and none works in place. torch's random state is not touched.
    """
    import torch

    parts = split_parameters(model, classes, parameters)
    with torch.device("meta"):  # shapes only: the values follow, and no default initialisation draws random numbers
        module = torch.nn.Sequential()
        width = model.inputs[0]
        for block, hidden in enumerate(model.hidden):
            if model.head == "cnn":
                module.add_module(f"conv{block}", torch.nn.Conv2d(width, hidden, _KERNEL, padding=_KERNEL // 2))
                module.add_module(f"norm{block}", torch.nn.GroupNorm(_groups(hidden), hidden))
                module.add_module(f"tanh{block}", torch.nn.Tanh())
                module.add_module(f"pool{block}", torch.nn.AvgPool2d(2))
            else:
                module.add_module(f"hidden{block}", torch.nn.Linear(width, hidden))
                module.add_module(f"tanh{block}", torch.nn.Tanh())
            width = hidden
        if model.head == "cnn":
            module.add_module("mean", torch.nn.AdaptiveAvgPool2d(1))
            module.add_module("flat", torch.nn.Flatten())
        module.add_module("head", torch.nn.Linear(width, classes))
    module.load_state_dict({name: torch.from_numpy(part.copy()) for name, part in parts.items()}, assign=True)
    return module.eval()


def predict(
    model: ModelSection, classes: int, parameters: NDArray[np.float32], features: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Class probabilities.

    Args:
        features: Shape (n, *inputs), already normalised.

    Returns:
        Shape (n, classes); every row sums to one.
    """
    if features.shape[1:] != model.inputs:
        raise ValueError(f"features of shape {features.shape} do not end in {model.inputs}")
    if model.head == "linear":
        parts = split_parameters(model, classes, parameters)
        weight = parts["head.weight"].astype(np.float64)
        logits = features.astype(np.float64) @ weight.T + parts["head.bias"].astype(np.float64)
    else:
        logits = _module_logits(model, classes, parameters, features)
    return softmax(logits)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities over the last axis; finite for every finite input."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def cross_entropy(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean of -log p(label), with p at least the smallest normal float64 so that the result is finite.

    Args:
        probabilities: Shape (n, classes), n ≥ 1.
        labels: Shape (n,), class indices.
    """
    if len(labels) == 0:
        raise ValueError("the cross-entropy of no records is undefined")
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def normalise(section: NormalisationSection, features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Raw feature vectors as the head takes them, by the plan's public constants only.

    (x - center) / scale, each coordinate clamped to ±limit, then the vector shortened to an L2 norm of `record_norm` if
    it is longer; a record never sees another one. Computed in float64. NaN stays NaN.

    Args:
        features: Shape (n, *inputs).
    """
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which every later check refuses
        rows = features.astype(np.float64).reshape(len(features), math.prod(features.shape[1:]))
        if section.center:
            rows = (rows - np.asarray(section.center)) / np.asarray(section.scale)
        if section.limit:
            rows = np.clip(rows, -section.limit, section.limit)
        if section.record_norm:
            rows = rows * _shortening(rows, section.record_norm)
        return rows.astype(np.float32).reshape(features.shape)


def _shortening(rows: NDArray[np.float64], longest: float) -> NDArray[np.float64]:
    """The factor in (0, 1] for each row, shape (n, 1); rows are scaled before squaring so that none overflows."""
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = largest * np.sqrt(np.square(rows / largest).sum(axis=1, keepdims=True))
        return np.where(norms > longest, longest / norms, 1.0)


def _module_logits(
    model: ModelSection, classes: int, parameters: NDArray[np.float32], features: NDArray[np.float32]
) -> NDArray[np.float64]:
    import torch

    module = build_module(model, classes, parameters)
    logits = np.empty((len(features), classes))
    with torch.no_grad():
        for start in range(0, len(features), PREDICTION_ROWS):
            rows = torch.tensor(features[start : start + PREDICTION_ROWS], dtype=torch.float32)
            logits[start : start + PREDICTION_ROWS] = module(rows).numpy()
    return logits


def _groups(channels: int) -> int:
    """Groups of about four channels: a group of one channel and one pixel would always be normalised to zero."""
    return math.gcd(channels, max(1, channels // _CHANNELS_PER_GROUP))


def _check_halvings(model: ModelSection) -> None:
    _, height, width = model.inputs
    if min(height, width) >> len(model.hidden) < 1:
        raise ConfigurationError(
            f"a cnn with {len(model.hidden)} blocks halves its picture {len(model.hidden)} times, and {height} x "
            f"{width} can be halved {min(height, width).bit_length() - 1} times",
            hint="name fewer channels in plan.model.hidden",
        )
