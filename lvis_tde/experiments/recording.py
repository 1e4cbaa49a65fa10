"""An evaluator that also returns what pictures are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..evaluation import LVISEvaluator

__all__ = ["RecordingEvaluator", "class_ap"]


class RecordingEvaluator(LVISEvaluator):
    """Each task's results have two more entries, so that no second pass over the images is needed.

    ``detections`` are the :class:`~lvis_tde.evaluation.Detections` that were evaluated and
    ``per_category`` the rows of the :class:`~lvis_tde.evaluation.LVISResult`.
    """

    def evaluate(self) -> dict[str, dict[str, Any]] | None:
        results = super().evaluate()
        detections = self.detections() if results else None
        for task, result in (self.lvis_results if results else {}).items():
            results[task].update(detections=detections, per_category=result.per_category)
        return results


def class_ap(results: Mapping[str, Any]) -> dict[str, float | None]:
    """AP of each class, as ``results.json`` has it.

    Args:
        results: of a :class:`RecordingEvaluator` for one task.

    Returns:
        Name of the class to AP in percent, None for a class that the images do not show.
    """
    rows = results["per_category"]
    return {r["name"]: None if math.isnan(r["AP"]) else round(r["AP"], 2) for r in rows}
