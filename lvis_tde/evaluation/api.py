"""The one call: annotations and detections in, :class:`LVISResult` out."""

import copy
import json
import logging
import os
import time
from typing import Any, Dict, List, Union

import numpy as np

from .official import load_official
from .result import LVISResult, category_table, summarize

logger = logging.getLogger(__name__)

Annotations = Union[str, "os.PathLike[str]", Dict[str, Any]]


def evaluate_lvis(
    annotations: Annotations,
    detections: Union[str, "os.PathLike[str]", List[Dict[str, Any]]],
    iou_type: str = "segm",
    max_dets: int = 300,
    engine: str = "lvis",
) -> LVISResult:
    """Evaluate detections by the rules of LVIS (Gupta et al. 2019).

    Args:
        annotations: path or content of an annotation file in LVIS format. Never modified.
        detections: path of a result file or its content: dicts with ``image_id, category_id, score`` and
            ``bbox`` (x, y, width, height) or ``segmentation`` (RLE). Never modified.
        iou_type: ``bbox`` or ``segm``.
        max_dets: most detections an image, by score; -1 for no limit.
        engine: ``lvis``, the official package.

    Returns:
        Metrics in percent and a table by category.

    Raises:
        ValueError: an unknown engine or IoU type.
    """
    if engine != "lvis":
        raise ValueError(f"engine must be 'lvis', got {engine!r}")
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"engine 'lvis' evaluates 'bbox' and 'segm', got {iou_type!r}")
    return _official(annotations, detections, iou_type, max_dets)


def _official(annotations, detections, iou_type, max_dets) -> LVISResult:
    official = load_official()

    class FromMemory(official.LVIS):
        def _load_json(self, source):
            # LVISEval writes into the annotations it is given.
            return (
                copy.deepcopy(source)
                if isinstance(source, dict)
                else super()._load_json(os.fspath(source))
            )

    start = time.process_time()
    lvis_gt = FromMemory(annotations)
    if isinstance(detections, (str, os.PathLike)):
        with open(detections) as f:
            detections = json.load(f)
    else:
        detections = copy.deepcopy(detections)
    cats = [lvis_gt.cats[i] for i in sorted(lvis_gt.cats)]
    frequencies = [c["frequency"] for c in cats]
    if not detections or max_dets == 0:
        logger.warning("No detections: every metric is zero.")
        table = category_table(
            cats,
            np.zeros((10, 101, len(cats), 4)),
            np.zeros((10, len(cats), 4)),
            np.zeros(len(cats)),
            np.zeros(len(cats)),
        )
        metrics = dict.fromkeys(
            summarize(np.zeros((10, 101, 1, 4)), np.zeros((10, 1, 4)), "r"), 0.0
        )
        return LVISResult(metrics, table, iou_type, "lvis")
    evaluation = official.LVISEval(
        lvis_gt, official.LVISResults(lvis_gt, detections, max_dets=max_dets), iou_type
    )
    evaluation.run()
    metrics = {k: float(v) * 100 for k, v in evaluation.get_results().items()}
    gt, dt = np.zeros(len(cats), int), np.zeros(len(cats), int)
    index = {c["id"]: i for i, c in enumerate(cats)}
    for counts, cells in ((gt, evaluation._gts), (dt, evaluation._dts)):
        for (_, category_id), cell in cells.items():
            counts[index[category_id]] += sum(not ann.get("ignore", 0) for ann in cell)
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    table = category_table(cats, precision, recall, gt, dt)
    del frequencies
    return LVISResult(metrics, table, iou_type, "lvis", {"total": time.process_time() - start})
