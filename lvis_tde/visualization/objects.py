"""Objects of a picture, predicted or annotated: outlines, boxes and labels in an axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from matplotlib.patches import Polygon, Rectangle
from matplotlib.patheffects import Stroke

from ..data.generation.outlines import trace_outlines
from .figure import shrink
from .palette import PAPER

__all__ = ["Object", "Style", "as_objects", "draw_objects", "overlaps"]


class Object(NamedTuple):
    """An object of a picture.

    Attributes:
        box: (4,) x0, y0, x1, y1 in pixels.
        parts: outlines, each (N, 2), in pixels.
        category: index of its class.
        score: None for an annotation.
    """

    box: np.ndarray
    parts: list[np.ndarray]
    category: int
    score: float | None


class Style(NamedTuple):
    """How an object is drawn.

    Attributes:
        label: words; none if empty.
        color: of outline, box and label.
        weight: of lines and words, 1 for the usual one; below that an outline does without a box.
    """

    label: str
    color: str
    weight: float = 1.0


def as_objects(source: Instances | Mapping[str, Any]) -> list[Object]:
    """Objects of predicted ``Instances``, or of a dict in Detectron2's data set format.

    Args:
        source: see :func:`~lvis_tde.visualization.detections.draw_comparison`.

    Returns:
        In the same order.
    """
    if not isinstance(source, Instances):
        return [_from_annotation(annotation) for annotation in source["annotations"]]
    source = source.to("cpu")
    masks = source.pred_masks.numpy() if source.has("pred_masks") else [None] * len(source)
    scores = source.scores.tolist() if source.has("scores") else [None] * len(source)
    boxes = source.pred_boxes.tensor.numpy()
    return [
        Object(box, [] if mask is None else _outlines(mask), category, score)
        for box, mask, category, score in zip(boxes, masks, source.pred_classes.tolist(), scores)
    ]


def _from_annotation(annotation: Mapping[str, Any]) -> Object:
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    segmentation = annotation.get("segmentation") or []
    if isinstance(segmentation, Mapping):
        rle = dict(segmentation)
        if isinstance(rle["counts"], list):
            rle = mask_utils.frPyObjects(rle, *rle["size"])
        parts = _outlines(mask_utils.decode(rle))
    else:
        parts = [np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in segmentation]
    return Object(np.asarray(box, dtype=float), parts, annotation["category_id"], None)


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    # Enlarged smoothly, the outline of a small mask is no staircase. The padding closes outlines
    # at the image border.
    factor = 4
    padded = np.pad(mask.astype(np.float32), 1, mode="edge")
    large = cv2.resize(padded, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    large = cv2.GaussianBlur(large, (0, 0), 0.5 * factor)
    polygons, _ = trace_outlines((large > 0.5).astype(np.uint8))
    return [points / factor - 1 for points in polygons if len(points) >= 3]


def overlaps(first: Sequence[Object], second: Sequence[Object]) -> np.ndarray:
    """Which boxes overlap by an IoU of 0.5 or more.

    Args:
        first: N objects.
        second: M objects.

    Returns:
        (N, M) bool.
    """
    boxes = [
        Boxes(torch.as_tensor(np.array([o.box for o in some]), dtype=torch.float32).reshape(-1, 4))
        for some in (first, second)
    ]
    return pairwise_iou(*boxes).numpy() >= 0.5


def draw_objects(
    axes, objects: Sequence[Object], styles: Sequence[Style], scale: float, font_size: float
) -> None:
    """Draw outlines and boxes, then labels where they hide as little as possible.

    Heavy objects are on top of the others, and their labels are placed first.

    Args:
        axes: that show an image in its own pixels.
        objects: what to draw.
        styles: how to draw each of them.
        scale: pixels of the figure per pixel of the image.
        font_size: points of a label of weight 1.
    """
    (_, width), (height, _) = axes.get_xlim(), axes.get_ylim()
    axes.set_autoscale_on(False)
    unit = math.sqrt(font_size / 8)
    for item, (_, color, weight) in zip(objects, styles):
        lines = {"fill": False, "edgecolor": color, "joinstyle": "round", "zorder": 2 + weight}
        wide, thin = 1.8 * unit * weight**2, 0.9 * unit * weight
        halo = [Stroke(linewidth=1.9 * wide, foreground=PAPER), Stroke(linewidth=wide)]
        for part in item.parts:
            axes.add_patch(Polygon(part, lw=wide, path_effects=halo, **lines))
        if weight < 1 and item.parts:
            continue
        x0, y0, x1, y1 = item.box
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, lw=thin, **lines))
    heaviest = max((style.weight for style in styles), default=1.0)
    # What a label must not hide, and how much that matters: other labels, the heaviest objects.
    taken = [
        (tuple(item.box), 0.3)
        for item, style in zip(objects, styles)
        if style.weight == heaviest > min(s.weight for s in styles)
    ]
    for i in sorted(range(len(objects)), key=lambda i: -styles[i].weight):
        label, color, weight = styles[i]
        if not label:
            continue
        text = axes.text(
            0,
            0,
            label,
            size=font_size * weight,
            color=PAPER,
            va="top",
            ha="left",
            zorder=6 + weight,
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.6 * unit, "alpha": 0.92},
        )
        pad = 5 * unit
        extent = shrink(text, width * scale - pad).get_window_extent()
        w, h = (extent.width + pad) / scale, (extent.height + pad) / scale
        x, y = _free_place(objects[i].box, w, h, width, height, taken)
        taken.append(((x, y, x + w, y + h), 1.0))
        text.set_position((x + 0.5 * pad / scale, y + 0.5 * pad / scale))


def _free_place(box, w: float, h: float, width: float, height: float, taken) -> tuple[float, float]:
    """Upper left corner of a label near a box, inside the picture and off what is taken."""
    x0, y0, x1, y1 = box
    candidates = [(x0, y0 - h), (x0, y1), (x1 - w, y0 - h), (x1 - w, y1), (x1, y0), (x0 - w, y0)]
    candidates += [(x0, y0 - 2 * h), (x0, y1 + h), (x0, y0), (x0, y1 - h)]
    best, least = candidates[0], math.inf
    for x, y in candidates:
        x, y = min(max(x, 0.0), max(width - w, 0.0)), min(max(y, 0.0), max(height - h, 0.0))
        overlap = sum(
            weight * max(0.0, min(x + w, u1) - max(x, u0)) * max(0.0, min(y + h, v1) - max(y, v0))
            for (u0, v0, u1, v1), weight in taken
        )
        if overlap < least - 1e-9:
            best, least = (x, y), overlap
    return best
