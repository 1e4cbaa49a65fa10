"""All classes on one sheet, from the most frequent to the rarest."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import cv2
import numpy as np

from .figure import DPI, figure_to_array, headline, new_figure, shrink
from .palette import GROUP_COLORS, GROUPS, INK, MUTED, PAPER

__all__ = ["draw_class_sheet"]

_CROP, _CELL_W, _CELL_H, _HEAD, _MARGIN = 64, 112, 126, 84, 20


def draw_class_sheet(
    crops: Sequence[np.ndarray],
    names: Sequence[str],
    image_counts: Sequence[int],
    class_frequency: Sequence[str],
    *,
    columns: int | None = None,
    title: str | None = None,
    credit: str | None = None,
) -> np.ndarray:
    """Draw an example of each class with its name and its number of training images.

    Args:
        crops: an example of each of C classes, (H, W, 3) or, with opacity, (H, W, 4) uint8.
        names: of the classes; underscores become spaces.
        image_counts: training images of each; the most frequent class comes first, of equals the
            one with the lower index.
        class_frequency: "r", "c" or "f" of each.
        columns: classes in a row; default: such that the sheet is about as high as wide.
        title: default: says how many classes there are.
        credit: a line at the bottom, such as whom the pictures are from.

    Returns:
        RGB, uint8.

    Raises:
        ValueError: if there is no class, or the arguments are not of one length.
    """
    lengths = [len(crops), len(names), len(image_counts), len(class_frequency)]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(
            f"crops, names, image_counts and class_frequency have lengths {lengths}: pass one of "
            "each for every class"
        )
    columns = columns or max(6, math.ceil(math.sqrt(1.2 * len(names))))
    order = sorted(range(len(names)), key=lambda i: -image_counts[i])
    rows = math.ceil(len(order) / columns)
    width = columns * _CELL_W + 2 * _MARGIN
    height = _HEAD + rows * _CELL_H + _MARGIN + (_MARGIN if credit else 0)
    figure = new_figure(width / DPI, height / DPI)
    middles = []
    for place, i in enumerate(order):
        x = _MARGIN + place % columns * _CELL_W + _CELL_W // 2  # middle of the cell
        y = _HEAD + place // columns * _CELL_H
        middles.append((x, y + _CROP // 2))
        color = GROUP_COLORS[class_frequency[i]]
        middle = {"ha": "center", "va": "top"}
        below = 1 - (y + _CROP + 4) / height
        count = f"{image_counts[i]:,}"
        figure.text(x / width, below, count, size=8.5, weight="bold", color=color, **middle)
        lines = textwrap.wrap(names[i].replace("_", " "), 17, break_long_words=False)
        lines = [*lines[:1], " ".join(lines[1:])]
        for line, words in enumerate(lines):
            at = below - (16 + 13 * line) / height
            text = figure.text(x / width, at, words, size=8, color=INK, **middle)
            shrink(text, _CELL_W - 6)
    groups = list(class_frequency)
    legend = [
        (f"{GROUPS[g]}: {groups.count(g)} classes", GROUP_COLORS[g]) for g in reversed(GROUPS)
    ]
    legend.append(("number: training images with the class", PAPER))
    headline(figure, title or f"{len(names)} classes by frequency in training", legend)
    if credit:
        figure.text(0.02, 0.8 * _MARGIN / height, credit, va="bottom", size=9, color=MUTED)
    sheet = figure_to_array(figure)
    for i, (x, y) in zip(order, middles):
        _paste(sheet, crops[i], x, y)
    return sheet


def _paste(sheet: np.ndarray, crop: np.ndarray, x: int, y: int) -> None:
    """Put a crop, as large as fits, with its middle at a place."""
    crop = np.asarray(crop).astype(np.float32)
    height, width = crop.shape[:2]
    opacity = crop[..., 3:] / 255 if crop.shape[2] == 4 else np.ones((height, width, 1), np.float32)
    # Colors weighted with their opacity: what is hidden does not bleed into what is seen.
    layers = np.concatenate([crop[..., :3] * opacity, opacity], axis=2)
    scale = _CROP / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    layers = cv2.resize(layers, size, interpolation=method)
    opacity = layers[..., 3:].clip(0, 1)
    left, top = x - size[0] // 2, y - size[1] // 2
    part = sheet[top : top + size[1], left : left + size[0]]
    part[:] = (layers[..., :3].clip(0, 255) + (1 - opacity) * part).clip(0, 255).round()
