"""One way through a network: takes a chunk of patients forward and back, and says how long each one's gradient is.

Several lanes go side by side, one in a thread. They share the weights, and nothing that a pass writes.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.training.chunks import Chunk
from client.training.engine import Precision
from client.training.module_check import trainable_layers
from client.training.per_patient import PerPatientGradients
from client.training.recorder import Recorder
from client.training.self_check import RecordLoss
from client.training.stack import StackPass, is_stack
from client.training.steady import restore_linear_layers, steady_linear_layers


class Located(NamedTuple):
    """What a layer gives in some of its parameters.

    Attributes:
        layer: Number of the layer. One that forms several parts of a chunk may form one of the next.
        places: Of the parameters, in the order of the module.
        part: The gradients.
    """

    layer: int
    places: Sequence[int]
    part: PerPatientGradients


_STATELESS: Final = frozenset({"torch", "torchvision", "client"})  # packages whose layers keep nothing between calls


class Lane:
    """A module that listens to its trainable layers, and room for one chunk.

    Attributes:
        module: In eval mode; its parameters point into the vector that was loaded last.
        parameters: Those that are trained, in the order of the module.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        inputs: tuple[int, ...],
        device: torch.device,
        precision: Precision,
        loss: RecordLoss,
    ) -> None:
        """Take over a module that is on the device and in the precision's type."""
        self.module = module
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._inputs = inputs
        self._device = device
        self._precision = precision
        self._type = torch.float64 if precision == "float64" else torch.float32
        self._loss = loss
        self._recorder = Recorder(trainable_layers(module))
        steady_linear_layers(module)
        plain = is_stack(module) and len(inputs) == 1 and precision != "bfloat16"
        self._stack = StackPass(module, self._recorder.trained) if plain else None
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        self._places = {
            layer: (number, [places[id(getattr(layer, name))] for name in names])
            for number, (layer, names) in enumerate(self._recorder.trained.items())
        }

    def release(self) -> None:
        """Leave the module as it was but for its weights."""
        self._recorder.release()
        restore_linear_layers(self.module)

    def resize(self, records: int) -> None:
        """Make room for chunks of so many rows."""
        exact = np.float64 if self._type == torch.float64 else np.float32
        self._records = np.zeros((records, *self._inputs), dtype=exact)
        self._labels = np.zeros(records, dtype=np.int64)
        self._shares = np.zeros(records)

    def load(self, pieces: Sequence[torch.Tensor]) -> None:
        """Point the parameters to flat tensors of their sizes."""
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.data = piece.view_as(parameter)

    def measured(self, chunk: Chunk) -> tuple[list[Located], NDArray[np.float64]]:
        """The gradients of a chunk's patients and their norms, shape (P,); none if the loss depends on no parameter.

        A patient whose norm is not finite is silenced, since 0 x NaN would be NaN.
        """
        found = self.gradients(chunk)
        if not found:
            return found, np.zeros(chunk.patients)
        norms = torch.stack([some.part.squared_norms() for some in found]).sum(0).sqrt_().cpu().numpy()
        broken = ~np.isfinite(norms)
        if broken.any():
            for some in found:
                some.part.silence(torch.from_numpy(broken).to(self._device))
        return found, np.asarray(norms)

    def gradients(self, chunk: Chunk) -> list[Located]:
        """What each layer gives for the patients of a chunk, with the places of its parameters."""
        rows = len(chunk.labels)
        for buffer, values in (
            (self._records, chunk.features),
            (self._labels, chunk.labels),
            (self._shares, chunk.shares),
        ):
            buffer[:rows] = values
            buffer[rows:] = 0
        records, labels, shares = (
            torch.from_numpy(buffer).to(self._device) for buffer in (self._records, self._labels, self._shares)
        )
        if self._stack is not None:
            by_layer = self._stack.run(
                records, lambda logits: self._loss(logits, labels), patients=chunk.patients, shares=shares
            )
        else:
            by_layer = self._recorder.run(
                lambda: self.losses(records, labels), records=len(records), patients=chunk.patients, shares=shares
            )
        found: list[Located] = []
        for layer, parts in by_layer.items():
            number, own = self._places[layer]
            places = iter(own)
            found.extend([Located(number, [next(places) for _ in range(part.parameters)], part) for part in parts])
        return found

    def losses(self, records: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each record, shape (n,)."""
        with torch.autocast(self._device.type, torch.bfloat16) if self._precision == "bfloat16" else nullcontext():
            logits = self.module(records)
        return self._loss(logits.to(self._type), labels)


def twins(module: nn.Module, count: int) -> list[nn.Module]:
    """So many copies of a module whose tensors are the module's own; none if its code may keep something elsewhere.

    Two passes at once through code that keeps what it saw outside of its copy could mix patients.
    """
    known = all(
        type(layer).__module__.partition(".")[0] in _STATELESS
        and "forward" not in vars(layer)
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
        for layer in module.modules()
    )
    return [_twin(module) for _ in range(count)] if known else []


def _twin(module: nn.Module) -> nn.Module:
    shared: dict[int, object] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, shared)
