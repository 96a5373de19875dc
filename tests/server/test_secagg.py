import numpy as np
import pytest
from numpy.typing import NDArray

from common.crypto.masking import apply_masks
from common.crypto.ring import Grid, to_ring
from common.errors import SecureSumAborted
from server.secagg import SealedSum

GRID = Grid(scale=1024, clamp=1 << 20, dimension=3, clipping_norm=1.0)
COHORT = ["east", "north", "south"]
CONTEXT = bytes(32)
UNITS = {name: np.array([n - 1, -5 * n, 1024 * n], dtype=np.int64) for n, name in enumerate(COHORT)}


def masked(site: str) -> NDArray[np.uint32]:
    secrets = {peer: "".join(sorted(site + peer)).encode().ljust(32)[:32] for peer in COHORT if peer != site}
    return apply_masks(to_ring(UNITS[site]), own_name=site, pair_secrets=secrets, context=CONTEXT)


@pytest.fixture
def sealed() -> SealedSum:
    return SealedSum(cohort=COHORT, context="attempt 1", grid=GRID)


def test_masks_cancel_when_every_site_answered(sealed: SealedSum) -> None:
    for site in reversed(COHORT):
        sealed.add(site, context="attempt 1", vector=masked(site))
    np.testing.assert_array_equal(sealed.open(), np.array([0.0, -15.0, 3072.0]) / 1024)


def test_the_sum_stays_sealed_while_anyone_is_missing(sealed: SealedSum) -> None:
    sealed.add("east", context="attempt 1", vector=masked("east"))
    assert sealed.missing == ["north", "south"]
    with pytest.raises(SecureSumAborted, match="2 sites are missing"):
        sealed.open()


def test_a_stranger_is_not_added(sealed: SealedSum) -> None:
    with pytest.raises(SecureSumAborted, match="west is not awaited"):
        sealed.add("west", context="attempt 1", vector=masked("east"))


def test_a_site_is_added_once(sealed: SealedSum) -> None:
    sealed.add("east", context="attempt 1", vector=masked("east"))
    with pytest.raises(SecureSumAborted, match="east is not awaited"):
        sealed.add("east", context="attempt 1", vector=masked("east"))


def test_a_vector_of_another_attempt_is_not_added(sealed: SealedSum) -> None:
    with pytest.raises(SecureSumAborted, match="another attempt, cohort or model"):
        sealed.add("east", context="attempt 2", vector=masked("east"))
    assert "east" in sealed.missing


def test_a_vector_of_another_size_is_not_added(sealed: SealedSum) -> None:
    with pytest.raises(SecureSumAborted, match="sent 2 coordinates, the model has 3"):
        sealed.add("east", context="attempt 1", vector=masked("east")[:2])


def test_a_negative_sum_comes_out_negative() -> None:
    alone = SealedSum(cohort=["east"], context="c", grid=GRID)
    alone.add("east", context="c", vector=to_ring(np.array([-1, -1024, 0], dtype=np.int64)))
    np.testing.assert_array_equal(alone.open(), [-1 / 1024, -1.0, 0.0])
