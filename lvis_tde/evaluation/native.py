"""The engine ``native``: the arithmetic of ``lvis`` 0.5.3 without its loops over empty cells.

A cell is one image and one category. 99% of LVIS's cells are empty, and ``lvis`` visits each of
them eight times. Here everything is a column sorted by category and image, and work is done per
detection that counts.

Names: D detections that count, G ground truths, I images, C categories, A = 4 areas.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils

from .accumulate import accumulate
from .boundary import boundary_rles
from .detections import Detections
from .errors import complain
from .ground_truth import GroundTruth, to_rle
from .matching import Pairs, match
from .selection import Counted, areas_of, detection_rles, select

AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
# Cells whose masks are held as Python objects at one time.
_CELLS = 4096


@dataclass
class Evaluation:
    """Arrays of one evaluation.

    Attributes:
        precision: see :func:`lvis_tde.evaluation.result.summarize`.
        recall: likewise.
        num_gt: (C,) ground truths to be found.
        num_dt: (C,) detections that count.
        timings: CPU seconds per stage.
    """

    precision: np.ndarray
    recall: np.ndarray
    num_gt: np.ndarray
    num_dt: np.ndarray
    timings: dict[str, float] = field(default_factory=dict)


@dataclass
class Matches:
    """What detections match what: all that precision and recall need.

    Attributes:
        images, labels: (D,) int64, of the detections that count; by category, image and descending
            score.
        scores: (D,) float64.
        exempt: (D, A) bool, does not count as a false positive if it matches nothing.
        candidates: (K,), see :func:`match`.
        matched, ignored: (K, T, A), likewise.
        truth_images, truth_labels: (G,) int64.
        ignore: (G, A) bool, does not count.
        num_images, num_categories: I and C.
        timings: CPU seconds per stage.
    """

    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    exempt: np.ndarray
    candidates: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    truth_images: np.ndarray
    truth_labels: np.ndarray
    ignore: np.ndarray
    num_images: int
    num_categories: int
    timings: dict[str, float]


def match_all(
    truth: GroundTruth,
    detections: Detections,
    iou_type: str,
    max_dets: int,
    per_category: int | None = None,
) -> Matches:
    """Matches all detections that count.

    Args:
        truth: ground truth.
        detections: detections.
        iou_type: ``bbox``, ``segm`` or ``boundary``.
        max_dets: most detections per image, -1 for no limit.
        per_category: most detections per category over the whole set, None for no limit.

    Returns:
        Matches.

    Raises:
        ValueError: detections that cannot be evaluated; the message names the first and how many.
    """
    clock = [time.process_time()]
    num_images, num_cats = len(truth.image_ids), len(truth.category_ids)
    counted = select(truth, detections, iou_type, max_dets, per_category)
    order = np.argsort(truth.labels * num_images + truth.images, kind="stable")
    labels, images, areas = truth.labels[order], truth.images[order], truth.areas[order]
    clock.append(time.process_time())

    cells = _shared_cells(
        counted.labels * num_images + counted.images, labels * num_images + images
    )
    pairs, cell = _pairs(truth, detections, counted, order, cells, iou_type)
    clock.append(time.process_time())

    ignore = truth.ignore[order, None] | _outside(areas)
    candidates, matched, ignored = match(pairs, cell, ignore)
    cell_of_detection = counted.images * num_cats + counted.labels
    exempt = _outside(counted.areas) | np.isin(cell_of_detection, truth.not_exhaustive)[:, None]
    clock.append(time.process_time())
    timings = dict(zip(("prepare", "iou", "match"), np.diff(clock).tolist()))
    return Matches(
        counted.images, counted.labels, counted.scores, exempt, candidates, matched, ignored,
        images, labels, ignore, num_images, num_cats, timings,
    )  # fmt: skip


def evaluate(matches: Matches, weights: np.ndarray | None = None) -> Evaluation:
    """Precision, recall and counts.

    Args:
        matches: of all detections.
        weights: (I,) float64, >= 0, of the images; None for 1.
    """
    start = time.process_time()
    if weights is None:
        weights = np.ones(matches.num_images)
    of_truth, num_cats = weights[matches.truth_images], matches.num_categories
    num_gt = np.stack(
        [
            np.bincount(matches.truth_labels, np.where(out, 0.0, of_truth), num_cats)
            for out in matches.ignore.T
        ],
        axis=1,
    )
    precision, recall = accumulate(
        matches.labels, matches.scores, weights[matches.images], matches.exempt,
        matches.candidates, matches.matched, matches.ignored, num_gt,
    )  # fmt: skip
    timings = {**matches.timings, "accumulate": time.process_time() - start}
    to_find = np.bincount(
        matches.truth_labels[~matches.ignore[:, 0] & (of_truth > 0)], minlength=num_cats
    )
    counted = np.bincount(matches.labels[weights[matches.images] > 0], minlength=num_cats)
    return Evaluation(precision, recall, to_find, counted, timings)


def _outside(areas: np.ndarray) -> np.ndarray:
    return (areas[:, None] < AREA_RANGES[:, 0]) | (areas[:, None] > AREA_RANGES[:, 1])


def _shared_cells(detections: np.ndarray, truths: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Where each cell with both lies in the sorted cell keys: begin and end of one, then of the
    other."""
    keys, d_begin, d_count = np.unique(detections, return_index=True, return_counts=True)
    g_keys, g_begin, g_count = np.unique(truths, return_index=True, return_counts=True)
    _, d, g = np.intersect1d(keys, g_keys, assume_unique=True, return_indices=True)
    columns = d_begin[d], d_begin[d] + d_count[d], g_begin[g], g_begin[g] + g_count[g]
    return list(zip(*(c.tolist() for c in columns)))


