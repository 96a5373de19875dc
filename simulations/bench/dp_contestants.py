"""Who trains in `fedward bench dp`: plain SGD, Fedward's engine, and Opacus by hooks and by ghost clipping.

Each takes the same network, the same records and the same clipping norm, and does a whole step: gradients, clipping
and noise where it is private, update. The peers get what a user would write. torchvision's ResNets add in place, which
breaks Opacus' hooks; they get the same network without it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from client.device import DeviceName
from client.training.adapt import adapted
from client.training.engine import choose_engine, choose_module_engine
from client.training.threads import Workers
from common.crypto.ring import choose_grid, dequantise, quantise
from common.privacy.keystream_noise import keystream_gaussian
from common.privacy.noise import poisson_sample
from simulations.bench.dp_cases import Case

if TYPE_CHECKING:
    from client.training.batch import PatientBatch
    from client.training.engine import ClippedSumEngine

Noise = Literal["float", "exact"]

LEARNING_RATE = 0.01
CLIPPING_NORM = 1.0
NOISE_MULTIPLIER = 1.0

_BLOCK = 1 << 16
_WORTH_THREADS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One way to train.

    Attributes:
        work: What is timed: a step, or an epoch.
        parameters: The flat vector of what is trained, at present.
        rest: Lets go of what the last piece of work has left and the next one makes anew.
    """

    work: Callable[[], None]
    parameters: Callable[[], NDArray[np.float32]]
    rest: Callable[[], None]


def plain_sgd(case: Case) -> Contestant:
    """torch as it is."""
    module = case.build().train()
    optimizer = torch.optim.SGD(_trainable(module), lr=LEARNING_RATE)

    def step(features: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return _torch_contestant(case, module, step, rest=optimizer.zero_grad)


def fedward(
    case: Case, *, noise: Noise = "float", noise_multiplier: float = NOISE_MULTIPLIER, device: DeviceName = "cpu"
) -> Contestant:
    """Fedward's engine for the network.

    Args:
        noise: `float` is torch's normal noise in float32, what the peers draw. `exact` is what the product does: the
            sum on the integer grid and the discrete Gaussian from the keystream.
    """
    engine = engine_for(case, device=device)
    parameters = flat_parameters(case.build())
    data = case.data()

    workers = Workers(torch.get_num_threads() if len(parameters) >= _WORTH_THREADS else 1)
    shares = np.array_split(np.arange(0, len(parameters), _BLOCK), workers.count)
    streams = [torch.Generator() for _ in shares]
    for stream in streams:
        stream.seed()

    def step(batch: "PatientBatch") -> None:
        total = engine.clipped_sum(parameters, batch, clipping_norm=CLIPPING_NORM)
        if noise_multiplier and noise == "exact":
            total = _exactly_noised(total, case, noise_multiplier=noise_multiplier)

        def update(starts: NDArray[np.int64], stream: torch.Generator) -> None:
            for start in starts.tolist():  # a block stays in the processor's cache through all of it
                part = torch.from_numpy(total[start : start + _BLOCK]).float()
                if noise_multiplier and noise == "float":
                    part += torch.empty_like(part).normal_(0.0, noise_multiplier * CLIPPING_NORM, generator=stream)
                torch.from_numpy(parameters[start : start + _BLOCK]).sub_(part, alpha=LEARNING_RATE / case.batch)

        workers.map(update, shares, streams)

    def work() -> None:
        if not case.epoch:
            step(data)
            return
        for _ in range(-(-case.records // case.batch)):
            step(data.select(poisson_sample(case.records, case.batch / case.records)))

    return Contestant(work=work, parameters=lambda: parameters, rest=lambda: None)


def opacus_hooks(case: Case, *, noise_multiplier: float = NOISE_MULTIPLIER) -> Contestant:
    """Opacus' GradSampleModule and DPOptimizer."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    module: nn.Module = GradSampleModule(adapted(case.build())[0].train(), loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(_trainable(module), lr=LEARNING_RATE),
        noise_multiplier=noise_multiplier,
        max_grad_norm=CLIPPING_NORM,
        expected_batch_size=case.batch,
        loss_reduction="mean",
    )

    def step(features: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return _torch_contestant(case, module, step, rest=optimizer.zero_grad)


def opacus_ghost(case: Case, *, noise_multiplier: float = NOISE_MULTIPLIER) -> Contestant:
    """Opacus' ghost clipping: norms in a first backward pass, the weighted loss in a second."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    module: nn.Module = GradSampleModuleFastGradientClipping(
        adapted(case.build())[0].train(), max_grad_norm=CLIPPING_NORM, use_ghost_clipping=True, loss_reduction="mean"
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(_trainable(module), lr=LEARNING_RATE),
        noise_multiplier=noise_multiplier,
        max_grad_norm=CLIPPING_NORM,
        expected_batch_size=case.batch,
        loss_reduction="mean",
    )
    criterion = DPLossFastGradientClipping(module, optimizer, nn.CrossEntropyLoss(), loss_reduction="mean")

    def step(features: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        criterion(module(features), labels).backward()
        optimizer.step()

    return _torch_contestant(case, module, step, rest=optimizer.zero_grad)


CONTESTANTS: dict[str, Callable[[Case], Contestant]] = {
    "plain SGD": plain_sgd,
    "Fedward": fedward,
    "Fedward, exact noise": lambda case: fedward(case, noise="exact"),
    "Fedward, without noise": lambda case: fedward(case, noise_multiplier=0.0),
    "Opacus hooks": opacus_hooks,
    "Opacus ghost": opacus_ghost,
}


def contestants_of(case: Case) -> list[str]:
    """The names of those that can train the case."""
    return [name for name in CONTESTANTS if case.ghost or name != "Opacus ghost"]


def engine_for(case: Case, *, device: DeviceName) -> "ClippedSumEngine":
    """The engine that Fedward chooses for a case."""
    if case.linear is not None:
        return choose_engine(case.linear, case.classes, device=device)[0]
    module = adapted(case.build())[0]
    return choose_module_engine(
        module, inputs=case.inputs, classes=case.classes, device=device, expected_records=case.batch
    )[0]


def flat_parameters(module: nn.Module) -> NDArray[np.float32]:
    """A copy of what is trained, in the order of `named_parameters`."""
    return np.asarray(nn.utils.parameters_to_vector(_trainable(module)).detach().cpu().numpy()).copy()


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _torch_contestant(
    case: Case, module: nn.Module, step: Callable[[torch.Tensor, torch.Tensor], None], *, rest: Callable[[], None]
) -> Contestant:
    data = case.data()
    features, labels = torch.tensor(data.features), torch.tensor(data.labels)
    loader = DataLoader(TensorDataset(features, labels), batch_size=case.batch, shuffle=True)

    def work() -> None:
        if not case.epoch:
            step(features, labels)
            return
        for some_features, some_labels in loader:
            step(some_features, some_labels)

    return Contestant(work=work, parameters=lambda: flat_parameters(module), rest=rest)


def _exactly_noised(total: NDArray[np.float64], case: Case, *, noise_multiplier: float) -> NDArray[np.float64]:
    grid = choose_grid(
        dimension=len(total),
        clipping_norm=CLIPPING_NORM,
        sites=1,
        nominal_patients=case.batch,
        noise_multiplier=noise_multiplier,
        noise_shares=1,
    )
    units = quantise(total, grid)
    units += keystream_gaussian(len(total), noise_multiplier * grid.sensitivity)
    return dequantise(units, grid)
