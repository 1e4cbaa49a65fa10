"""Which detections count: limits, the federated rule and areas, as ``lvis`` has them.

Names: D detections given, K detections that count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils

from ..data.masks import rle_areas
from .detections import Detections, index_of
from .errors import complain
from .ground_truth import GroundTruth, to_rle
from .image_sizes import check_sizes


@dataclass
class Counted:
    """Detections that count, by category, image and descending score.

    Attributes:
        index: (K,) int64, positions in the given :class:`Detections`.
        images: (K,) int64, positions in the ground truth's image ids.
        labels: (K,) int64, positions in its category ids.
        scores: (K,) float64.
        areas: (K,) float64, > 0.
        mask_areas: (K,) float64, pixels of their masks, NaN where nobody counted them; None if no
            masks are compared.
    """

    index: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    mask_areas: np.ndarray | None = None


def select(
    truth: GroundTruth,
    detections: Detections,
    iou_type: str,
    max_dets: int,
    per_category: int | None,
) -> Counted:
    """Detections that count, sorted.

    Args:
        truth: ground truth.
        detections: D detections.
        iou_type: ``bbox``, ``segm`` or ``boundary``.
        max_dets: most detections per image, -1 for no limit.
        per_category: most detections per category, None for no limit.

    Returns:
        K detections.

    Raises:
        ValueError: scores or boxes that are not finite, unknown ids, missing boxes or masks, or
            masks that are none.
    """
    images, labels = check(truth, detections, iou_type)
    keep = within_limits(images, labels, detections.scores, max_dets, per_category)
    if not keep.any():
        none = np.zeros(0, dtype=np.int64)
        return Counted(none, none, none, np.zeros(0), np.zeros(0))
    by_box = _areas_are_of_boxes(detections, keep, images, iou_type, max_dets, per_category)

    # A detection of a category that is neither annotated in the image nor verified to be absent
    # from it is neither right nor wrong.
    index = np.flatnonzero(keep & truth.judged(images, labels))
    masks = None
    if iou_type != "bbox" or not by_box:
        masks = check_masks(detections, index, truth, images[index])
    if by_box:
        boxes = detections.boxes[index].astype(np.float64)
        with np.errstate(over="ignore"):  # what is too large for a number is no valid area
            areas = boxes[:, 2] * boxes[:, 3]
    else:
        assert masks is not None
        rest = np.flatnonzero(np.isnan(masks))
        of_rest = images[index[rest]]
        masks[rest] = areas_of(detection_rles(detections, index[rest], truth, of_rest))
        areas = masks
    valid = (areas > 0) & (areas < np.inf)
    index, areas = index[valid], areas[valid]
    scores = detections.scores[index].astype(np.float64)
    order = np.lexsort((-scores, images[index], labels[index]))
    index = index[order]
    if masks is not None:
        masks = masks[valid][order]
    return Counted(index, images[index], labels[index], scores[order], areas[order], masks)


def check(
    truth: GroundTruth, detections: Detections, iou_type: str = "bbox"
) -> tuple[np.ndarray, np.ndarray]:
    """Refuse detections that would give a wrong number.

    Args:
        truth: ground truth.
        detections: D detections.
        iou_type: ``bbox``, ``segm`` or ``boundary``; the latter two need masks.

    Returns:
        Positions (D,) int64 of their images and of their categories.

    Raises:
        ValueError: scores or boxes that are not finite, unknown ids, missing masks, or polygons in
            images whose size is not known.
    """
    bad = np.flatnonzero(np.isnan(detections.scores))
    complain(bad.tolist(), "detections with a NaN score (by position)", "a NaN cannot be ranked")
    bad = np.flatnonzero(np.isinf(detections.scores))
    complain(
        bad.tolist(),
        "detections with an infinite score (by position)",
        "scores are probabilities, or other finite numbers",
    )
    bad = np.flatnonzero(detections.has_box & ~np.isfinite(detections.boxes).all(axis=1))
    complain(
        bad.tolist(),
        "detections with a NaN or infinite number in bbox (by position)",
        "such a box overlaps with nothing; has the training diverged?",
    )
    images = index_of(detections.image_ids, truth.image_ids)
    complain(
        detections.image_ids[images < 0].tolist(),
        "detections with an unknown image_id",
        "they belong to another annotation file",
    )
    labels = index_of(detections.category_ids, truth.category_ids)
    complain(
        detections.category_ids[labels < 0].tolist(),
        "detections with an unknown category_id",
        "use the ids of the annotation file, which in LVIS begin at 1",
    )
    if iou_type != "bbox" and not detections.has_mask.any():
        # Where others have masks a detection without one is its box, as in lvis.
        complain(
            range(len(detections)),
            "detections without segmentation (by position)",
            f"{iou_type!r} compares masks, and these results are boxes alone: use --iou-type bbox",
        )
    if iou_type != "bbox":
        bare = np.flatnonzero(detections.lengths == 0)
        drawn = [i for i in bare.tolist() if not isinstance(detections.others.get(i), dict)]
        check_sizes(truth, np.arange(len(truth)), images[drawn])
    return images, labels


def check_masks(
    detections: Detections, index: np.ndarray, truth: GroundTruth, images: np.ndarray
) -> np.ndarray:
    """Refuse RLEs that are none, or of another size than their image.

    Args:
        detections: all detections.
        index: (K,) int64, which.
        truth: ground truth, for the sizes of images; 0 where it is not known.
        images: (K,) int64, their images.

    Returns:
        (K,) float64, the pixels of each; NaN where a mask is no compressed RLE.

    Raises:
        ValueError: naming the first and how many there are.
    """
    packed = np.flatnonzero(detections.lengths[index] > 0)
    out = np.full(len(index), np.nan)
    index, images = index[packed], images[packed]
    sizes, wanted = detections.sizes[index].astype(np.int64), truth.image_sizes[images]
    other = np.flatnonzero((sizes != wanted).any(axis=1) & (wanted > 0).all(axis=1))
    complain(
        [f"{index[i]}, {sizes[i].tolist()} in an image of {wanted[i].tolist()}" for i in other],
        "detections with an RLE of another size than their image (by position)",
        "predict in the image's own size, [height, width]",
    )
    areas = rle_areas(
        detections.counts,
        detections.offsets[index],
        detections.lengths[index].astype(np.int64),
        sizes.prod(axis=1),
    )
    complain(
        index[areas < 0].tolist(),
        "detections with an RLE whose counts do not fill its size (by position)",
        "it is cut off, or not COCO's compressed RLE",
    )
    out[packed] = areas
    return out


def within_limits(
    images: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    max_dets: int,
    per_category: int | None,
) -> np.ndarray:
    """Detections within the limit per image, and of those the ones within the limit per category.

    Args:
        images: (D,) int64, >= 0.
        labels: (D,) int64, >= 0.
        scores: (D,) float.
        max_dets: most detections per image, -1 for no limit.
        per_category: most detections per category, None for no limit.

    Returns:
        (D,) bool.
    """
    keep = np.ones(len(scores), dtype=np.bool_)
    for groups, limit in ((images, max_dets), (labels, per_category)):
        if limit is None or limit < 0:
            continue
        number = np.bincount(groups[keep], minlength=int(groups.max(initial=0)) + 1)
        over = np.flatnonzero(keep & (number[groups] > limit))
        over = over[np.lexsort((-scores[over], groups[over]))]
        begin = np.searchsorted(groups[over], groups[over])
        keep[over[np.arange(len(over)) - begin >= limit]] = False
    return keep


def _areas_are_of_boxes(
    detections: Detections,
    keep: np.ndarray,
    images: np.ndarray,
    iou_type: str,
    max_dets: int,
    per_category: int | None,
) -> bool:
    # lvis looks at the first detection after its limit, which sorts the images that exceed it.
    first = np.flatnonzero(keep)[0]
    of_image = np.flatnonzero(images == images[0])
    if 0 <= max_dets < len(of_image) and per_category is None:
        first = of_image[np.argmax(detections.scores[of_image])]
    by_box = bool(detections.has_box[first])
    if detections.mask_area and iou_type != "bbox":
        by_box = False
    lacking = keep & ~(detections.has_box if by_box else detections.has_mask)
    complain(
        np.flatnonzero(lacking).tolist(),
        f"detections without {'bbox' if by_box else 'segmentation'} (by position)",
        "every detection needs what the first one has",
    )
    return by_box


def areas_of(rles: list[dict[str, Any]]) -> np.ndarray:
    """Pixels of compressed RLEs, (N,) float64."""
    # Releases of pycocotools hold the number of masks in a uint8, which NumPy 2 does not let
    # overflow.
    parts = [mask_utils.area(rles[start : start + 255]) for start in range(0, len(rles), 255)]
    return np.concatenate([np.zeros(0), *parts])


def detection_rles(
    detections: Detections, index: np.ndarray, truth: GroundTruth, images: np.ndarray
) -> list[dict[str, Any]]:
    """Masks of some detections; a detection without one is its box, as in ``lvis``.

    Args:
        detections: all detections.
        index: (K,) int64, which.
        truth: ground truth, for the sizes of images.
        images: (K,) int64, their images.

    Returns:
        K compressed RLEs.
    """
    out = detections.segmentations(index)
    for i in np.flatnonzero(detections.lengths[index] == 0).tolist():
        if out[i] is None:
            x, y, w, h = detections.boxes[index[i]].astype(np.float64).tolist()
            out[i] = [[x, y, x, y + h, x + w, y + h, x + w, y]]
        height, width = truth.image_sizes[images[i]].tolist()
        out[i] = to_rle(out[i], height, width, f"detection {index[i]}")
    return out