def _pairs(
    truth: GroundTruth,
    detections: Detections,
    counted: Counted,
    order: np.ndarray,
    cells: list[tuple[int, int, int, int]],
    iou_type: str,
) -> tuple[Pairs, np.ndarray]:
    """Pairs with an IoU that can match, and the cell of each."""
    parts = [(np.zeros(0, dtype=np.int64),) * 3 + (np.zeros(0),)]
    for start in range(0, len(cells), _CELLS):
        block = cells[start : start + _CELLS]
        d_rows = np.concatenate([np.arange(d0, d1) for d0, d1, _, _ in block])
        g_rows = np.concatenate([np.arange(g0, g1) for _, _, g0, g1 in block])
        of_block = np.array(block)
        of_d, of_g = (
            np.repeat(np.arange(len(block)), of_block[:, k + 1] - of_block[:, k]) for k in (0, 2)
        )
        g_shapes = _truth_shapes(truth, order[g_rows], iou_type)
        if counted.mask_areas is not None and iou_type != "bbox":
            near = _near(counted.mask_areas[d_rows], of_d, areas_of(g_shapes), of_g)
            d_rows, of_d = d_rows[near], of_d[near]
        d_shapes = _detection_shapes(truth, detections, counted, d_rows, iou_type)
        d, g, cell, iou = _close(d_shapes, g_shapes, of_d, of_g)
        if iou_type == "boundary" and len(iou):
            of_boundaries = _boundary_ious(d_shapes, g_shapes, d, g)
            near = of_boundaries >= 0.5
            iou = np.minimum(iou, of_boundaries)[near]
            d, g, cell = d[near], g[near], cell[near]
        parts.append((d_rows[d], g_rows[g], cell + start, iou))
    detection, gt, cell, iou = (np.concatenate(column) for column in zip(*parts))
    return Pairs(detection, gt, iou), cell


