"""Two classifiers on the same test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import complain
from .resampling import percentiles, resamples
from .shifts import SHIFTS
from .top1 import METRICS, Top1Result, class_weights

__all__ = ["Top1Comparison", "compare_top1"]


@dataclass
class Top1Comparison:
    """Result of :func:`compare_top1`, b minus a.

    Attributes:
        difference: of every metric but ``ece``, and of every shifted accuracy, in points.
        intervals: their 95 % intervals.
        wins: share of resamples, 0..1, in which b is better; equals count half.
        per_class: one dict per class: ``id, name, difference, interval, wins`` of its accuracy;
            NaN without test images.
        gained: images that b has right and a wrong.
        lost: images that a has right and b wrong.
    """

    difference: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    wins: dict[str, float]
    per_class: list[dict[str, Any]]
    gained: int
    lost: int


def compare_top1(
    a: Top1Result, b: Top1Result, *, bootstrap: int = 1000, seed: int = 0
) -> Top1Comparison:
    """How much better b is than a, both on the same images.

    Both are resampled together, so what is hard for both does not widen the intervals.

    Args:
        a: one result.
        b: another, on the same images with the same labels and groups, in any order.
        bootstrap: number of resamples, at least 1.
        seed: of the resamples.

    Returns:
        Differences in points.

    Raises:
        ValueError: other images, labels, classes, training images or bounds, or no resamples.
    """
    if bootstrap < 1:
        raise ValueError(f"bootstrap={bootstrap} must be a number of resamples, at least 1")
    if len(a.per_class) != len(b.per_class):
        raise ValueError(
            f"one run has {len(a.per_class)} classes, the other {len(b.per_class)}: evaluate both "
            "with the same class list"
        )
    first, second = np.argsort(a.image_ids), np.argsort(b.image_ids)
    ids, labels = a.image_ids[first], a.labels[first]
    if not np.array_equal(ids, b.image_ids[second]):
        odd = np.setxor1d(ids, b.image_ids).tolist()
        complain(odd, "images that only one run has", "evaluate both on the same test set")
        raise ValueError("image ids are not unique: give each image one of its own")
    complain(
        ids[labels != b.labels[second]].tolist(),
        "images with another label in the other run",
        "evaluate both on the same test set",
    )
    for key in ("image_count", "frequency"):
        complain(
            [r["id"] for r, s in zip(a.per_class, b.per_class) if r[key] != s[key]],
            f"classes with another {key} in the other run",
            "evaluate both with the same training images and bounds",
        )
    counts = np.array([row["image_count"] for row in a.per_class])
    sizes = np.bincount(labels, minlength=len(counts))
    table = class_weights(sizes, counts, [row["frequency"] for row in a.per_class])
    change = b.correct[second] - a.correct[first]

    def of_classes(images: np.ndarray) -> np.ndarray:
        return np.bincount(labels[images], change[images], len(counts))

    keys = [*METRICS[:-1], *SHIFTS]
    gained = np.array([of_classes(images) for images in resamples(labels, bootstrap, seed)])
    whole, draws = of_classes(np.arange(len(labels))), 100 * (gained @ table.T)
    with np.errstate(invalid="ignore"):
        rows = _rows(b.per_class, 100 * whole / sizes, 100 * gained / sizes)
    return Top1Comparison(
        dict(zip(keys, (100 * (table @ whole)).tolist())),
        dict(zip(keys, percentiles(draws))),
        dict(zip(keys, _wins(draws))),
        rows,
        gained=int((change > 0).sum()),
        lost=int((change < 0).sum()),
    )


def _rows(
    classes: Sequence[Mapping[str, Any]], difference: np.ndarray, draws: np.ndarray
) -> list[dict[str, Any]]:
    found = zip(classes, difference.tolist(), percentiles(draws), _wins(draws))
    return [
        {"id": one["id"], "name": one["name"], "difference": gain, "interval": ends, "wins": share}
        for one, gain, ends, share in found
    ]


def _wins(draws: np.ndarray) -> list[float]:
    return (0.5 + 0.5 * np.sign(draws)).mean(axis=0).tolist()
