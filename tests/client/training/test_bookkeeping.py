import copy
import gc

import numpy as np
import pytest
import torch
from torch import nn

from client.training.batch import PatientBatch
from client.training.bookkeeping import BookkeepingEngine
from client.training.engine import CLIPPING_MARGIN
from common.errors import ConfigurationError
from common.model import build_module
from common.plan import ModelSection
from tests.contracts.clipped_sum import ClippedSumContract, by_the_loop, module_by_the_loop


class BookkeepingContract(ClippedSumContract):
    precision = "float32"

    def engine(self):
        module = build_module(self.model, self.classes, self.parameters())
        return BookkeepingEngine(
            module, inputs=self.model.inputs, classes=self.classes, device="cpu", precision=self.precision
        )


class TestMlp(BookkeepingContract):
    model = ModelSection(head="mlp", inputs=(5,), hidden=(7, 4))
    tolerance = 1e-4

    def test_a_patient_with_more_records_than_a_chunk_is_still_one_patient(self):
        batch, parameters = self.batch([1, 300, 2, 129]), self.parameters()
        found = self.engine().clipped_sum(parameters, batch, clipping_norm=0.01)
        expected = by_the_loop(self.model, self.classes, parameters, batch, clipping_norm=0.01)
        assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)

    def test_a_broken_patient_with_more_records_than_a_chunk_leaves_the_others_as_they_are(self):
        batch, parameters = self.batch([1, 300, 2]), self.parameters()
        features = batch.features.copy()
        features[150] = np.float32(3e38) * np.sign(features[150])
        broken = PatientBatch(features=features, labels=batch.labels, patients=batch.patients, classes=self.classes)
        found = self.engine().clipped_sum(parameters * 1e3, broken, clipping_norm=1.0)
        assert np.isfinite(found).all()


class TestMlpInDouble(BookkeepingContract):
    model = ModelSection(head="mlp", inputs=(5,), hidden=(7, 4))
    precision = "float64"
    tolerance = 1e-6


class TestCnn(BookkeepingContract):
    model = ModelSection(head="cnn", inputs=(1, 8, 8), hidden=(4, 8))
    classes = 2
    tolerance = 1e-4


class TestCnnInDouble(BookkeepingContract):
    model = ModelSection(head="cnn", inputs=(1, 8, 8), hidden=(4, 8))
    classes = 2
    precision = "float64"
    tolerance = 1e-6


class Tokens(nn.Module):
    def forward(self, records):
        return records.long().clamp(0, 10)


MODULES = {
    "linear on vectors": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)), (6,)),
    "linear on sequences": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Flatten(), nn.Linear(35, 3)),
        (7, 4),
    ),
    "wide linear on short sequences": (
        lambda: nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Flatten(), nn.Linear(100, 3)),
        (2, 40),
    ),
    "strided, dilated, padded convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), nn.Flatten(), nn.Linear(200, 3)
        ),
        (3, 9, 8),
    ),
    "grouped convolution": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(54, 3)),
        (4, 5, 5),
    ),
    "depthwise convolution": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding="same", groups=4), nn.Flatten(), nn.Linear(200, 3)),
        (4, 5, 5),
    ),
    "wide grouped convolution of few positions": (
        lambda: nn.Sequential(nn.Conv2d(64, 64, 3, stride=2, padding=1, groups=2), nn.Flatten(), nn.Linear(256, 3)),
        (64, 3, 3),
    ),
    "wide convolution of few positions": (
        lambda: nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(256, 3)),
        (32, 3, 3),
    ),
    "even kernel that keeps the size": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2, padding="same"), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)),
        (2, 4, 4),
    ),
    "convolution of one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 5, 3, stride=2, padding=2), nn.Tanh(), nn.Flatten(), nn.Linear(25, 3)),
        (3, 8),
    ),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)), (4, 3, 3)),
    "layer norm on sequences": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)),
        (5, 4),
    ),
    "layer norm of several dimensions": (
        lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)),
        (3, 4),
    ),
    "embedding": (
        lambda: nn.Sequential(Tokens(), nn.Embedding(11, 4, padding_idx=1), nn.Flatten(), nn.Linear(24, 3)),
        (6,),
    ),
    "a frozen middle": (
        lambda: nn.Sequential(
            nn.Linear(6, 5), nn.Linear(5, 5).requires_grad_(False), nn.ReLU(inplace=True), nn.Linear(5, 3)
        ),
        (6,),
    ),
    "a frozen start": (
        lambda: nn.Sequential(nn.Linear(6, 5).requires_grad_(False), nn.ReLU(inplace=True), nn.Linear(5, 3)),
        (6,),
    ),
}


