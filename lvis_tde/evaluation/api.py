"""The one call: annotations and detections in, :class:`LVISResult` out."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Union

import numpy as np

from . import native
from .bootstrap import (
    Resampler,
    images_shown,
    interval,
    intervals,
    resampled,
)
from .detections import Detections
from .errors import complain
from .ground_truth import GroundTruth, read_annotations, with_negatives
from .official import load_official
from .result import LVISResult, Resamples, category_table, summarize
from .selection import check, check_masks, detection_rles, within_limits

logger = logging.getLogger(__name__)

_NUMBERS = (int, float, np.integer, np.floating, np.bool_)

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
    image_weights: Mapping[Any, float] | None = None,
    bootstrap: int = 0,
    seed: int = 0,
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
        image_weights: image id to a weight >= 0; 1 for an image that is not named. An image of
            weight 2 counts as if it were there twice, one of weight 0 as if it were not, but for
            the choice of ``per_category``, which knows no weights. Engine ``native`` only.
        bootstrap: resamples of the images for 95 % intervals, see
            :mod:`lvis_tde.evaluation.bootstrap`; 0 for none. Engine ``native`` only. With few
            images of a group its interval is wide, and no resample knows of categories that no
            image shows.
        seed: of the bootstrap.

    Returns:
        Metrics in percent and a table by category.

    Raises:
        ValueError: an unknown engine or IoU type, or an input that would give a wrong number:
            scores or boxes that are not finite, masks that are none or of another size than the
            image, unknown ids, annotation id 0, missing keys, a weight that is negative or not
            finite.
    """
    check_options(engine, bootstrap, per_category)
    if engine == "lvis" and image_weights is not None:
        raise ValueError("engine 'lvis' has no image_weights: use 'native'")
    check_tasks([iou_type], engine)
    if engine == "lvis" and isinstance(annotations, GroundTruth):
        raise ValueError("engine 'lvis' needs the annotations' path or content, not a GroundTruth")
    check_max_dets(max_dets)

    start = time.process_time()
    content: Any = annotations
    if engine == "lvis":
        content = read_annotations(content)
    truth = content if isinstance(content, GroundTruth) else GroundTruth.load(content)
    given = _read_columns(detections, mask_area)
    read = time.process_time() - start

    empty = not len(given)
    resamples = None
    if engine == "lvis" and not empty:
        found = _official(content, truth, given, iou_type, max_dets, per_category)
    else:
        matches = native.match_all(truth, given, iou_type, max_dets, per_category)
        weights = _weights(truth, image_weights)
        found = native.evaluate(matches, weights)
        if bootstrap:
            resamples = _resamples(matches, truth, bootstrap, seed, weights)
    result = _make_result(truth, found, iou_type, engine, read, empty)
    if resamples is not None:
        _add_intervals(result, resamples)
    return result


def _read_columns(detections: Results, mask_area: bool | None) -> Detections:
    if isinstance(detections, list):
        detections = Detections.from_results(detections)
    elif not isinstance(detections, Detections):
        detections = Detections.from_file(detections)
    if mask_area is not None:
        detections = copy.copy(detections)
        detections.mask_area = mask_area
    return detections


def _make_result(
    truth: GroundTruth,
    found: native.Evaluation,
    iou_type: str,
    engine: str,
    read: float,
    empty: bool,
) -> LVISResult:
    metrics = summarize(found.precision, found.recall, _frequencies(truth))
    if empty:
        logger.warning("No detections: every metric that has ground truth is zero.")
    table = category_table(
        truth.categories, found.precision, found.recall, found.num_gt, found.num_dt
    )
    return LVISResult(metrics, table, iou_type, engine, {"read": read, **found.timings})


def _weights(truth: GroundTruth, given: Mapping[Any, float] | None) -> np.ndarray | None:
    """(I,) float64.

    Raises:
        ValueError: if an image is unknown or its weight negative or not finite.
    """
    if given is None:
        return None
    place = {image: position for position, image in enumerate(truth.image_ids)}
    complain(
        [image for image in given if image not in place],
        "image_weights of unknown images",
        "name ids of the annotation file",
    )
    complain(
        [image for image, weight in given.items() if not _is_weight(weight)],
        "image_weights that are negative or not finite",
        "a weight is a number, at least 0",
    )
    weights = np.ones(len(place))
    for image, weight in given.items():
        weights[place[image]] = weight
    # Sums of larger ones overflow, smaller ones have fewer digits; by a power of two, exactly.
    exponent = int(np.frexp(weights.max(initial=0.0))[1])
    return np.ldexp(weights, -exponent) if abs(exponent) > 1000 else weights


def _is_weight(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and bool(0 <= value < math.inf)


def _resamples(
    matches: native.Matches,
    truth: GroundTruth,
    number: int,
    seed: int,
    weights: np.ndarray | None,
) -> Resamples:
    groups = _frequencies(truth)
    (found,) = resampled([Resampler(matches)], groups, number, seed, weights)
    per_category = found.pop("per_category")
    images = matches.num_images if weights is None else np.count_nonzero(weights)
    shown = images_shown(matches, groups, weights)
    return Resamples(seed, int(images), found, per_category, *shown)


def _frequencies(truth: GroundTruth) -> list[str]:
    return [category["frequency"] for category in truth.categories]


def _add_intervals(result: LVISResult, drawn: Resamples) -> None:
    result.resamples = drawn
    found = intervals(drawn.metrics, result.metrics, drawn.shown)
    result.intervals = {name: _within_percent(ends) for name, ends in found.items()}
    for row, values, images in zip(
        result.per_category, drawn.per_category.T, drawn.of_category.tolist()
    ):
        row["interval"] = _within_percent(interval(values, row["AP"], images))


def _within_percent(ends: tuple[float, float]) -> tuple[float, float]:
    # About a metric near 0 or 100 an interval would go beyond what there is.
    low, high = np.clip(ends, 0.0, 100.0)
    return float(low), float(high)


def check_options(engine: str, bootstrap: int, per_category: int | None) -> None:
    """
    Raises:
        ValueError: what the engine has not, or numbers that are too small.
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap={bootstrap} must be a number of resamples, 0 for none")
    if engine == "lvis" and bootstrap:
        raise ValueError("engine 'lvis' has no bootstrap: use 'native'")
    if per_category is not None and per_category < 1:
        raise ValueError(
            f"per_category must be at least 1, or None for no limit, got {per_category}"
        )


def check_tasks(tasks: Sequence[str] | None, engine: str) -> None:
    """
    Raises:
        ValueError: the engine is none, or does not evaluate these IoU types; None is no choice.
    """
    if engine not in ("native", "lvis"):
        raise ValueError(f"engine must be 'native' or 'lvis', got {engine!r}")
    types = ("bbox", "segm", "boundary")[: 3 if engine == "native" else 2]
    if isinstance(tasks, str):
        raise ValueError(f"tasks={tasks!r} is one word: pass a sequence, as in ({tasks!r},)")
    for one in tasks or ():
        if one not in types:
            raise ValueError(f"engine {engine!r} evaluates {types}, got iou_type={one!r}")


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
