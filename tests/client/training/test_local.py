import numpy as np
import pytest

from client.training.batch import PatientBatch
from client.training.closed_form import ClosedFormEngine
from client.training.local import local_training
from common.crypto.ring import Grid
from common.plan import ModelSection
from tests.contracts.clipped_sum import by_the_loop

MODEL = ModelSection(inputs=(4,))
CLASSES = 2
DIMENSION = 10
GRID = Grid(scale=2**20, clamp=2**30, dimension=DIMENSION, clipping_norm=1.0)


class Draws:
    """Injected randomness that keeps a record of what was asked."""

    def __init__(self, noise=0, chosen=()):
        self.noise, self.chosen = noise, list(chosen)
        self.noise_asked, self.samples_asked = [], []

    def draw_noise(self, size, std):
        self.noise_asked.append((size, std))
        return np.full(size, self.noise, dtype=np.int64)

    def sample(self, population_size, rate):
        self.samples_asked.append((population_size, rate))
        return np.array(self.chosen.pop(0), dtype=np.int64)


def batch():
    rng = np.random.default_rng(0)
    return PatientBatch(
        features=rng.standard_normal((6, 4)).astype(np.float32) * 3,
        labels=np.array([0, 1, 1, 0, 1, 0]),
        patients=np.array([0, 1, 1, 2, 3, 3]),
        classes=CLASSES,
    )


def train(draws, *, records=None, start=None, **changes):
    arguments = {
        "steps": 3,
        "sampling_rate": 1.0,
        "learning_rate": 0.5,
        "clipping_norm": 1.0,
        "nominal_patients": 5,
        "noise_multiplier": 2.0,
        "grid": GRID,
    } | changes
    return local_training(
        ClosedFormEngine(MODEL, CLASSES),
        np.zeros(DIMENSION, dtype=np.float32) if start is None else start,
        batch() if records is None else records,
        sample=draws.sample,
        draw_noise=draws.draw_noise,
        **arguments,
    )


def test_without_noise_it_is_gradient_descent_on_clipped_sums():
    weights = np.linspace(-1, 1, DIMENSION).astype(np.float32)
    found = train(Draws(), start=weights)
    moving = weights.astype(np.float64)
    for _ in range(3):
        moving -= 0.5 / 5 * by_the_loop(MODEL, CLASSES, moving.astype(np.float32), batch(), clipping_norm=1.0)
    np.testing.assert_allclose(found, moving - weights, atol=3 * 2**-20)


def test_large_weights_do_not_swallow_a_small_step():
    weights = np.full(DIMENSION, 1e6, dtype=np.float32)
    few, many = (train(Draws(noise=7), start=weights, nominal_patients=n0) for n0 in (5, 10**9))
    assert np.all(many != 0)
    np.testing.assert_allclose(many * 10**9, few * 5, rtol=1e-6)


def test_with_sampling_a_step_sees_the_chosen_patients_and_divides_by_the_nominal_sample():
    found = train(Draws(chosen=[[1, 3]]), steps=1, sampling_rate=0.25)
    chosen = batch().select(np.array([1, 3]))
    expected = by_the_loop(MODEL, CLASSES, np.zeros(DIMENSION, dtype=np.float32), chosen, clipping_norm=1.0)
    np.testing.assert_allclose(found, -0.5 / (0.25 * 5) * expected, atol=2 * 2**-20)


def test_every_step_draws_noise_once_with_the_promised_deviation():
    draws = Draws()
    train(draws, steps=7)
    assert draws.noise_asked == [(DIMENSION, 2.0 * GRID.sensitivity)] * 7


def test_every_step_samples_once_from_the_whole_population():
    draws = Draws(chosen=[[], [0], [1, 2]])
    train(draws, sampling_rate=0.5)
    assert draws.samples_asked == [(4, 0.5)] * 3


def test_a_full_batch_needs_no_sample():
    draws = Draws()
    train(draws)
    assert draws.samples_asked == []


def test_a_step_without_patients_moves_by_noise_alone():
    found = train(Draws(noise=2**20, chosen=[[]]), steps=1, sampling_rate=0.5)
    np.testing.assert_allclose(found, -0.5 / (0.5 * 5))


def test_a_site_without_patients_moves_by_noise_alone():
    found = train(Draws(noise=2**20), records=PatientBatch.empty(classes=CLASSES), steps=2)
    np.testing.assert_allclose(found, -2 * 0.5 / 5)


def test_the_same_draws_give_the_same_update():
    np.testing.assert_array_equal(train(Draws(noise=77)), train(Draws(noise=77)))


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"sampling_rate": 0.0}, {"sampling_rate": 1.5}, {"noise_multiplier": 0.0}, {"nominal_patients": 0}],
)
def test_a_number_out_of_range_is_refused_before_any_draw(change):
    draws = Draws()
    with pytest.raises(ValueError, match="at least 1"):
        train(draws, **change)
    assert draws.noise_asked == []


def test_a_grid_for_another_clipping_norm_is_refused():
    with pytest.raises(ValueError, match="another clipping norm"):
        train(Draws(), clipping_norm=2.0)
