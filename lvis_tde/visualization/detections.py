"""Pictures of detections beside the ground truth.

Pictures are uint8 RGB arrays. Colors stand for frequency groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances

from .figure import DPI, figure_to_array, new_figure, shrink
from .objects import Object, Style, as_objects, draw_objects, overlaps
from .palette import GROUP_COLORS, GROUPS, INK, MUTED

__all__ = ["draw_comparison"]

# Weight of the object that a picture is about, and of the others beside it.
LOUD, QUIET = 1.3, 0.8


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
    font_size: float = 8,
    subject: Sequence[float] | None = None,
    title: str | None = None,
    footnote: str | None = None,
) -> np.ndarray:
    """Draw several sets of objects over copies of one image, side by side.

    Each object has its outline, its box and a label with class name and score in the color of its
    frequency group. With a ``subject``, what is not there is pale and drawn with a thin line and
    no score, so that the eye falls on one object.

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
        font_size: of the labels, in points of 100 / 72 pixels.
        subject: x0, y0, x1, y1 of the object that the picture is about.
        title: words above all panels.
        footnote: words below them.

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
    gap, line = 14, round(2 * font_size + 16)
    focus = [] if subject is None else [Object(np.asarray(subject, float), [], -1, None)]
    canvas = image if subject is None else _faded(image, subject)
    right = None if truth is None else as_objects(truth)
    key = []
    if legend and class_frequency is not None:
        key += [(f"■ {name}", GROUP_COLORS[group]) for group, name in GROUPS.items()]
    if legend and truth is not None:
        key.append(("✓ class and place right   ✗ not", INK))
    top = round(1.5 * line) if title else 0
    below = line * bool(footnote)
    foot = below + (line if key else 0 if below else gap)
    total_w = len(panels) * panel_w + (len(panels) + 1) * gap
    total_h = top + line + panel_h + foot
    figure = new_figure(total_w / DPI, total_h / DPI)

    def write(
        x: float, y: float, words: str, size: float, color: str = INK, room=math.inf, **style
    ):
        """Words, from a place in pixels to the right, their middle as far from above."""
        place = (x / total_w, 1 - y / total_h)
        text = figure.text(*place, words, va="center", size=size, color=color, **style)
        return shrink(text, min(room, total_w - gap - x))

    for index, (name, source) in enumerate(panels):
        left = gap + index * (panel_w + gap)
        axes = figure.add_axes(
            (left / total_w, foot / total_h, panel_w / total_w, panel_h / total_h)
        )
        axes.imshow(canvas, extent=(0, width, height, 0), interpolation="bicubic")
        axes.set_axis_off()
        write(left, top + 0.5 * line, name, 1.15 * font_size + 3, room=panel_w)
        objects = as_objects(_shown(source, score_threshold, max_objects))[:max_objects]
        about: list[bool | None] = [None] * len(objects)
        if focus:
            about = [bool(row.any()) for row in overlaps(objects, focus)]
        styles = [
            _style(item, loud, class_names, class_frequency, right)
            for item, loud in zip(objects, about)
        ]
        if focus and not any(about):
            objects.append(focus[0])
            styles.append(Style("✗ nothing", MUTED, LOUD))
        draw_objects(axes, objects, styles, scale, font_size)
    x = float(gap)
    for words, color in key:
        text = write(x, total_h - below - 0.5 * line, words, font_size + 2, color)
        x += text.get_window_extent().width + 16
    if title:
        write(gap, 0.55 * top, title, 1.5 * font_size + 4, weight="bold")
    if footnote:
        write(gap, total_h - 0.55 * below, footnote, 0.7 * font_size + 2, MUTED)
    return figure_to_array(figure)


def _shown(source: Any, score_threshold: float, max_objects: int) -> Any:
    """Those of predictions that are drawn, best first: to outline a mask takes its time."""
    if not isinstance(source, Instances) or not source.has("scores"):
        return source
    order = source.scores.argsort(descending=True, stable=True)
    return source[order[source.scores[order] >= score_threshold][:max_objects]]


def _style(
    item: Object,
    loud: bool | None,
    class_names: Sequence[str],
    class_frequency: Sequence[str] | None,
    truth: Sequence[Object] | None,
) -> Style:
    """How an object is drawn; ``loud`` is None where the picture is about all of them."""
    label = class_names[item.category].replace("_", " ")
    if item.score is not None:
        if truth is not None:
            same = [o for o in truth if o.category == item.category]
            label = f"{'✓' if overlaps([item], same).any() else '✗'} {label}"
        if loud is not False:
            label += f"  {item.score:.2f}"
    group = class_frequency[item.category] if class_frequency else "c"
    return Style(label, GROUP_COLORS[group], 1.0 if loud is None else LOUD if loud else QUIET)


def _faded(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The image, pale but for a box and a little around it."""
    height, width = image.shape[:2]
    around = 0.06 * max(box[2] - box[0], box[3] - box[1])
    x0, y0 = (max(0, math.floor(v - around)) for v in box[:2])
    x1, y1 = min(width, math.ceil(box[2] + around)), min(height, math.ceil(box[3] + around))
    faded = (0.55 * image + 0.45 * 255).round().astype(np.uint8)
    faded[y0:y1, x0:x1] = image[y0:y1, x0:x1]
    return faded
