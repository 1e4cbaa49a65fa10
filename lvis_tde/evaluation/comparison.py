"""Two detectors on the same images: how much better one is, and how sure that is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .api import Annotations, Results, evaluate_lvis
from .bootstrap import BOOTSTRAPPED, interval, intervals
from .ground_truth import GroundTruth
from .result import LVISComparison, LVISResult, Resamples


def compare_lvis(
    annotations: Annotations,
    a: Results,
    b: Results,
    iou_type: str = "segm",
    max_dets: int = 300,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    per_category: int | None = None,
    mask_area: bool | None = None,
) -> LVISComparison:
    """How much better B is than A, and how sure that is: a bootstrap over the same images for both.

    Args:
        annotations: see :func:`evaluate_lvis`.
        a, b: two sets of detections on the same images, likewise.
        iou_type, max_dets, per_category, mask_area: likewise.
        bootstrap: resamples of the images, > 0.
        seed: of the bootstrap.

    Returns:
        LVISComparison: B minus A.

    Raises:
        ValueError: see :func:`evaluate_lvis`.
    """
    if bootstrap < 1:
        raise ValueError(f"bootstrap={bootstrap} must be a number of resamples, at least 1")
    truth = annotations if isinstance(annotations, GroundTruth) else GroundTruth.load(annotations)
    options: Any = {"per_category": per_category, "mask_area": mask_area}
    return compare_resampled(
        *(
            evaluate_lvis(
                truth, side, iou_type, max_dets, bootstrap=bootstrap, seed=seed, **options
            )
            for side in (a, b)
        )
    )


def compare_resampled(a: LVISResult, b: LVISResult) -> LVISComparison:
    """:func:`compare_lvis` of results that have their bootstrap, without evaluating again.

    Args:
        a, b: of :func:`evaluate_lvis` on the same annotations, with the same ``bootstrap`` and
            ``seed``, which draw the same images for both.

    Returns:
        LVISComparison: B minus A.

    Raises:
        ValueError: results without a bootstrap, of different draws, or of different IoU types.
    """
    first, second = a.resamples, b.resamples
    if first is None or second is None:
        raise ValueError("a comparison needs results with bootstrap=N, N at least 1")
    if a.iou_type != b.iou_type:
        raise ValueError(f"one result is of {a.iou_type}, the other of {b.iou_type}")
    if _draws(first) != _draws(second):
        raise ValueError(
            f"the results are of different draws (seed, images, resamples, categories): "
            f"{_draws(first)} and {_draws(second)}: evaluate both with one bootstrap and seed"
        )
    gained = {name: second.metrics[name] - first.metrics[name] for name in BOOTSTRAPPED}
    rows = []
    for index, (one, other) in enumerate(zip(a.per_category, b.per_category)):
        gain = second.per_category[:, index] - first.per_category[:, index]
        apart = other["AP"] - one["AP"]
        rows.append(
            {
                "id": one["id"],
                "name": one["name"],
                "difference": apart,
                "interval": interval(gain, apart, int(first.of_category[index])),
                "wins": _wins(gain),
            }
        )
    difference = {
        # -100 on both sides is what is undefined.
        name: b.metrics[name] - a.metrics[name] if a.metrics[name] >= 0 else math.nan
        for name in BOOTSTRAPPED
    }
    wins = {name: _wins(gained[name]) for name in BOOTSTRAPPED}
    return LVISComparison(difference, intervals(gained, difference, first.shown), wins, rows, a, b)


def _draws(one: Resamples) -> tuple[int, ...]:
    return one.seed, one.num_images, *one.per_category.shape


def _wins(gained: np.ndarray) -> float:
    defined = gained[~np.isnan(gained)]
    return float((defined > 0).mean()) if len(defined) else math.nan
