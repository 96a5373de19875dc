from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.plan import TrainingSection
from server.aggregate import ServerState, descent_direction, server_step

START = np.array([1.0, -2.0], dtype=np.float32)
DIRECTIONS = [np.array([0.5, 1.0]), np.array([-0.25, 2.0]), np.array([1.0, 0.0])]


def training(**values: Any) -> TrainingSection:
    return TrainingSection.model_validate({"rounds": 3, "learning_rate": 0.1, **values})


def after(section: TrainingSection) -> ServerState:
    state = ServerState.start(START)
    for direction in DIRECTIONS:
        state = server_step(state, direction, section)
    return state


def by_hand(optimizer: str) -> NDArray[np.float64]:
    """The same three steps, coordinate by coordinate, from the papers' formulas."""
    result = []
    for coordinate in range(2):
        x, m, v = float(START[coordinate]), 0.0, 0.0
        for direction in DIRECTIONS:
            g = float(direction[coordinate])
            if optimizer == "sgd":
                x += 0.1 * g
            elif optimizer == "momentum":
                m = 0.9 * m + g
                x += 0.1 * m
            else:
                m = 0.9 * m + 0.1 * g
                v = 0.99 * v + 0.01 * g * g if optimizer == "adam" else v - 0.01 * g * g * float(np.sign(v - g * g))
                x += 0.1 * m / (v**0.5 + 1e-3)
        result.append(x)
    return np.array(result)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "yogi"])
def test_each_optimizer_takes_the_steps_of_its_formula(optimizer: str) -> None:
    np.testing.assert_allclose(after(training(server_optimizer=optimizer)).current, by_hand(optimizer), rtol=1e-12)


def test_without_averaging_the_last_iterate_is_released() -> None:
    state = after(training(server_optimizer="sgd"))
    np.testing.assert_array_equal(state.released, state.current.astype(np.float32))


def test_with_averaging_the_weighted_mean_of_the_iterates_is_released() -> None:
    iterates = START + 0.1 * np.cumsum(DIRECTIONS, axis=0)
    weights = 0.5 * 0.5 ** np.array([2, 1, 0])
    expected = (weights[:, None] * iterates).sum(axis=0) / weights.sum()
    np.testing.assert_allclose(after(training(server_optimizer="sgd", averaging=0.5)).released, expected, rtol=1e-6)


def test_one_round_of_averaging_releases_that_rounds_model() -> None:
    state = server_step(ServerState.start(START), DIRECTIONS[0], training(server_optimizer="sgd", averaging=0.9))
    np.testing.assert_allclose(state.released, state.current, rtol=1e-6)


def test_weight_decay_pulls_towards_zero() -> None:
    state = server_step(
        ServerState.start(START), np.zeros(2), training(server_optimizer="sgd", weight_decay=0.5, learning_rate=1.0)
    )
    np.testing.assert_allclose(state.current, START * 0.5)


def test_a_step_leaves_the_state_before_it_alone() -> None:
    state = ServerState.start(START)
    server_step(state, DIRECTIONS[0], training())
    np.testing.assert_array_equal(state.current, START)
    assert state.rounds == 0


def test_rounds_are_counted() -> None:
    assert after(training()).rounds == 3


def test_the_pooled_direction_is_minus_the_mean_gradient_over_the_cohorts_nominal_patients() -> None:
    direction = descent_direction(np.array([30.0, -60.0]), mode="pooled", cohort_nominal=30, nominal=40)
    np.testing.assert_array_equal(direction, [-1.0, 2.0])


def test_the_local_direction_gives_a_smaller_cohort_the_whole_weight() -> None:
    """Three sites of nominal 10 in a roster of 40 send changes weighted 1/4 each; together they count as one."""
    total = 3 * 0.25 * np.array([2.0, -4.0])
    direction = descent_direction(total, mode="local", cohort_nominal=30, nominal=40)
    np.testing.assert_allclose(direction, [2.0, -4.0])
