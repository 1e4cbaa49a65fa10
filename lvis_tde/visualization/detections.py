"""Pictures of detections beside the ground truth.

Pictures are uint8 RGB arrays. Colors stand for frequency groups.
"""

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
from .figure import DPI, figure_to_array, new_figure
from .palette import GROUP_COLORS, GROUPS, INK, PAPER

__all__ = ["draw_comparison"]


class _Object(NamedTuple):
    box: np.ndarray  # (4,) x0, y0, x1, y1 in pixels
    parts: list[np.ndarray]  # outlines, each (N, 2), in pixels
    category: int
    score: float | None


def draw_comparison(
    image: np.ndarray,
    panels: Sequence[tuple[str, Instances | Mapping[str, Any]]],
    *,
    class_names: Sequence[str],
    class_frequency: Sequence[str] | None = None,
    truth: Instances | Mapping[str, Any] | None = None,
    score_threshold: float = 0.3,
    max_objects: int = 20,
    panel_size: int = 420,
    legend: bool = True,
) -> np.ndarray:
    """Draw several sets of objects over copies of one image, side by side.

    Each object has its outline, its box and a label with class name and score in the color of its
    frequency group.

    Args:
        image: RGB, (H, W, 3) uint8.
        panels: title and objects of each panel, in the image's coordinates: predicted
            ``Instances`` (``pred_boxes``, ``pred_classes`` and, where present, ``scores`` and
            ``pred_masks``) or a dict in Detectron2's data set format (``annotations``).
        class_names: name of each class, as ``thing_classes``.
        class_frequency: "r", "c" or "f" of each class; None draws all in one color.
        truth: the right objects, as in ``panels``. With it, a scored object gets a tick if its box
            overlaps one of its class by an IoU of 0.5, else a cross.
        score_threshold: objects with a lower score are left out.
        max_objects: at most so many objects per panel, the highest scores first.
        panel_size: length in pixels of the image's longer side in each panel.
        legend: explain colors and marks below.

    Returns:
        RGB, uint8.

    Raises:
        ValueError: if there is no panel, or the image is not (H, W, 3) uint8.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}: convert it to RGB"
        )
    if not panels:
        raise ValueError("panels is empty: pass at least one (title, objects) pair")
    height, width = image.shape[:2]
    scale = panel_size / max(height, width)
    panel_w, panel_h = round(width * scale), round(height * scale)
    gap, head = 14, 34
    foot = 32 if legend and not (class_frequency is None and truth is None) else gap
    total_w = len(panels) * panel_w + (len(panels) + 1) * gap
    total_h = head + panel_h + foot
    figure = new_figure(total_w / DPI, total_h / DPI)
    for index, (title, source) in enumerate(panels):
        left = gap + index * (panel_w + gap)
        axes = figure.add_axes(
            (left / total_w, foot / total_h, panel_w / total_w, panel_h / total_h)
        )
        axes.imshow(image, extent=(0, width, height, 0), interpolation="bicubic")
        axes.set_axis_off()
        figure.text(
            left / total_w, 1 - 0.5 * head / total_h, title, va="center", size=12, color=INK
        )
        objects = [o for o in _objects(source) if o.score is None or o.score >= score_threshold]
        objects.sort(key=lambda o: 0.0 if o.score is None else -o.score)
        objects = objects[:max_objects]
        marks = _marks(objects, [] if truth is None else _objects(truth))
        labels = [
            mark + class_names[o.category].replace("_", " ") + _score_text(o)
            for mark, o in zip(marks, objects)
        ]
        groups = [class_frequency[o.category] if class_frequency else "c" for o in objects]
        _draw_objects(axes, objects, labels, [GROUP_COLORS[g] for g in groups], scale)
    words_below = []
    if legend and class_frequency is not None:
        words_below += [(f"■ {name}", GROUP_COLORS[group]) for group, name in GROUPS.items()]
    if legend and truth is not None:
        words_below.append(("✓ class and place right   ✗ not", INK))
    x = float(gap)
    for words, color in words_below:
        place = (x / total_w, 0.5 * foot / total_h)
        text = figure.text(*place, words, va="center", size=10, color=color)
        x += text.get_window_extent().width + 16
    return figure_to_array(figure)


def _objects(source: Instances | Mapping[str, Any]) -> list[_Object]:
    if not isinstance(source, Instances):
        return [_from_annotation(annotation) for annotation in source["annotations"]]
    source = source.to("cpu")
    masks = source.pred_masks.numpy() if source.has("pred_masks") else [None] * len(source)
    scores = source.scores.tolist() if source.has("scores") else [None] * len(source)
    boxes = source.pred_boxes.tensor.numpy()
    return [
        _Object(box, [] if mask is None else _outlines(mask), category, score)
        for box, mask, category, score in zip(boxes, masks, source.pred_classes.tolist(), scores)
    ]


def _from_annotation(annotation: Mapping[str, Any]) -> _Object:
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    segmentation = annotation.get("segmentation") or []
    if isinstance(segmentation, Mapping):
        parts = _outlines(mask_utils.decode(dict(segmentation)))
    else:
        parts = [np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in segmentation]
    return _Object(np.asarray(box, dtype=float), parts, annotation["category_id"], None)


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    # Enlarged smoothly, the outline of a small mask is no staircase. The padding closes outlines
    # at the image border.
    factor = 4
    padded = np.pad(mask.astype(np.float32), 1, mode="edge")
    large = cv2.resize(padded, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    large = cv2.GaussianBlur(large, (0, 0), 0.5 * factor)
    polygons, _ = trace_outlines((large > 0.5).astype(np.uint8))
    return [points / factor - 1 for points in polygons if len(points) >= 3]


def _score_text(item: _Object) -> str:
    return "" if item.score is None else f"  {item.score:.2f}"


def _marks(objects: list[_Object], truth: list[_Object]) -> list[str]:
    if not objects or not truth:
        return [""] * len(objects)
    boxes = [torch.as_tensor(np.stack([o.box for o in group])) for group in (objects, truth)]
    overlap = pairwise_iou(*(Boxes(b.float()) for b in boxes)).numpy() >= 0.5
    same = np.array([[o.category == t.category for t in truth] for o in objects])
    right = (overlap & same).any(axis=1)
    return ["" if o.score is None else "✓ " if ok else "✗ " for o, ok in zip(objects, right)]


def _draw_objects(axes, objects, labels, colors, scale: float) -> None:
    """Draw outlines and boxes, then labels where they hide no other label as far as possible."""
    (_, width), (height, _) = axes.get_xlim(), axes.get_ylim()
    axes.set_autoscale_on(False)
    halo = [Stroke(linewidth=3.4, foreground=PAPER), Stroke(linewidth=1.8)]
    for item, color in zip(objects, colors):
        style = {"fill": False, "edgecolor": color, "joinstyle": "round"}
        for part in item.parts:
            axes.add_patch(Polygon(part, lw=1.8, path_effects=halo, **style))
        x0, y0, x1, y1 = item.box
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, lw=0.9, **style))
    taken: list[tuple[float, float, float, float]] = []
    for item, label, color in zip(objects, labels, colors):
        text = axes.text(
            0,
            0,
            label,
            size=8,
            color=PAPER,
            va="top",
            ha="left",
            zorder=5,
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.6, "alpha": 0.92},
        )
        extent = text.get_window_extent()
        w, h = (extent.width + 5) / scale, (extent.height + 5) / scale
        x, y = _free_place(item.box, w, h, width, height, taken)
        taken.append((x, y, x + w, y + h))
        text.set_position((x + 2.5 / scale, y + 2.5 / scale))


def _free_place(box, w: float, h: float, width: float, height: float, taken) -> tuple[float, float]:
    """Upper left corner of a label near a box, inside the picture and off other labels."""
    x0, y0, x1, y1 = box
    candidates = [(x0, y0 - h), (x0, y1), (x1 - w, y0 - h), (x1 - w, y1), (x1, y0), (x0 - w, y0)]
    candidates += [(x0, y0 - 2 * h), (x0, y1 + h)]
    best, least = candidates[0], math.inf
    for x, y in candidates:
        x, y = min(max(x, 0.0), max(width - w, 0.0)), min(max(y, 0.0), max(height - h, 0.0))
        overlap = sum(
            max(0.0, min(x + w, u1) - max(x, u0)) * max(0.0, min(y + h, v1) - max(y, v0))
            for u0, v0, u1, v1 in taken
        )
        if overlap < least - 1e-9:
            best, least = (x, y), overlap
    return best
