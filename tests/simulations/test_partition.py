import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigurationError
from simulations.partition import partition_rows

SHARES = (0.4, 0.3, 0.2, 0.1)
LABELS = (np.arange(426) % 5 < 2).astype(np.int64)


def split(*, label_skew: float = 0.5, seed: int = 0):
    return partition_rows(LABELS, weights=SHARES, label_skew=label_skew, seed=seed)


@given(
    rows=st.integers(4, 300),
    raw=st.lists(st.floats(0.01, 1), min_size=1, max_size=4),
    skew=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_every_row_goes_to_exactly_one_site_and_no_site_stays_empty(rows, raw, skew, seed) -> None:
    labels = np.arange(rows, dtype=np.int64) % 3
    parts = partition_rows(labels, weights=[weight / sum(raw) for weight in raw], label_skew=skew, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert min(map(len, parts)) >= 1


def test_sites_get_their_shares() -> None:
    assert np.allclose([len(part) / 426 for part in split()], SHARES, atol=2 / 426)


def test_rows_come_in_ascending_order() -> None:
    assert all((np.diff(part) > 0).all() for part in split())


def test_the_seed_fixes_the_split() -> None:
    assert all(map(np.array_equal, split(seed=3), split(seed=3)))
    assert not all(map(np.array_equal, split(seed=3), split(seed=4)))


def test_without_skew_sites_have_the_same_mix_of_labels() -> None:
    mixes = np.array([[LABELS[part].mean() for part in split(label_skew=0.0, seed=seed)] for seed in range(30)])
    assert np.abs(mixes.mean(axis=0) - LABELS.mean()).max() < 0.05


def test_with_skew_they_differ() -> None:
    spread = [np.ptp([LABELS[part].mean() for part in split(label_skew=skew)]) for skew in (0.0, 1.0)]
    assert spread[1] > 0.8 > spread[0]


def test_fewer_rows_than_sites_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigurationError, match="3 private patients are too few for 4 sites"):
        partition_rows(LABELS[:3], weights=SHARES, label_skew=0.0, seed=0)
