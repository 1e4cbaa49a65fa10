"""Two detectors on the same images: how much better one is, and how sure that is."""

from __future__ import annotations

import math

import numpy as np

from . import native
from .api import (
    Annotations,
    Results,
    add_intervals,
    bootstrap_samples,
    frequencies,
    make_result,
    read_columns,
)
from .bootstrap import BOOTSTRAPPED, images_shown, interval, intervals
from .ground_truth import GroundTruth
from .result import LVISComparison


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
    sides = [
        native.match_all(truth, read_columns(side, mask_area), iou_type, max_dets, per_category)
        for side in (a, b)
    ]
    samples = bootstrap_samples(sides, truth, bootstrap, seed)
    results = [
        make_result(truth, native.evaluate(side), iou_type, "native", 0.0, not len(side.scores))
        for side in sides
    ]
    shown, of_category = images_shown(sides[0], frequencies(truth))
    for result, sample in zip(results, samples):
        add_intervals(result, sample, shown, of_category)
    gained = {name: samples[1][name] - samples[0][name] for name in samples[0]}
    rows = []
    for index, (one, other) in enumerate(zip(*(result.per_category for result in results))):
        gain = gained["per_category"][:, index]
        rows.append(
            {
                "id": one["id"],
                "name": one["name"],
                "difference": other["AP"] - one["AP"],
                "interval": interval(gain, None, int(of_category[index])),
                "wins": _wins(gain),
            }
        )
    difference = {
        name: (
            results[1].metrics[name] - results[0].metrics[name]
            # -100 on both sides is what is undefined.
            if results[0].metrics[name] >= 0
            else math.nan
        )
        for name in BOOTSTRAPPED
    }
    wins = {name: _wins(gained[name]) for name in BOOTSTRAPPED}
    return LVISComparison(difference, intervals(gained, None, shown), wins, rows, *results)


def _wins(gained: np.ndarray) -> float:
    defined = gained[~np.isnan(gained)]
    return float((defined > 0).mean()) if len(defined) else math.nan
