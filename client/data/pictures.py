"""A site's pictures as features of a frozen public backbone, kept encrypted in the site's directory."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.data.intake import FeatureMaker
from client.data.readers import RawTable
from client.deid.clean import CleanTable
from client.home import SiteHome
from common.canonical import DIGEST_PREFIX
from common.errors import ConfigurationError

if TYPE_CHECKING:
    from client.features import Backbone


def open_backbone(name: str, weights: Path) -> "Backbone":
    """A backbone with the weights in a file; which these are, its `weights` tells, and a plan pins.

    Raises:
        ConfigurationError: If the backbone is unknown or the file cannot be read.
        TrustError: If it does not hold this backbone's weights.
    """
    from client.features import load_backbone

    try:
        with weights.open("rb") as stream:
            digest = DIGEST_PREFIX + hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(
            f"{weights}: the weights of {name} cannot be read: {error.strerror}",
            hint="fetch the file whose sha256 the consortium agreed on",
        ) from error
    return load_backbone(name, weights, expected=digest)


def picture_features(home: SiteHome, backbone: "Backbone", directory: Path, *, column: str) -> FeatureMaker:
    """How features come about: from the pictures that the released rows name, each below `directory`."""
    from client.data.images import image_digests, read_images
    from client.features import FeatureCache, extract, feature_key

    def features(clean: CleanTable, raw: RawTable) -> NDArray[np.float32]:
        names = raw.column(column).gather(clean.source_rows).to_list()
        key = feature_key(backbone, image_digests(directory, names))
        cache = FeatureCache(directory=home.root / "features", seal=home.seal, unseal=home.unseal)
        return cache.fetch(key, lambda: extract(backbone, read_images(directory, names)))

    return features
