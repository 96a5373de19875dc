import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigurationError
from common.model import (
    build_module,
    cross_entropy,
    dimension,
    initial_parameters,
    normalise,
    parameter_shapes,
    predict,
    softmax,
    split_parameters,
)
from common.plan import ModelSection, NormalisationSection

LINEAR = ModelSection(inputs=(4,))
MLP = ModelSection(head="mlp", inputs=(4,), hidden=(5, 3))
CNN = ModelSection(head="cnn", inputs=(1, 8, 8), hidden=(4, 8))
HEADS = pytest.mark.parametrize("model", [LINEAR, MLP, CNN], ids=["linear", "mlp", "cnn"])


def random_parameters(model, classes=3, seed=0):
    return np.random.default_rng(seed).standard_normal(dimension(model, classes)).astype(np.float32)


def test_a_linear_head_has_a_weight_for_each_feature_and_class_and_a_bias_for_each_class():
    assert parameter_shapes(LINEAR, 3) == {"head.weight": (3, 4), "head.bias": (3,)}
    assert dimension(LINEAR, 3) == 15


@HEADS
def test_the_layout_is_the_state_dict_of_the_module(model):
    module = build_module(model, 3, random_parameters(model))
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert list(shapes.items()) == list(parameter_shapes(model, 3).items())


@HEADS
def test_the_flat_vector_comes_back_from_the_module(model):
    parameters = random_parameters(model)
    flat = torch.nn.utils.parameters_to_vector(build_module(model, 3, parameters).parameters())
    np.testing.assert_array_equal(flat.detach().numpy(), parameters)


@HEADS
def test_the_module_holds_a_copy(model):
    parameters = random_parameters(model)
    module = build_module(model, 3, parameters)
    with torch.no_grad():
        next(module.parameters()).zero_()
    np.testing.assert_array_equal(parameters, random_parameters(model))


@HEADS
def test_building_leaves_torchs_random_state_alone(model):
    before = torch.random.get_rng_state()
    build_module(model, 3, random_parameters(model))
    assert torch.equal(before, torch.random.get_rng_state())


def test_parameters_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"shape \(15,\)"):
        split_parameters(LINEAR, 3, np.zeros(14, dtype=np.float32))


def test_a_picture_that_is_too_small_for_its_blocks_is_refused():
    with pytest.raises(ConfigurationError, match="halved 3 times"):
        dimension(ModelSection(head="cnn", inputs=(1, 8, 9), hidden=(4, 4, 4, 4)), 2)


def test_a_linear_head_starts_at_zero():
    assert not initial_parameters(LINEAR, 3, seed=5).any()


def test_the_start_of_a_network_is_the_same_everywhere():
    # Computed once from numpy's PCG64 stream; another numpy, platform or torch must give the same bytes.
    start = initial_parameters(MLP, 3, seed=5)
    assert (
        hashlib.sha256(start.tobytes()).hexdigest()
        == "fb17947e10a0a2af9ebb2f18d47c34675149cecae4823f84fa2ec45bb23c91dd"
    )


@pytest.mark.parametrize("model", [MLP, CNN], ids=["mlp", "cnn"])
def test_another_seed_is_another_start(model):
    assert not np.array_equal(initial_parameters(model, 3, seed=1), initial_parameters(model, 3, seed=2))


def test_a_wider_layer_starts_with_smaller_weights():
    model = ModelSection(head="mlp", inputs=(400,), hidden=(300,))
    weight = split_parameters(model, 2, initial_parameters(model, 2, seed=0))["hidden0.weight"]
    assert weight.var() == pytest.approx(1 / 400, rel=0.02)
    assert np.abs(weight).max() <= np.sqrt(3 / 400)


def test_normalisation_layers_start_as_the_identity():
    parts = split_parameters(CNN, 3, initial_parameters(CNN, 3, seed=0))
    assert (parts["norm0.weight"] == 1).all()
    assert not parts["norm0.bias"].any()


