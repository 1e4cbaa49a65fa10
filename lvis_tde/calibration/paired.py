"""Intervals of settings of one model, and of what each gains over the first, on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.evaluation import DatasetEvaluator

from ..evaluation import ClassificationEvaluator, LVISEvaluator, compare_resampled, compare_top1
from .image_sweep import TASK
from .posthoc_table import gains_of

__all__ = ["PairedIntervals"]


class PairedIntervals:
    """Bootstraps of evaluations that come one after the other.

    Attributes:
        remark: why there are none, in words for the user; "" where there are.
    """

    def __init__(self, evaluator: DatasetEvaluator, bootstrap: int):
        """
        Args:
            evaluator: that evaluates; it is told to bootstrap where it can.
            bootstrap: resamples; 0 for no intervals.
        """
        self._bootstrap, self.remark = bootstrap, ""
        self._first: Mapping[str, Any] = {}
        if isinstance(evaluator, LVISEvaluator):
            evaluator.for_report(bootstrap)
        elif bootstrap and not isinstance(evaluator, ClassificationEvaluator):
            self.remark = (
                f"No intervals: {type(evaluator).__name__} evaluates the set, whose metrics are "
                "not resampled here. Sets given with --test-data, or registered by "
                "register_long_tailed, have them, COCO's format included."
            )

    def of(self, evaluator: DatasetEvaluator) -> dict[str, dict[str, Any]]:
        """Of one that has just evaluated; the first is what the others are compared with.

        Returns:
            "intervals", task to metric to (low, high), and "gains", task to
            :func:`~.posthoc_table.gains_of`; both are empty without a bootstrap.
        """
        found: Mapping[str, Any] = {}
        compare: Any = compare_resampled
        if isinstance(evaluator, LVISEvaluator):
            found = {k: one for k, one in evaluator.lvis_results.items() if one.intervals}
        elif self._bootstrap and isinstance(evaluator, ClassificationEvaluator):
            assert evaluator.predictions is not None
            found = {TASK: evaluator.predictions.evaluate(bootstrap=self._bootstrap)}
            compare = self._compare_top1
        first = self._first = self._first or found
        return {
            "intervals": {task: one.intervals for task, one in found.items()},
            "gains": {task: gains_of(compare(first[task], one)) for task, one in found.items()},
        }

    def _compare_top1(self, before, after):
        return compare_top1(before, after, bootstrap=self._bootstrap)
