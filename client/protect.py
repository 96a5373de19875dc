"""From an update to what may leave: pairwise masks that cancel in the sum over the whole cohort."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from client.update import LocalUpdate
from common.crypto.masking import apply_masks
from common.crypto.ring import to_ring


def mask_update(
    update: LocalUpdate, *, site: str, pair_secrets: Mapping[str, bytes], context: bytes
) -> NDArray[np.uint32]:
    """The update modulo 2**32 under one mask for every other site of the cohort.

    Guarantee: unless every honest site of the cohort uploads under the same context, the result is uniform to anyone
    without a pair secret of this site.
    """
    return apply_masks(to_ring(update.units), own_name=site, pair_secrets=pair_secrets, context=context)
