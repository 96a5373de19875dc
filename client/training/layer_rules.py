"""How the gradients of each patient follow from what went into a layer and what came back to its output.

A record's gradient of a weight is a sum over positions of outer products of inputs and output gradients; a rule brings
both into that shape. The r records of a patient are r times as many positions. Which form the gradients take is decided
by what it costs: multiplications, and for gradients that leave the processor's cache the way to memory and back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from client.training.per_patient import (
    EmbeddingRows,
    FormedProducts,
    Instantiated,
    OuterProducts,
    PerPatientGradients,
    RankOne,
)
from client.training.positions import KernelLayout, SequenceLayout
from common.errors import ConfigurationError

CACHED_VALUES = 3 << 20  # gradients of so many values together are read again from cache
CACHED_COST, UNCACHED_COST = 24, 1000  # of one instantiated value, in multiplications: written, measured and summed
DOUBLE_COST = 2  # of a float64 multiplication


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """What one layer saw in a chunk.

    Attributes:
        inputs: Shape (n, …), what went in; n records of P patients, the records of a patient side by side.
        gradients: Shape (n, …), of each record's loss by the layer's output, already times the record's share of its
            patient; zero for records that fill the chunk up.
        trained: Names of the layer's own parameters that are trained, in order.
        statistics: What the layer's forward pass worked out besides its output and can be read from its graph.
    """

    inputs: torch.Tensor
    gradients: torch.Tensor
    trained: tuple[str, ...]
    statistics: tuple[torch.Tensor, ...] = ()


Rule = Callable[..., list[PerPatientGradients]]  # of the layer, what it saw, and the number of patients


def refuse_unknown_options(name: str, layer: nn.Module) -> None:
    """Return only if the rule of the layer's type covers the options of this one.

    Raises:
        ConfigurationError: If it pads by other than zeros, or an embedding changes its rows or scales by counts.
    """
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode != "zeros":
        raise ConfigurationError(
            f"layer {name!r} pads by {layer.padding_mode!r}, and gradients per record are known for zeros",
            hint="put an explicit padding layer, such as nn.ReflectionPad2d, before a convolution without padding",
        )
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        raise ConfigurationError(
            f"layer {name!r} rescales rows or gradients by what is in the batch, which mixes patients",
            hint="leave out max_norm and scale_grad_by_freq",
        )


def forward_statistics(layer: nn.Module, output: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Means and inverse deviations that a GroupNorm's graph has saved, each (n, groups); nothing for other layers."""
    if not isinstance(layer, nn.GroupNorm):
        return ()
    means = getattr(output.grad_fn, "_saved_result1", None)
    inverse_deviations = getattr(output.grad_fn, "_saved_result2", None)
    if means is None or inverse_deviations is None:
        return ()
    return means.detach(), inverse_deviations.detach()  # or they hold the graph, whose hook holds them


def _linear(layer: nn.Linear, seen: Recorded, patients: int) -> list[PerPatientGradients]:
    """`nn.Linear` on (n, in) or (n, …, in)."""
    weight, bias = "weight" in seen.trained, "bias" in seen.trained
    width, height = seen.inputs.shape[-1], seen.gradients.shape[-1]
    gradients = seen.gradients.reshape(patients, -1, height)
    if gradients.shape[1] == 1:
        return [RankOne(seen.inputs.reshape(patients, width), gradients[:, 0], weight=weight, bias=bias)]
    found: list[PerPatientGradients] = []
    if weight:
        found.append(_sum_of_outer_products(SequenceLayout(patients), seen.inputs, gradients[:, None], width=width))
    if bias:
        found.append(Instantiated([gradients.sum(1)]))
    return found


