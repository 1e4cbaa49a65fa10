"""What an evaluation returns: the thirteen LVIS metrics and a table with one row per category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

AREA_NAMES = ("all", "small", "medium", "large")
FREQUENCIES = ("r", "c", "f")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)


@dataclass
class Resamples:
    """Metrics of each of B resamples of the images, of which intervals are made.

    Attributes:
        seed: of the draws.
        num_images: that were drawn from.
        metrics: AP, AP50, AP75, APr, APc and APf to (B,) percent; NaN where undefined.
        per_category: (B, C) AP, likewise.
        shown: of each metric the number of images that show what it is about.
        of_category: (C,) likewise of each category.
    """

    seed: int
    num_images: int
    metrics: dict[str, np.ndarray]
    per_category: np.ndarray
    shown: dict[str, int]
    of_category: np.ndarray


@dataclass
class LVISResult:
    """Result of :func:`lvis_tde.evaluation.evaluate_lvis`.

    Attributes:
        metrics: AP AP50 AP75 APs APm APl APr APc APf AR@300 ARs@300 ARm@300 ARl@300, in percent. A
            metric without any ground truth is -100, which is -1 in ``lvis``. The AR keys say 300
            whatever the limit was, as those of ``lvis`` do.
        per_category: one dict per category, in ascending order of id: ``id, name, frequency,
            image_count, AP, AP50, AR`` (percent, NaN without ground truth), ``num_gt`` (ground
            truths to be found) and ``num_dt`` (detections that count: after the limits and the
            federated rule). After a bootstrap also ``interval``, that of AP.
        iou_type: ``bbox``, ``segm`` or ``boundary``.
        engine: ``native`` or ``lvis``.
        timings: CPU seconds of the stages.
        intervals: of AP, AP50, AP75, APr, APc and APf the (low, high) in percent between which 95 %
            of a bootstrap over images lie; NaN without ground truth. Empty without a bootstrap.
        resamples: of the bootstrap, for :func:`lvis_tde.evaluation.compare_resampled`.
    """

    metrics: dict[str, float]
    per_category: list[dict[str, Any]]
    iou_type: str
    engine: str
    timings: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    resamples: Resamples | None = field(default=None, repr=False, compare=False)


@dataclass
class LVISComparison:
    """Result of :func:`lvis_tde.evaluation.compare_lvis`, of AP, AP50, AP75, APr, APc and APf.

    Attributes:
        difference: B minus A, percent; NaN without ground truth.
        intervals: (low, high) between which 95 % of a paired bootstrap over images lie.
        wins: share of the resamples in which B is above A, [0, 1].
        per_category: one dict per category: ``id, name, difference, interval, wins`` of AP.
        a, b: the two results, with their own intervals.
    """

    difference: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    wins: dict[str, float]
    per_category: list[dict[str, Any]]
    a: LVISResult
    b: LVISResult


def percent(value: float, digits: int = 1) -> str:
    """A metric in print; "n/a" for one that is undefined, which is negative here, NaN in COCO's."""
    return f"{value:.{digits}f}" if value >= 0 else "n/a"


def _mean(values: np.ndarray) -> float:
    # The selection and the order of the sum are those of LVISEval._summarize.
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else -1.0


def summarize(
    precision: np.ndarray, recall: np.ndarray, frequencies: Sequence[str]
) -> dict[str, float]:
    """The thirteen metrics of ``lvis``, in percent.

    Args:
        precision: (10, 101, C, 4) float64, [0, 1] or -1 where a category has no ground truth; IoU
            thresholds, recall thresholds, categories, areas.
        recall: (10, C, 4) float64, likewise.
        frequencies: C letters out of r, c, f.

    Returns:
        Metric name to percent.
    """
    groups = {f: [i for i, name in enumerate(frequencies) if name == f] for f in FREQUENCIES}
    out = {"AP": _mean(precision[..., 0])}
    for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
        out[name] = _mean(precision[np.where(threshold == IOU_THRESHOLDS)[0], :, :, 0])
    for area in (1, 2, 3):
        out[f"AP{AREA_NAMES[area][0]}"] = _mean(precision[..., area])
    for frequency in FREQUENCIES:
        out[f"AP{frequency}"] = _mean(precision[:, :, groups[frequency], 0])
    out["AR@300"] = _mean(recall[..., 0])
    for area in (1, 2, 3):
        out[f"AR{AREA_NAMES[area][0]}@300"] = _mean(recall[..., area])
    return {key: value * 100 for key, value in out.items()}


def category_table(
    categories: Sequence[dict[str, Any]],
    precision: np.ndarray,
    recall: np.ndarray,
    num_gt: np.ndarray,
    num_dt: np.ndarray,
) -> list[dict[str, Any]]:
    """One row per category, see :class:`LVISResult`.

    Args:
        categories: C category dicts of the annotation file, in the order of the arrays.
        precision: (10, 101, C, 4), as in :func:`summarize`.
        recall: (10, C, 4), as in :func:`summarize`.
        num_gt: (C,) integer.
        num_dt: (C,) integer.

    Returns:
        C rows.
    """
    # Within a category the entries of one area are all -1 or all valid.
    ap, ap50 = precision[..., 0].mean(axis=(0, 1)), precision[0, :, :, 0].mean(axis=0)
    ar = recall[..., 0].mean(axis=0)
    percent = np.where(ar > -1, np.stack([ap, ap50, ar]) * 100, np.nan).tolist()
    return [
        {
            "id": category["id"],
            "name": category.get("name", str(category["id"])),
            "frequency": category["frequency"],
            "image_count": category.get("image_count"),
            "AP": percent[0][i],
            "AP50": percent[1][i],
            "AR": percent[2][i],
            "num_gt": int(num_gt[i]),
            "num_dt": int(num_dt[i]),
        }
        for i, category in enumerate(categories)
    ]
