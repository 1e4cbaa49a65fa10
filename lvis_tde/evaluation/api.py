"""The one call: annotations and detections in, :class:`LVISResult` out."""

from __future__ import annotations

import copy
import logging
import os
import time
from typing import Any, Union

import numpy as np

from . import native
from .detections import Detections
from .ground_truth import GroundTruth, read_annotations, with_negatives
from .official import load_official
from .result import LVISResult, category_table, summarize
from .selection import check, check_masks, detection_rles, within_limits

logger = logging.getLogger(__name__)

Annotations = Union[str, "os.PathLike[str]", dict, GroundTruth]
Results = Union[str, "os.PathLike[str]", list, Detections]


def evaluate_lvis(
    annotations: Annotations,
    detections: Results,
    iou_type: str = "segm",
    max_dets: int = 300,
    engine: str = "native",
    *,
    per_category: int | None = None,
    mask_area: bool | None = None,
) -> LVISResult:
    """Evaluate detections by the rules of LVIS (Gupta et al. 2019).

    Args:
        annotations: path or content of an annotation file in LVIS format, the name of a registered
            data set, or (engine ``native`` only) a :class:`GroundTruth`. Never modified. With
            ``"exhaustive": true`` beside "images" every category was looked for in every image, and
            no image lists the absent ones.
        detections: path or content of a result file, dicts with ``image_id, category_id, score``
            and ``bbox`` (x, y, width, height) or ``segmentation`` (RLE); or :class:`Detections`.
            Never modified.
        iou_type: ``bbox``, ``segm``, or ``boundary`` for the lesser of mask IoU and Boundary IoU
            (Cheng et al. 2021).
        max_dets: most detections per image over all categories, by score, >= 1; -1 for no limit.
        engine: ``native``, or ``lvis`` for the official package, which gives the same numbers.
        per_category: most detections per category over all images, chosen before any other rule but
            ``max_dets``. AP_fixed (Dave et al. 2021) is ``max_dets=-1, per_category=10000``.
        mask_area: in mask evaluation the mask decides whether a detection is small, medium or
            large, even if it has a box. Detectron2 does so; ``lvis`` itself takes the box. By
            default True for :class:`Detections` of Detectron2's evaluator, else False.

    Returns:
        Metrics in percent and a table by category.

    Raises:
        ValueError: an unknown engine or IoU type, or an input that would give a wrong number:
            scores or boxes that are not finite, masks that are none or of another size than the
            image, unknown ids, annotation id 0, missing keys.
    """
    if engine not in ("native", "lvis"):
        raise ValueError(f"engine must be 'native' or 'lvis', got {engine!r}")
    types = ("bbox", "segm", "boundary")[: 3 if engine == "native" else 2]
    if iou_type not in types:
        raise ValueError(f"engine {engine!r} evaluates {types}, got iou_type={iou_type!r}")
    if engine == "lvis" and isinstance(annotations, GroundTruth):
        raise ValueError("engine 'lvis' needs the annotations' path or content, not a GroundTruth")
    check_max_dets(max_dets)
    if per_category is not None and per_category < 1:
        raise ValueError(
            f"per_category must be at least 1, or None for no limit, got {per_category}"
        )

    start = time.process_time()
    content: Any = annotations
    if engine == "lvis":
        content = read_annotations(content)
    truth = content if isinstance(content, GroundTruth) else GroundTruth.load(content)
    if isinstance(detections, list):
        detections = Detections.from_results(detections)
    elif not isinstance(detections, Detections):
        detections = Detections.from_file(detections)
    if mask_area is not None:
        detections = copy.copy(detections)
        detections.mask_area = mask_area
    read = time.process_time() - start

    empty = not len(detections)
    if engine == "lvis" and not empty:
        result = _official(content, truth, detections, iou_type, max_dets, per_category)
    else:
        result = native.evaluate(truth, detections, iou_type, max_dets, per_category)
    metrics = summarize(result.precision, result.recall, [c["frequency"] for c in truth.categories])
    if empty:
        logger.warning("No detections: every metric is zero.")
        metrics = dict.fromkeys(metrics, 0.0)
    table = category_table(
        truth.categories, result.precision, result.recall, result.num_gt, result.num_dt
    )
    return LVISResult(metrics, table, iou_type, engine, {"read": read, **result.timings})


def check_max_dets(max_dets: int) -> None:
    """
    Raises:
        ValueError: if it is neither a limit of detections per image nor -1 for none.
    """
    if max_dets != -1 and max_dets < 1:
        raise ValueError(
            f"max_dets={max_dets} (--max-dets, TEST.DETECTIONS_PER_IMAGE) leaves no detection: it "
            "must be at least 1, or -1 for no limit"
        )


def _official(
    annotations: dict[str, Any],
    truth: GroundTruth,
    detections: Detections,
    iou_type: str,
    max_dets: int,
    per_category: int | None,
) -> native.Evaluation:
    official: Any = load_official()

    class FromMemory(official.LVIS):
        def _load_json(self, source):
            # LVISEval writes into the annotations it is given.
            return copy.deepcopy(source)

    start = time.process_time()
    images, labels = check(truth, detections, iou_type)
    if iou_type != "bbox":
        check_masks(detections, np.arange(len(detections)), truth, images)
        other = np.array(sorted(detections.others), dtype=np.int64)
        detection_rles(detections, other, truth, images[other])  # which checks them
    results = list(detections.results(boxes=iou_type == "bbox" or not detections.mask_area))
    if per_category is not None:
        keep = within_limits(images, labels, detections.scores, max_dets, per_category)
        results, max_dets = [r for r, k in zip(results, keep.tolist()) if k], -1
    lvis_gt = FromMemory(with_negatives(annotations))
    evaluation = official.LVISEval(
        lvis_gt, official.LVISResults(lvis_gt, results, max_dets=max_dets), iou_type
    )
    evaluation.evaluate()
    evaluation.accumulate()
    position = {i: n for n, i in enumerate(truth.category_ids)}
    num_gt, num_dt = np.zeros(len(position), int), np.zeros(len(position), int)
    for (_, category), cell in evaluation._gts.items():
        num_gt[position[category]] += sum(not a["ignore"] and a["area"] <= 1e10 for a in cell)
    for (_, category), cell in evaluation._dts.items():
        num_dt[position[category]] += len(cell)
    return native.Evaluation(
        evaluation.eval["precision"],
        evaluation.eval["recall"],
        num_gt,
        num_dt,
        {"total": time.process_time() - start},
    )
