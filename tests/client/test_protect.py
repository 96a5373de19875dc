import numpy as np
import pytest

from client.protect import mask_update
from client.update import LocalUpdate
from common.crypto.ring import from_ring

NAMES = ("east", "north", "south")
SECRETS = {frozenset(pair): bytes([number]) * 32 for number, pair in enumerate([NAMES[:2], NAMES[1:], NAMES[::2]])}
UPDATES = {
    name: LocalUpdate(units=np.arange(6, dtype=np.int64) * sign) for name, sign in zip(NAMES, (1, -7, 3), strict=True)
}


def masked(site: str, context: bytes = b"attempt 1"):
    secrets = {peer: SECRETS[frozenset((site, peer))] for peer in NAMES if peer != site}
    return mask_update(UPDATES[site], site=site, pair_secrets=secrets, context=context)


def test_masks_cancel_in_the_sum_over_all() -> None:
    total = sum((masked(site) for site in NAMES), start=np.zeros(6, dtype=np.uint32))
    np.testing.assert_array_equal(from_ring(total), np.arange(6) * -3)


def test_a_masked_update_is_not_the_update() -> None:
    assert np.abs(from_ring(masked("east"))).max() > 1000


def test_under_mixed_contexts_nothing_opens() -> None:
    total = masked("east") + masked("north") + masked("south", b"attempt 2")
    assert np.abs(from_ring(total)).max() > 1000


def test_without_a_peer_nothing_leaves() -> None:
    with pytest.raises(ValueError, match="no peer, no mask"):
        mask_update(UPDATES["east"], site="east", pair_secrets={}, context=b"attempt 1")


def test_the_update_itself_stays_as_it_is() -> None:
    masked("east")
    np.testing.assert_array_equal(UPDATES["east"].units, np.arange(6))