@HEADS
def test_predictions_are_the_modules(model):
    parameters = random_parameters(model)
    features = np.random.default_rng(1).standard_normal((9, *model.inputs)).astype(np.float32)
    with torch.no_grad():
        expected = build_module(model, 3, parameters)(torch.from_numpy(features)).softmax(dim=1).numpy()
    found = predict(model, 3, parameters, features)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)


@HEADS
def test_nobody_gets_no_prediction(model):
    assert predict(model, 3, random_parameters(model), np.empty((0, *model.inputs), dtype=np.float32)).shape == (0, 3)


@HEADS
def test_a_record_is_predicted_the_same_alone(model):
    features = np.random.default_rng(1).standard_normal((9, *model.inputs)).astype(np.float32)
    parameters = random_parameters(model)
    alone = predict(model, 3, parameters, features[4:5])
    np.testing.assert_allclose(predict(model, 3, parameters, features)[4:5], alone, atol=1e-6)


def test_features_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="do not end in"):
        predict(LINEAR, 3, random_parameters(LINEAR), np.zeros((2, 5), dtype=np.float32))


@given(st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=5))
def test_probabilities_sum_to_one_whatever_the_logits(logits):
    assert softmax(np.array([logits])).sum() == pytest.approx(1.0)


def test_cross_entropy_by_hand():
    probabilities = np.array([[0.5, 0.5], [0.2, 0.8]])
    assert cross_entropy(probabilities, np.array([0, 1])) == pytest.approx((np.log(2) - np.log(0.8)) / 2)


def test_cross_entropy_of_a_certain_mistake_is_finite():
    assert 700 < cross_entropy(np.array([[1.0, 0.0]]), np.array([1])) < 710


def test_cross_entropy_of_nobody_is_refused():
    with pytest.raises(ValueError, match="undefined"):
        cross_entropy(np.empty((0, 2)), np.empty(0, dtype=np.int64))


def test_normalisation_centres_scales_clamps_and_shortens_in_this_order():
    section = NormalisationSection(center=(1.0, 2.0), scale=(2.0, 0.5), limit=4.0, record_norm=2.5)
    found = normalise(section, np.array([[3.0, 2.0], [7.0, 102.0]]))
    assert found.dtype == np.float32
    # Row 2: (3, 200) is clamped to (3, 4), whose norm 5 is halved.
    np.testing.assert_allclose(found, [[1.0, 0.0], [1.5, 2.0]])


def test_an_empty_section_changes_nothing():
    features = np.array([[1e9, -3.5]], dtype=np.float32)
    np.testing.assert_array_equal(normalise(NormalisationSection(), features), features)


def test_constants_fit_a_picture_too():
    section = NormalisationSection(center=(1.0, 2.0, 3.0, 4.0), scale=(1.0,) * 4)
    found = normalise(section, np.ones((2, 1, 2, 2)))
    np.testing.assert_array_equal(found[1], [[[0, -1], [-2, -3]]])


@given(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3), st.floats(1e-3, 1e3))
def test_no_record_is_longer_than_the_record_norm(values, longest):
    found = normalise(NormalisationSection(record_norm=longest), np.array([values]))
    assert np.linalg.norm(found.astype(np.float64)) <= longest * (1 + 1e-6)


def test_a_short_record_is_not_lengthened():
    np.testing.assert_array_equal(normalise(NormalisationSection(record_norm=9.0), np.array([[3.0, 4.0]])), [[3, 4]])


def test_a_record_of_zeros_stays_zero():
    assert not normalise(NormalisationSection(record_norm=1.0), np.zeros((2, 3))).any()


def test_normalising_nobody_gives_nobody():
    assert normalise(NormalisationSection(limit=1.0, record_norm=1.0), np.empty((0, 3))).shape == (0, 3)


def test_a_linear_model_needs_no_torch():
    script = (
        "import sys, numpy as np; from common.model import *; from common.plan import ModelSection;"
        "m = ModelSection(inputs=(2,)); predict(m, 2, initial_parameters(m, 2, seed=0), np.zeros((1, 2), np.float32));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
