"""An evaluator that also returns what pictures are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from ..evaluation import LVISEvaluator, LVISResult

__all__ = ["METRICS", "RecordingEvaluator", "intervals_of", "report", "rounded"]

METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf")


class RecordingEvaluator(LVISEvaluator):
    """Each task's results have two more entries, so that no second pass over the images is needed.

    ``detections`` are the :class:`~lvis_tde.evaluation.Detections` that were evaluated and
    ``result`` is the :class:`~lvis_tde.evaluation.LVISResult`.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: str, *, bootstrap: int = 0) -> RecordingEvaluator:
        """As :func:`~lvis_tde.evaluation.build.build_evaluator` makes one.

        Args:
            cfg: for the number of detections per image.
            dataset: registered name, with ``evaluator_type`` "lvis".
            bootstrap: resamples for intervals.
        """
        most = cfg.TEST.DETECTIONS_PER_IMAGE
        return cls(dataset, max_dets_per_image=most, bootstrap=bootstrap)

    def evaluate(self) -> dict[str, dict[str, Any]] | None:
        results = super().evaluate()
        detections = self.detections() if results else None
        for task, result in (self.lvis_results if results else {}).items():
            results[task].update(detections=detections, result=result)
        return results


def rounded(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What ``results.json`` has of each task: :data:`METRICS`."""
    return {
        task: {name: round(float(values[name]), 4) for name in METRICS}
        for task, values in results.items()
    }


def intervals_of(result: LVISResult) -> dict[str, list[float]]:
    """What ``results.json`` has of the 95 % intervals: low and high."""
    return {name: [round(end, 4) for end in ends] for name, ends in result.intervals.items()}


def report(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What ``results.json`` has of evaluations.

    Args:
        runs: name of a run to results of a :class:`RecordingEvaluator`.

    Returns:
        ``{"runs": {run: {task: {metric: percent}}}, "intervals": {run: {task: {metric: [low,
        high]}}}, "image_count": {class: images}, "per_class": {run: {class: mask AP in
        percent}}}``; the AP is None for a class that the images do not show.
    """
    rows = {run: results["segm"]["result"].per_category for run, results in runs.items()}
    return {
        "runs": {run: rounded(results) for run, results in runs.items()},
        "intervals": {
            run: {task: intervals_of(values["result"]) for task, values in results.items()}
            for run, results in runs.items()
        },
        "image_count": {row["name"]: row["image_count"] for some in rows.values() for row in some},
        "per_class": {
            run: {r["name"]: None if math.isnan(r["AP"]) else round(r["AP"], 2) for r in some}
            for run, some in rows.items()
        },
    }