def _convolution(layer: nn.Conv1d | nn.Conv2d, seen: Recorded, patients: int) -> list[PerPatientGradients]:
    """`nn.Conv1d` and `nn.Conv2d` with any stride, dilation, groups and padding by zeros."""
    channels = layer.out_channels
    records = len(seen.inputs) // patients
    gradients = seen.gradients.reshape(patients, records, channels, -1)
    by_channel = gradients.transpose(1, 2).reshape(patients, layer.groups, channels // layer.groups, -1)
    found: list[PerPatientGradients] = []
    if "weight" in seen.trained:
        layout, width = KernelLayout(layer, patients), layer.weight[0].numel()
        found.append(_sum_of_outer_products(layout, seen.inputs, by_channel.mT, width=width))
    if "bias" in seen.trained:
        found.append(Instantiated([by_channel.sum(3)]))
    return found


def _group_norm(layer: nn.GroupNorm, seen: Recorded, patients: int) -> list[PerPatientGradients]:
    """`nn.GroupNorm` on (n, channels, …): Σ g·(a - mean)/deviation and Σ g, by channel.

    Formed as (Σ g·a - mean·Σ g)/deviation, as torch's own backward pass does.
    """
    records, channels, groups = len(seen.inputs), layer.num_channels, layer.num_groups
    inputs = seen.inputs.reshape(records, channels, -1)
    gradients = seen.gradients.reshape(records, channels, -1)
    sums = gradients.sum(2)
    parts = []
    if "weight" in seen.trained:
        means, inverse_deviations = seen.statistics or _group_statistics(inputs, groups, layer.eps)
        products = torch.linalg.vecdot(gradients, inputs).view(records, groups, -1)
        centred = products - means.view(records, groups, 1) * sums.view(records, groups, -1)
        parts.append((centred * inverse_deviations.view(records, groups, 1)).view(records, channels))
    if "bias" in seen.trained:
        parts.append(sums)
    return [Instantiated([part.view(patients, -1, channels).sum(1) for part in parts])]


def _layer_norm(layer: nn.LayerNorm, seen: Recorded, patients: int) -> list[PerPatientGradients]:
    """`nn.LayerNorm` over the last dimensions: Σ g·x̂ and Σ g over positions."""
    shape = layer.normalized_shape
    parts = []
    if "weight" in seen.trained:
        parts.append(seen.gradients * functional.layer_norm(seen.inputs, shape, eps=layer.eps))
    if "bias" in seen.trained:
        parts.append(seen.gradients)
    return [Instantiated([part.reshape(patients, -1, *shape).sum(1) for part in parts])]


def _embedding(layer: nn.Embedding, seen: Recorded, patients: int) -> list[PerPatientGradients]:
    """`nn.Embedding` on whole numbers; nothing is trained at `padding_idx`."""
    indices = seen.inputs.reshape(patients, -1)
    gradients = seen.gradients.reshape(patients, -1, layer.embedding_dim)
    if layer.padding_idx is not None:
        gradients = gradients.masked_fill((indices == layer.padding_idx)[:, :, None], 0.0)
    return [EmbeddingRows(indices, gradients)]


RULES: Final[dict[type[nn.Module], Rule]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}


def instantiates(*, patients: int, positions: int, groups: int, width: int, height: int) -> bool:
    """Whether one array a patient is cheaper than inner products of positions and one product for all patients."""
    values = groups * width * height
    cost = CACHED_COST if patients * values <= CACHED_VALUES else UNCACHED_COST
    instantiated = values * (positions + cost)
    ghost = DOUBLE_COST * (groups * positions**2 * (width + height) + positions * values)
    return instantiated <= ghost


def _sum_of_outer_products(
    layout: SequenceLayout | KernelLayout, inputs: torch.Tensor, gradients: torch.Tensor, *, width: int
) -> PerPatientGradients:
    """Σ_t g_t ⊗ a_t for each patient, from a layer's inputs and g of shape (P, groups, T, height)."""
    patients, groups, positions, height = gradients.shape
    if not instantiates(patients=patients, positions=positions, groups=groups, width=width, height=height):
        return OuterProducts(layout, inputs, gradients)
    return FormedProducts(layout.columns(inputs), inputs, gradients, taps=layout.taps)


def _group_statistics(inputs: torch.Tensor, groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse deviation of each group, (n, groups), for inputs of shape (n, channels, positions)."""
    variances, means = torch.var_mean(inputs.view(len(inputs), groups, -1), dim=2, correction=0)
    return means, (variances + eps).rsqrt()
