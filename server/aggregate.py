"""From a summed update to the next global model: server optimizers and averaging, all post-processing."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.plan import TrainingSection

FloatArray = NDArray[np.float64]
ADAPTIVITY: Final = 1e-3
SECOND_MOMENT_DECAY: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """The global model and what the optimizer remembers; every array has shape (d,).

    Attributes:
        current: Where the next round's gradients are asked for.
        average: Bias-corrected exponential moving average of the iterates; the released model where averaging is on.
    """

    current: FloatArray
    velocity: FloatArray
    second_moment: FloatArray
    average_sum: FloatArray
    average_weight: float
    rounds: int

    @classmethod
    def start(cls, parameters: NDArray[np.float32]) -> "ServerState":
        """Before the first round."""
        current = parameters.astype(np.float64)
        zero = np.zeros_like(current)
        return cls(current=current, velocity=zero, second_moment=zero, average_sum=zero, average_weight=0.0, rounds=0)

    @property
    def released(self) -> NDArray[np.float32]:
        """The model as it is published: the average if there is one, else the last iterate."""
        if self.average_weight > 0:
            return (self.average_sum / self.average_weight).astype(np.float32)
        return self.current.astype(np.float32)


def server_step(state: ServerState, direction: FloatArray, training: TrainingSection) -> ServerState:
    """One step along a descent direction: minus the mean gradient (pooled), or the mean weight change (local).

    Momentum is Polyak's; Adam and Yogi as in Reddi et al. 2021, Algorithm 2 (arXiv:2003.00295), without a first
    accumulator of 1. Weight decay is decoupled.

    Args:
        direction: Shape (d,), finite.
    """
    if training.weight_decay:
        direction = direction - training.weight_decay * state.current
    velocity, second = state.velocity, state.second_moment
    rate = training.learning_rate
    if training.server_optimizer == "sgd":
        step = rate * direction
    elif training.server_optimizer == "momentum":
        velocity = training.momentum * velocity + direction
        step = rate * velocity
    else:
        velocity = training.momentum * velocity + (1 - training.momentum) * direction
        square = direction * direction
        if training.server_optimizer == "adam":
            second = SECOND_MOMENT_DECAY * second + (1 - SECOND_MOMENT_DECAY) * square
        else:
            second = second - (1 - SECOND_MOMENT_DECAY) * square * np.sign(second - square)
        step = rate * velocity / (np.sqrt(second) + ADAPTIVITY)
    current = state.current + step
    decay = training.averaging
    return ServerState(
        current=current,
        velocity=velocity,
        second_moment=second,
        average_sum=decay * state.average_sum + (1 - decay) * current if decay else state.average_sum,
        average_weight=decay * state.average_weight + (1 - decay) if decay else 0.0,
        rounds=state.rounds + 1,
    )


def descent_direction(total: FloatArray, *, mode: str, cohort_nominal: int, nominal: int) -> FloatArray:
    """The server's direction from the opened sum of one cohort.

    Pooled: the sum of clipped gradients, minus and over the cohort's public nominal number of patients. Local: the
    sites' changes arrive weighted by nominal size over the whole roster's; the weights are made to sum to one.
    """
    if mode == "pooled":
        return -total / cohort_nominal
    return total * (nominal / cohort_nominal)
