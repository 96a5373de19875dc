import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import squeezenet1_1

from client.data.images import image_digests, read_images
from client.features import BATCH_PICTURES, Backbone, FeatureCache, extract, feature_key, load_backbone, pool
from common.crypto.seal import StorageKey, open_sealed, seal_bytes
from common.errors import ConfigurationError, TrustError
from common.files import write_atomic

SHARED_DATA = Path(os.environ.get("FEDWARD_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
WEIGHTS = SHARED_DATA / "weights" / "squeezenet1_1_features.safetensors"
PINNED = "sha256:c037b3436fed787ba63f80318a68e3402a2037b9d80b5bea01d9e09f2920c2ba"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"the pretrained weights are not at {WEIGHTS}")


def digest(path):
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """SqueezeNet's weights as torchvision makes them up: right names and shapes, nothing learned."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = squeezenet1_1(weights=None).features.state_dict()
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file({f"features.{name}": value for name, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def backbone(weights_file):
    return load_backbone("squeezenet1_1", weights_file, expected=digest(weights_file))


def pictures(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8))


def by_torchvision(path, images):
    """The plain way: the whole architecture, its weights by name, one picture at a time."""
    network = squeezenet1_1(weights=None)
    network.load_state_dict(load_file(path), strict=False)
    network.eval()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    rows = []
    with torch.no_grad():
        for image in images:
            scaled = ((image / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32)
            maps = network.features(torch.from_numpy(scaled)[None])
            rows.append(torch.nn.functional.adaptive_avg_pool2d(maps, 1).flatten().numpy())
    return np.array(rows)


def test_weights_that_are_not_the_pinned_ones_are_refused_before_they_are_parsed(tmp_path):
    (tmp_path / "w").write_bytes(b"\xff" * 64)
    with pytest.raises(TrustError, match="and the plan pins sha256:c037b3436fed…"):
        load_backbone("squeezenet1_1", tmp_path / "w", expected=PINNED)


def test_a_pinned_file_of_another_network_is_refused(tmp_path):
    save_file({"features.0.weight": torch.zeros(3)}, tmp_path / "w")
    with pytest.raises(TrustError, match="does not hold the weights"):
        load_backbone("squeezenet1_1", tmp_path / "w", expected=digest(tmp_path / "w"))


def test_a_pinned_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / "w").write_bytes(b"\xff" * 64)
    with pytest.raises(TrustError, match="does not hold the weights"):
        load_backbone("squeezenet1_1", tmp_path / "w", expected=digest(tmp_path / "w"))


def test_missing_weights_are_a_fault_of_the_configuration(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_backbone("squeezenet1_1", tmp_path / "none", expected=PINNED)


def test_an_unknown_backbone_is_refused(weights_file):
    with pytest.raises(ConfigurationError, match="'resnet18'"):
        load_backbone("resnet18", weights_file, expected=digest(weights_file))


def test_a_backbone_is_frozen_and_in_eval_mode(backbone):
    assert not any(layer.training for layer in backbone.module.modules())
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


def test_loading_leaves_torchs_random_state_alone(weights_file):
    before = torch.random.get_rng_state()
    load_backbone("squeezenet1_1", weights_file, expected=digest(weights_file))
    assert torch.equal(before, torch.random.get_rng_state())


def test_features_are_torchvisions(backbone, weights_file):
    images = pictures(3)
    np.testing.assert_allclose(extract(backbone, images, device="cpu"), by_torchvision(weights_file, images), atol=1e-4)


def test_features_do_not_depend_on_the_other_pictures(backbone):
    images = pictures(BATCH_PICTURES + 2)
    together = extract(backbone, images, device="cpu")
    alone = extract(backbone, [images[0], images[-1]], device="cpu")
    np.testing.assert_allclose(together[[0, -1]], alone, atol=1e-5)


def test_no_pictures_give_no_features(backbone):
    assert extract(backbone, [], device="cpu").shape == (0, 512)


def test_a_picture_with_its_channels_first_is_refused(backbone):
    with pytest.raises(ValueError, match="uint8 of shape"):
        extract(backbone, [np.zeros((3, 224, 224), dtype=np.uint8)], device="cpu")


def test_pooling_is_the_mean_over_places():
    maps = torch.arange(24.0).view(2, 3, 2, 2)
    np.testing.assert_allclose(pool(maps), [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]])


@needs_weights
def test_the_pretrained_features_of_real_pictures_are_torchvisions():
    backbone = load_backbone("squeezenet1_1", WEIGHTS, expected=PINNED)
    folder = SHARED_DATA / "chest_xray" / "images"
    names = sorted(os.listdir(folder))[:4]
    images = list(read_images(folder, names))
    found = extract(backbone, images, device="cpu")
    np.testing.assert_allclose(found, by_torchvision(WEIGHTS, images), atol=1e-4)
    assert len(set(image_digests(folder, names))) == 4


@pytest.fixture
def cache(tmp_path):
    key = StorageKey.generate()
    return FeatureCache(
        directory=tmp_path,
        seal=lambda path, plain: write_atomic(path, seal_bytes(plain, key, purpose=path.name)),
        unseal=lambda path: open_sealed(path.read_bytes(), key, purpose=path.name),
    )


class Counted:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return np.arange(6, dtype=np.float32).reshape(2, 3)


def test_features_are_computed_once(cache):
    compute = Counted()
    first, second = cache.fetch("k", compute), cache.fetch("k", compute)
    assert compute.calls == 1
    np.testing.assert_array_equal(first, second)
    assert second.dtype == np.float32


def test_features_of_another_key_are_computed_anew(cache):
    compute = Counted()
    cache.fetch("a", compute)
    cache.fetch("b", compute)
    assert compute.calls == 2


def test_nothing_readable_lies_in_the_cache(cache):
    features = cache.fetch("k", Counted())
    (path,) = cache.directory.iterdir()
    assert features.tobytes() not in path.read_bytes()
    assert b"features" not in path.read_bytes()


def test_a_changed_cache_is_refused(cache):
    cache.fetch("k", Counted())
    (path,) = cache.directory.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrustError):
        cache.fetch("k", Counted())


def test_the_key_depends_on_pictures_their_order_weights_and_backbone():
    def key(name="squeezenet1_1", weights=PINNED, digests=("a", "b")):
        return feature_key(Backbone(name=name, weights=weights, module=torch.nn.Identity(), width=512), digests)

    keys = [key(), key(name="other"), key(weights="sha256:" + "0" * 64), key(digests=("b", "a")), key(digests=("ab",))]
    assert len(set(keys)) == 5
    assert key() == keys[0]
    assert all(len(found) == 64 for found in keys)
