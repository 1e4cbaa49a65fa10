"""Intervals by resampling the test images (Efron's bootstrap, percentiles).

Images are drawn within each class: how many test images a class has was decided by whoever made the
set, so it is the same in every resample. A class of one test image adds no width. The intervals say
what other test images would have given, not what another training would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

__all__ = ["percentiles", "resamples", "wilson"]

_NORMAL = 1.959964


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


def wilson(right: float, number: int) -> tuple[float, float]:
    """The 95 % interval of one class's accuracy (Wilson 1927), in percent.

    What resamples of one class approximate has this closed form, which they fail where it matters:
    of a class of five test images that are all right, each resample is all right, too.

    Args:
        right: images that are right.
        number: images; 0 gives NaN.
    """
    if not number:
        return math.nan, math.nan
    squared = _NORMAL**2
    middle = right + squared / 2
    half = _NORMAL * math.sqrt(right * (number - right) / number + squared / 4)
    low, high = (100 * (middle + side) / (number + squared) for side in (-half, half))
    return max(low, 0.0), min(high, 100.0)
