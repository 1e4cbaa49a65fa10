"""Evaluation of classifiers inside Detectron2."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from ..data.frequency import CLASSIFICATION_BOUNDS
from .predictions import Predictions
from .top1 import Top1Result

logger = logging.getLogger(__name__)

__all__ = ["RESULT_FILE", "ClassificationEvaluator"]

RESULT_FILE = "predictions.npz"
_RESAMPLES = 1000  # of the report


class ClassificationEvaluator(DatasetEvaluator):
    """Top-1 accuracy of a classifier, see :mod:`lvis_tde.evaluation.top1`.

    Args:
        dataset_name: registered dataset; its metadata must have ``thing_classes`` and
            ``class_image_count``, the training images of each class, and may have the ``bounds`` of
            the groups.
        output_dir: folder for ``predictions.npz``, or None.
        shifted: report the accuracies on shifted test sets, too.
        bootstrap: resamples for intervals; 0 for none. The report has them anyway.
        distributed: gather the predictions of all processes on the main one and evaluate there.

    Attributes:
        predictions: after ``evaluate`` on the main process, all of them.
        result: likewise, their :class:`~lvis_tde.evaluation.top1.Top1Result`.

    Raises:
        ValueError: the metadata lack something.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        shifted: bool = True,
        *,
        bootstrap: int = 0,
        distributed: bool = True,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        for key in ("thing_classes", "class_image_count"):
            if metadata.get(key) is None:
                raise ValueError(
                    f"Dataset {dataset_name!r} has no {key} in its metadata: register it as "
                    "lvis_tde.data.classification does."
                )
        self._dataset_name = dataset_name
        self._classes = list(metadata.thing_classes)
        counts = {entry["id"]: entry["image_count"] for entry in metadata.class_image_count}
        self._counts = np.array([counts.get(i, 0) for i in range(len(self._classes))])
        self._bounds = tuple(metadata.get("bounds", CLASSIFICATION_BOUNDS))
        self._output_dir, self._shifted = output_dir, shifted
        self._bootstrap, self._distributed = bootstrap, distributed
        self._of_report = _RESAMPLES
        self.reset()

    def fresh_copy(self) -> ClassificationEvaluator:
        """An evaluator with the same options and no predictions.

        For evaluating several settings in one pass.

        Returns:
            As if made and reset anew; independent of this one, which stays as it is.
        """
        kept = [self._parts, self.predictions, self.result]
        other = copy.deepcopy(self, {id(item): item for item in kept if item is not None})
        other.reset()
        return other

    def reset(self) -> None:
        """Forget all predictions."""
        self._parts: list[tuple[np.ndarray, ...]] = []
        self.predictions: Predictions | None = None
        self.result: Top1Result | None = None

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take the predictions of some images.

        Args:
            inputs: dict with ``image_id`` (N,) and ``class`` (N,), or a list of N dicts with both.
            outputs: dict with ``probabilities`` (N, C), or a list of N dicts with (C,).

        Raises:
            ValueError: images without a class.
        """
        if not inputs:
            return
        ids, labels = (_column(inputs, key) for key in ("image_id", "class"))
        probabilities = _column(outputs, "probabilities")
        self._parts.append((ids.astype(np.int64), labels.astype(np.int64), probabilities))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Evaluate what was processed since ``reset``.

        Returns:
            ``{"classification": {"top1": ...}}`` in percent on the main process, None on others.

        Raises:
            ValueError: NaN or other numbers that are not probabilities, or another class list.
        """
        parts = self._parts
        if self._distributed:
            comm.synchronize()
            ranks = comm.gather(parts, dst=0)
            if not comm.is_main_process():
                return None
            parts = [part for rank in ranks for part in rank]
        if not parts:
            logger.warning("Did not receive valid predictions.")
            return {}
        self.predictions = Predictions.gather(
            parts, counts=self._counts, classes=self._classes, bounds=self._bounds
        )
        if self._output_dir:
            path = os.path.join(self._output_dir, RESULT_FILE)
            logger.info("Saving results to %s", path)
            self.predictions.save(path)
        self.result = self.predictions.evaluate(bootstrap=self._bootstrap)
        logger.info("Classification:\n%s", create_small_table(self.result.metrics))
        shifted = self.result.shifted if self._shifted else {}
        if shifted:
            logger.info("Shifted test sets, top-1:\n%s", create_small_table(shifted))
        return {"classification": {**self.result.metrics, **shifted}}

    def for_report(self, resamples: int = -1) -> None:
        """Resamples for the report's intervals, unless ``evaluate`` gives some; -1 for 1000."""
        self._of_report = _RESAMPLES if resamples < 0 else resamples

    def write_report(self, output_dir: str, model: str = "model") -> list[Path]:
        """Write a page and pictures about what ``evaluate`` evaluated, on the main process.

        Args:
            output_dir: folder.
            model: its name, for the title.

        Returns:
            The page, or none where there is nothing to tell.
        """
        # Matplotlib is needed here only.
        from .report.top1 import write_top1_report

        if self.predictions is None:
            return []
        result = self.predictions.evaluate(bootstrap=self._bootstrap or self._of_report)
        return [write_top1_report(output_dir, {f"{model} on {self._dataset_name}": result})]


def _column(batch: Mapping[str, Any] | Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """One key of a batch, whichever form the batch has."""
    rows = [batch] if isinstance(batch, Mapping) else batch
    if any(key not in row for row in rows):
        raise ValueError(f"a batch without {key!r} cannot be evaluated, it has {list(rows[0])}")
    values = [torch.as_tensor(row[key]).detach().cpu() for row in rows]
    column = values[0] if isinstance(batch, Mapping) else torch.stack(values)
    # NumPy has no bfloat16, and half precision widens without loss.
    return (column.float() if column.is_floating_point() else column).numpy()