def randomised(make):
    torch.manual_seed(0)
    module = make().eval()
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter.data, -1.0, 1.0)
    return module


def flat(module):
    parts = [parameter.detach().reshape(-1) for parameter in module.parameters() if parameter.requires_grad]
    return torch.cat(parts).numpy().copy()


def patients_of(counts, inputs, *, classes=3, scale=1.0, seed=0):
    stream = np.random.default_rng(seed)
    patients = np.repeat(np.arange(len(counts)), counts)
    features = (stream.standard_normal((len(patients), *inputs)) * 3 * scale).astype(np.float32)
    return PatientBatch(
        features=features, labels=stream.integers(0, classes, len(patients)), patients=patients, classes=classes
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", MODULES)
def test_every_layer_agrees_with_one_record_at_a_time(name, precision):
    make, inputs = MODULES[name]
    module = randomised(make)
    parameters, oracle = flat(module), copy.deepcopy(module)
    engine = BookkeepingEngine(module, inputs=inputs, classes=3, device="cpu", precision=precision, chunk_records=8)
    batch = patients_of([1, 1, 4, 2, 3, 1, 1, 11, 1, 1, 1], inputs)
    for clipping_norm in (0.5, 1e4):
        found = engine.clipped_sum(parameters, batch, clipping_norm=clipping_norm)
        expected = module_by_the_loop(oracle, batch, clipping_norm=clipping_norm)
        tolerance = 1e-4 if precision == "float32" else 1e-6
        assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def living_tensors():
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", MODULES)
def test_nothing_of_a_patient_stays_in_memory(name):
    make, inputs = MODULES[name]
    module = randomised(make)
    engine = BookkeepingEngine(module, inputs=inputs, classes=3, device="cpu", chunk_records=8)
    parameters, batch = flat(module), patients_of([1, 1, 4, 2, 3, 11], inputs)
    engine.clipped_sum(parameters, batch, clipping_norm=1.0)
    gc.collect()  # what earlier tests left
    gc.disable()  # so that nothing is forgiven that waits for a collection
    try:
        before = living_tensors()
        engine.clipped_sum(parameters, batch, clipping_norm=1.0)
        assert living_tensors() == before
    finally:
        gc.enable()


def test_bfloat16_changes_the_passes_and_not_the_bound():
    model = ModelSection(head="cnn", inputs=(1, 8, 8), hidden=(4, 8))
    parameters = np.random.default_rng(0).uniform(-0.5, 0.5, 378).astype(np.float32)
    batch = patients_of([1, 2, 1, 5], (1, 8, 8), classes=2)
    sums = {}
    for precision in ("float32", "bfloat16"):
        module = build_module(model, 2, parameters)
        engine = BookkeepingEngine(module, inputs=model.inputs, classes=2, device="cpu", precision=precision)
        sums[precision] = engine.clipped_sum(parameters, batch, clipping_norm=0.1)
        for patient in range(4):
            alone = engine.clipped_sum(parameters, batch.select(np.array([patient])), clipping_norm=1e-3)
            assert np.linalg.norm(alone) == pytest.approx(1e-3 * (1 - CLIPPING_MARGIN), rel=1e-6)
    difference = np.linalg.norm(sums["bfloat16"] - sums["float32"])
    assert 0 < difference <= 0.1 * np.linalg.norm(sums["float32"])


def cancelling(width, *, positions=4):
    """A network whose gradient cancels between positions, on records that are nearly the same at each of them."""

    class Differences(nn.Module):
        def forward(self, hidden):
            signs = torch.tensor([1.0, -1.0] * (positions // 2), dtype=hidden.dtype)
            return (hidden * signs[:, None]).sum(1)

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(width, width), Differences(), nn.Linear(width, 3))
    common = np.random.default_rng(1).standard_normal(width)
    small = np.random.default_rng(2).standard_normal((positions, width))
    return module, common, small


@pytest.mark.parametrize(("ratio", "at_least"), [(1e-2, 0.9), (1e-4, 0.5), (1e-6, 0.0)])
def test_gradients_that_cancel_between_positions_are_still_clipped(ratio, at_least):
    module, common, small = cancelling(64)
    engine = BookkeepingEngine(module, inputs=(4, 64), classes=3, device="cpu", chunk_records=8)
    features = (1e4 * (common + ratio * small)).astype(np.float32)[None]
    batch = PatientBatch(
        features=features,
        labels=module(torch.tensor(features)).argmin(1).numpy(),
        patients=np.zeros(1, dtype=np.int64),
        classes=3,
    )
    found = engine.clipped_sum(flat(module), batch, clipping_norm=1.0)
    assert at_least < np.linalg.norm(found) <= 1.0


def test_a_norm_that_is_lost_in_rounding_is_taken_for_more_than_it_is():
    module, common, _ = cancelling(64)
    engine = BookkeepingEngine(module, inputs=(4, 64), classes=3, device="cpu", chunk_records=8)
    features = np.repeat((1e9 * common).astype(np.float32)[None, None], 4, axis=1)
    batch = PatientBatch(
        features=features, labels=np.zeros(1, dtype=np.int64), patients=np.zeros(1, dtype=np.int64), classes=3
    )
    assert np.linalg.norm(engine.clipped_sum(flat(module), batch, clipping_norm=1.0)) <= 1.0


def hostile_parameters(dimension, *, seed=0):
    return (np.random.default_rng(seed).choice([-1e4, 1e4], dimension)).astype(np.float32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(13, 21), nn.Tanh(), nn.Linear(21, 3)),
        lambda: nn.Sequential(nn.Linear(13, 21), nn.ReLU(), nn.Linear(21, 7), nn.ReLU(), nn.Linear(7, 3)),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 13)), nn.Conv1d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(55, 3)),
    ],
)
def test_among_thousands_one_patient_moves_the_sum_by_the_clipping_norm_at_most(make):
    module = make()
    engine = BookkeepingEngine(module, inputs=(13,), classes=3, device="cpu")
    batch = patients_of([1] * 3000, (13,))
    parameters = hostile_parameters(flat(module).size)
    whole = engine.clipped_sum(parameters, batch, clipping_norm=1.0)
    for left_out in (0, 1, 1700):
        without = batch.select(np.delete(np.arange(3000), left_out))
        moved = np.linalg.norm(whole - engine.clipped_sum(parameters, without, clipping_norm=1.0))
        assert moved <= 1.0


