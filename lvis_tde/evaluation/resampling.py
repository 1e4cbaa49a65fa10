"""Intervals by resampling the test images (Efron's bootstrap, percentiles).

Images are drawn within each class: how many test images a class has was decided by whoever made the
set, so it is the same in every resample. A class of one test image adds no width. The intervals say
what other test images would have given, not what another training would.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["percentiles", "resamples"]


def resamples(labels: np.ndarray, number: int, seed: int) -> Iterator[np.ndarray]:
    """Draws of images with replacement within each class.

    Args:
        labels: (N,) int64, >= 0.
        number: of draws.
        seed: the same seed gives the same draws.

    Yields:
        (N,) positions in ``labels``; each class as often as there.
    """
    rng, order = np.random.default_rng(seed), np.argsort(labels, kind="stable")
    _, start, size = np.unique(labels[order], return_index=True, return_counts=True)
    start, size = np.repeat(start, size), np.repeat(size, size)
    for _ in range(number):
        yield order[start + (rng.random(len(labels)) * size).astype(np.int64)]


def percentiles(draws: np.ndarray) -> list[tuple[float, float]]:
    """The 95 % interval of each column.

    Args:
        draws: (B, K) float64.

    Returns:
        K pairs.
    """
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return list(zip(low.tolist(), high.tolist()))
