"""The book-keeping engine on several threads, each with patients of its own: the same guarantees, another order."""

import copy
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from client.training import bookkeeping
from client.training.bookkeeping import BookkeepingEngine
from client.training.lane import twins
from client.training.per_patient import EmbeddingRows, Instantiated, OuterProducts, RankOne
from client.training.threads import Workers
from common.model import build_module
from common.plan import ModelSection
from tests.client.training.test_bookkeeping import (
    MODULES,
    assert_a_record_has_the_same_bits_everywhere,
    flat,
    hostile_parameters,
    patients_of,
    randomised,
)
from tests.contracts.clipped_sum import ClippedSumContract, module_by_the_loop

LANES = 3


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """More threads than processors are here, and chunks of any size worth one."""
    before = torch.get_num_threads()
    monkeypatch.setattr(bookkeeping, "LANE_BYTES", 1)
    torch.set_num_threads(LANES)
    yield
    torch.set_num_threads(before)


class LaneContract(ClippedSumContract):
    precision = "float32"

    def engine(self):
        module = build_module(self.model, self.classes, self.parameters())
        engine = BookkeepingEngine(
            module,
            inputs=self.model.inputs,
            classes=self.classes,
            device="cpu",
            precision=self.precision,
            chunk_records=4,
        )
        assert engine.lanes == LANES
        return engine


class TestMlpInLanes(LaneContract):
    model = ModelSection(head="mlp", inputs=(5,), hidden=(7, 4))
    tolerance = 1e-4


class TestCnnInLanes(LaneContract):
    model = ModelSection(head="cnn", inputs=(1, 8, 8), hidden=(4, 8))
    classes = 2
    tolerance = 1e-4


class TestCnnInLanesInDouble(LaneContract):
    model = ModelSection(head="cnn", inputs=(1, 8, 8), hidden=(4, 8))
    classes = 2
    precision = "float64"
    tolerance = 1e-6


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch says that it copies: meant here
@pytest.mark.parametrize("name", MODULES)
def test_every_layer_agrees_with_one_record_at_a_time_in_lanes(name):
    make, inputs = MODULES[name]
    module = randomised(make)
    parameters, oracle = flat(module), copy.deepcopy(module)
    engine = BookkeepingEngine(module, inputs=inputs, classes=3, device="cpu", chunk_records=4)
    batch = patients_of([1, 1, 4, 2, 3, 1, 1, 11, 1, 1, 1], inputs)
    for clipping_norm in (0.5, 1e4):
        found = engine.clipped_sum(parameters, batch, clipping_norm=clipping_norm)
        expected = module_by_the_loop(oracle, batch, clipping_norm=clipping_norm)
        assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch says that it copies: meant here
@pytest.mark.parametrize("name", MODULES)
def test_no_two_threads_add_to_one_parameter_at_once(name, monkeypatch):
    """Also where a layer forms one part of the patients with one record, and two of those with several."""
    written: list[int] = []
    lock = threading.Lock()

    def slow(plain):
        def add(part, factors, totals):
            own = [total.data_ptr() for total in totals]
            with lock:
                assert not set(own) & set(written), f"two threads write to a parameter of {name!r}"
                written.extend(own)
            time.sleep(0.002)
            plain(part, factors, totals)
            with lock:
                for address in own:
                    written.remove(address)

        return add

    make, inputs = MODULES[name]
    module = randomised(make)
    engine = BookkeepingEngine(module, inputs=inputs, classes=3, device="cpu", chunk_records=4)
    batch = patients_of([1, 1, 1, 1, 4, 2, 3], inputs)
    for form in (Instantiated, RankOne, OuterProducts, EmbeddingRows):
        monkeypatch.setattr(form, "add_weighted_sum", slow(form.add_weighted_sum))
    engine.clipped_sum(flat(module), batch, clipping_norm=0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(13, 21), nn.Tanh(), nn.Linear(21, 3)),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 13)), nn.Conv1d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(55, 3)),
    ],
)
def test_one_patient_who_leaves_moves_the_sum_by_the_clipping_norm_at_most_though_others_change_lanes(make):
    module = make()
    engine = BookkeepingEngine(module, inputs=(13,), classes=3, device="cpu", chunk_records=64)
    assert engine.lanes == LANES
    batch = patients_of([1] * 3000, (13,))
    parameters = hostile_parameters(flat(module).size)
    whole = engine.clipped_sum(parameters, batch, clipping_norm=1.0)
    for left_out in (0, 1, 63, 1700):
        without = batch.select(np.delete(np.arange(3000), left_out))
        moved = np.linalg.norm(whole - engine.clipped_sum(parameters, without, clipping_norm=1.0))
        assert moved <= 1.0


@pytest.mark.parametrize("width", [5, 10, 61])
def test_a_record_gives_the_same_bits_in_every_lane(width):
    assert_a_record_has_the_same_bits_everywhere(width, copies=64)


def test_whichever_lane_ends_first_the_sum_is_the_same_up_to_the_rounding_of_its_float64_sums():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    engine = BookkeepingEngine(module, inputs=(6,), classes=3, device="cpu", chunk_records=4)
    parameters, batch = flat(module), patients_of([1, 2, 1, 3] * 50, (6,))
    first = engine.clipped_sum(parameters, batch, clipping_norm=0.1)
    for _ in range(10):
        again = engine.clipped_sum(parameters, batch, clipping_norm=0.1)
        np.testing.assert_allclose(again, first, rtol=0, atol=1e-14)


def test_code_that_may_keep_what_it_saw_elsewhere_goes_in_one_lane():
    seen = []

    class Remembering(nn.Module):
        def forward(self, records):
            seen.append(records)
            return records

    module = nn.Sequential(Remembering(), nn.Linear(4, 3))
    assert twins(module, 2) == []
    assert BookkeepingEngine(module, inputs=(4,), classes=3, device="cpu").lanes == 1


def test_a_twin_has_the_modules_own_tensors_and_no_others():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2).eval(), nn.Flatten(), nn.Linear(8, 3))
    (twin,) = twins(module, 1)
    own = [*module.parameters(), *module.buffers()]
    other = [*twin.parameters(), *twin.buffers()]
    assert [tensor.data_ptr() for tensor in other] == [tensor.data_ptr() for tensor in own]
    assert not {id(layer) for layer in twin.modules()} & {id(layer) for layer in module.modules()}


@pytest.mark.parametrize("expected", [1, 8])
def test_so_few_records_that_another_lane_would_be_idle_go_in_one(expected):
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    engine = BookkeepingEngine(module, inputs=(4,), classes=3, device="cpu", expected_records=expected, chunk_records=8)
    assert engine.lanes == 1


def test_workers_compute_side_by_side_and_answer_in_order():
    together = threading.Barrier(LANES, timeout=30)

    def work(number):
        together.wait()
        return number, torch.get_num_threads()

    before = torch.get_num_threads()
    assert Workers(LANES).map(work, range(LANES)) == [(number, 1) for number in range(LANES)]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("count", [1, LANES])
def test_what_a_worker_raises_is_raised_to_the_caller(count):
    def work(number):
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number 0"):
        Workers(count).map(work, range(LANES))
