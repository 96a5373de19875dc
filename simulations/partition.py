"""Which private row belongs to which simulated site: unequal sizes, skewed labels, fixed by the seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigurationError


def partition_rows(
    labels: NDArray[np.int64], *, weights: Sequence[float], label_skew: float, seed: int
) -> list[NDArray[np.int64]]:
    """Split row indices over sites.

    Sizes are the weights' shares of the rows, rounded by largest remainder, and at least one row each. A fraction
    `label_skew` of the rows, drawn at random, is dealt out sorted by label to the sites in a random order, so that each
    gets runs of one label; the others are dealt out at random. Every row goes to exactly one site.

    Args:
        labels: Shape (n,), class index of each unit that is dealt out.
        weights: One a site, summing to 1.
        seed: Fixes the split and nothing else.

    Returns:
        For each site its row indices, ascending.

    Raises:
        ConfigurationError: If there are fewer rows than sites.
    """
    if len(labels) < len(weights):
        raise ConfigurationError(f"{len(labels)} private patients are too few for {len(weights)} sites")
    random = np.random.default_rng([seed, 0xFED])
    sizes = [1 + size for size in _sizes(len(labels) - len(weights), weights)]
    shuffled = random.permutation(len(labels))
    skewed_sizes = [
        min(size, part) for size, part in zip(sizes, _sizes(round(label_skew * len(labels)), weights), strict=True)
    ]
    skewed = sum(skewed_sizes)
    by_label = shuffled[:skewed][np.argsort(labels[shuffled[:skewed]], kind="stable")]
    rest = shuffled[skewed:]
    order = random.permutation(len(sizes))
    parts: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(sizes)
    skewed_at = rest_at = 0
    for site in order:
        own_skewed = by_label[skewed_at : skewed_at + skewed_sizes[site]]
        own_rest = rest[rest_at : rest_at + sizes[site] - skewed_sizes[site]]
        skewed_at += len(own_skewed)
        rest_at += len(own_rest)
        parts[site] = np.sort(np.concatenate([own_skewed, own_rest]))
    return parts


def _sizes(total: int, weights: Sequence[float]) -> list[int]:
    exact = [total * weight for weight in weights]
    sizes = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda site: (sizes[site] - exact[site], site))
    for site in by_remainder[: total - sum(sizes)]:
        sizes[site] += 1
    return sizes