def assert_a_record_has_the_same_bits_everywhere(width, *, copies):
    """A patient's record alone, and as that of so many patients."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 7), nn.Tanh(), nn.Linear(7, 3))
    engine = BookkeepingEngine(module, inputs=(width,), classes=3, device="cpu", chunk_records=16)
    parameters = hostile_parameters(flat(module).size) / 1e3
    record = patients_of([1], (width,))
    same = PatientBatch(
        features=np.repeat(record.features, copies, axis=0),
        labels=np.repeat(record.labels, copies),
        patients=np.arange(copies),
        classes=3,
    )
    alone = engine.clipped_sum(parameters, record, clipping_norm=1e9)
    np.testing.assert_allclose(engine.clipped_sum(parameters, same, clipping_norm=1e9), copies * alone, rtol=1e-14)


@pytest.mark.parametrize("width", [5, 7, 10, 30, 61, 251])
def test_a_record_gives_the_same_bits_in_every_row_of_a_chunk(width):
    assert_a_record_has_the_same_bits_everywhere(width, copies=16)


def test_a_patients_missing_records_are_filled_up_with_nothing_that_counts():
    """Three records take four rows; a module for which zeros are fatal must not notice the fourth."""

    class Inverse(nn.Module):
        def forward(self, records):
            return 1.0 / records

    module = nn.Sequential(Inverse(), nn.Linear(4, 3))
    engine = BookkeepingEngine(module, inputs=(4,), classes=3, device="cpu", chunk_records=8)
    batch, parameters = patients_of([3, 1, 3], (4,)), flat(module)
    found = engine.clipped_sum(parameters, batch, clipping_norm=0.5)
    expected = module_by_the_loop(copy.deepcopy(module).requires_grad_(True), batch, clipping_norm=0.5)
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def test_another_loss_of_one_record_at_a_time_is_taken():
    def squared(logits, labels):
        return (logits - nn.functional.one_hot(labels, 3).to(logits.dtype)).square().sum(1)

    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    oracle, parameters, batch = copy.deepcopy(module), flat(module), patients_of([1, 2, 1], (4,))
    engine = BookkeepingEngine(module, inputs=(4,), classes=3, device="cpu", loss=squared)
    found = engine.clipped_sum(parameters, batch, clipping_norm=0.5)
    expected = module_by_the_loop(oracle, batch, clipping_norm=0.5, loss=lambda a, b: squared(a, b).sum())
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def refuse(*layers, inputs=(2, 4, 4), **options):
    with pytest.raises(ConfigurationError) as refusal:
        BookkeepingEngine(nn.Sequential(*layers), inputs=inputs, classes=3, device="cpu", **options)
    assert refusal.value.hint
    return refusal.value.fact


def frozen(layer):
    return layer.requires_grad_(False)


def test_a_mean_loss_is_refused():
    assert "no patient's part" in refuse(nn.Linear(4, 3), inputs=(4,), loss=nn.functional.cross_entropy)


def test_a_loss_that_mixes_patients_is_refused():
    def centred(logits, labels):
        return nn.functional.cross_entropy(logits - logits.mean(0), labels, reduction="none")

    assert "mixes patients" in refuse(nn.Linear(4, 3), inputs=(4,), loss=centred)


def test_batch_norm_is_refused():
    assert "mixes patients" in refuse(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))


def test_frozen_batch_norm_in_train_mode_is_refused():
    assert "in train mode" in refuse(frozen(nn.BatchNorm2d(2)), nn.Flatten(), nn.Linear(32, 3))


def test_an_unknown_trainable_layer_is_refused():
    assert "PReLU" in refuse(nn.Flatten(), nn.PReLU(), nn.Linear(32, 3))


def test_padding_by_other_than_zeros_is_refused():
    layer = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")
    assert "reflect" in refuse(layer, nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_an_embedding_that_looks_at_the_batch_is_refused(options):
    assert "mixes patients" in refuse(Tokens(), nn.Embedding(11, 4, **options), nn.Flatten(), nn.Linear(24, 3))


def test_a_shared_weight_is_refused():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert "shared weight" in refuse(first, nn.Tanh(), second, nn.Linear(4, 3), inputs=(4,))


def test_a_layer_used_twice_is_refused():
    layer = nn.Linear(4, 4)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, records):
            return self.layer(torch.tanh(self.layer(records)))

    assert "shared weight" in refuse(Twice(), nn.Linear(4, 3), inputs=(4,))


class Centred(nn.Module):
    def forward(self, records):
        return records - records.mean(dim=0)


def test_code_that_mixes_records_is_refused():
    assert "differs by" in refuse(nn.Flatten(), Centred(), nn.Linear(32, 3))


def test_code_that_mixes_records_behind_the_first_layer_is_refused():
    assert "differs by" in refuse(nn.Flatten(), nn.Linear(32, 8), Centred(), nn.Linear(8, 3))


def test_records_that_are_not_the_first_dimension_are_refused():
    class Turned(nn.Module):
        def forward(self, records):
            return records.transpose(0, 1)

    assert "one row a record" in refuse(Turned(), nn.Linear(4, 3), inputs=(5, 4))


def test_what_a_layer_saw_and_was_then_overwritten_is_refused():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, records):
            hidden = records * 1.0
            hidden += self.layer(hidden)
            return hidden

    assert "overwritten in place" in refuse(Residual(), nn.Linear(4, 3), inputs=(4,))


def test_a_refused_module_is_given_back_as_it_was():
    module = nn.Sequential(nn.Flatten(), nn.Linear(31, 8), Centred(), nn.Linear(8, 3))
    before = flat(module)
    with pytest.raises(ConfigurationError):
        BookkeepingEngine(module, inputs=(31,), classes=3, device="cpu")
    np.testing.assert_array_equal(flat(module), before)
    assert not any(layer._forward_hooks or "forward" in layer.__dict__ for layer in module.modules())


@pytest.mark.parametrize("size", [0, 3, -8])
def test_a_chunk_that_is_no_power_of_two_is_refused(size):
    with pytest.raises(ValueError, match="power of two"):
        BookkeepingEngine(nn.Linear(4, 3), inputs=(4,), classes=3, device="cpu", chunk_records=size)


def test_chunks_never_show_in_the_sum():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    parameters, batch = flat(module), patients_of([1, 1, 3, 2, 9, 1, 1], (6,))
    sums = [
        BookkeepingEngine(copy.deepcopy(module), inputs=(6,), classes=3, device="cpu", chunk_records=size).clipped_sum(
            parameters, batch, clipping_norm=0.1
        )
        for size in (1, 4, 16)
    ]
    np.testing.assert_allclose(sums[0], sums[1], rtol=0, atol=1e-7)
    np.testing.assert_allclose(sums[0], sums[2], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("expected", "rows"), [(None, 64), (1, 1), (64, 64), (300, 128), (10**9, 256)])
def test_chunks_are_sized_for_the_public_number_of_records(expected, rows):
    engine = BookkeepingEngine(nn.Linear(4, 3), inputs=(4,), classes=3, device="cpu", expected_records=expected)
    assert engine.chunk_records == rows