def _near(d_areas: np.ndarray, of_d: np.ndarray, g_areas: np.ndarray, of_g: np.ndarray):
    """Detections with a ground truth in their cell that is neither less than half as large nor more
    than twice as large: no other pair has an IoU of 0.5, in whole pixels and after rounding.

    Args:
        d_areas: (D,) float64, pixels; NaN for unknown.
        of_d: (D,) cell of each, ascending.
        g_areas: (G,) float64.
        of_g: (G,) likewise.

    Returns:
        (D,) bool.
    """
    # By cell, then by area; of the ground truths that are large enough the least one decides.
    by_area = np.lexsort((g_areas, of_g))
    # Areas are whole numbers far below the step, so that sums with it are exact.
    step = 2.0**40
    keys = of_g[by_area] * step + g_areas[by_area]
    place = np.searchsorted(keys, of_d * step + d_areas / 2)
    found = np.append(keys, np.inf)[place]
    return np.isnan(d_areas) | (found <= of_d * step + 2 * d_areas)


def _close(d_shapes: Any, g_shapes: Any, of_d: np.ndarray, of_g: np.ndarray):
    """Pairs with IoU >= 0.5 of shapes by cell: both positions, the cell, IoU."""
    parts = [(np.zeros(0, dtype=np.int64),) * 3 + (np.zeros(0),)]
    cells, first, count = np.unique(of_d, return_index=True, return_counts=True)
    begin, end = np.searchsorted(of_g, cells), np.searchsorted(of_g, cells, "right")
    spans = first, first + count, begin, end
    for number, d0, d1, g0, g1 in zip(cells.tolist(), *(span.tolist() for span in spans)):
        # Official arithmetic to the last bit on any processor, because it is the official code.
        iou = mask_utils.iou(d_shapes[d0:d1], g_shapes[g0:g1], [0] * (g1 - g0))
        rows, columns = np.nonzero(iou >= 0.5)
        if len(rows):
            parts.append((rows + d0, columns + g0, np.full(len(rows), number), iou[rows, columns]))
    return [np.concatenate(column) for column in zip(*parts)]


def _boundary_ious(d_shapes: list, g_shapes: list, d: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Boundary IoU of pairs of masks, (P,); each mask's boundary is made once."""
    edges = []
    for shapes, index in ((d_shapes, d), (g_shapes, g)):
        used = np.unique(index)
        edges.append(dict(zip(used.tolist(), boundary_rles([shapes[i] for i in used.tolist()]))))
    return np.array(
        [
            mask_utils.iou([edges[0][i]], [edges[1][j]], [0])[0, 0]
            for i, j in zip(d.tolist(), g.tolist())
        ]
    )


def _detection_shapes(
    truth: GroundTruth, detections: Detections, counted: Counted, rows: np.ndarray, iou_type: str
) -> Any:
    """Boxes or masks of detections, for ``pycocotools.mask.iou``."""
    index, images = counted.index[rows], counted.images[rows]
    if iou_type != "bbox":
        return detection_rles(detections, index, truth, images)
    boxes = detections.boxes[index].astype(np.float64)
    bare = np.flatnonzero(~detections.has_box[index])
    if len(bare):
        boxes[bare] = mask_utils.toBbox(
            detection_rles(detections, index[bare], truth, images[bare])
        )
    return boxes


def _truth_shapes(truth: GroundTruth, rows: np.ndarray, iou_type: str) -> Any:
    """Boxes or masks of ground truths, likewise."""
    if iou_type != "bbox":
        sizes = truth.image_sizes[truth.images[rows]].tolist()
        return [
            to_rle(truth.segmentations[i], height, width, f"annotation {truth.annotation_ids[i]!r}")
            for i, (height, width) in zip(rows.tolist(), sizes)
        ]
    given = [truth.boxes[i] for i in rows.tolist()]
    complain(
        [
            truth.annotation_ids[i]
            for i, b in zip(rows.tolist(), given)
            if b is None or len(b) != 4 or not all(map(math.isfinite, b))
        ],
        "annotations without a box of four finite numbers",
        "'bbox' is [x, y, width, height]",
    )
    return np.array(given, dtype=np.float64)
