"""A picture, and the classes that a model gives it without and with TDE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .figure import bare, headline, new_figure
from .palette import GROUP_COLORS, INK, MUTED, PALE, TOP1_GROUPS

__all__ = ["draw_classified"]

_DPI = 100


def draw_classified(
    image: np.ndarray,
    explanation,
    *,
    class_names: Sequence[str],
    class_frequency: Sequence[str] | None = None,
    top: int = 6,
    side: int = 360,
) -> Figure:
    """The picture beside bars of its most probable classes.

    Args:
        image: RGB, (H, W, 3) uint8.
        explanation: a :class:`~lvis_tde.calibration.explain.Explanation` of this one image.
        class_names: C names.
        class_frequency: "r", "c" or "f" of each class; None draws all in one color.
        top: number of classes: those with the highest probabilities without or with TDE.
        side: of the picture, in pixels at 100 dots per inch.

    Returns:
        The figure.
    """
    before, after = (getattr(explanation, key)[0].tolist() for key in ("factual_probs", "probs"))
    order = sorted(range(len(class_names)), key=lambda i: (-max(before[i], after[i]), i))[:top]
    order.sort(key=lambda i: (-after[i], i))
    width, height = side / _DPI + 5.4, side / _DPI + 0.9
    figure = new_figure(width, height)
    picture = figure.add_axes((0.02, 0.05, side / _DPI / width, side / _DPI / height))
    # Pixels of small images stay pixels.
    picture.imshow(image, interpolation="nearest" if max(image.shape[:2]) < side else "antialiased")
    picture.set_axis_off()
    axes = figure.add_axes((1 - 3.3 / width, 0.12, 3.1 / width, 0.7))
    for y, i in enumerate(order):
        color = GROUP_COLORS[class_frequency[i]] if class_frequency else INK
        axes.barh(y - 0.19, before[i], 0.36, color=color, alpha=0.35)
        axes.barh(y + 0.19, after[i], 0.36, color=color)
        for shift, value in ((-0.19, before[i]), (0.19, after[i])):
            axes.text(value + 0.02, y + shift, f"{value:.3f}", va="center", size=7.5, color=INK)
    bare(axes)
    axes.set_xlim(0, 1.15)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_xlabel("probability", size=10, color=MUTED)
    axes.set_yticks(range(len(order)), [class_names[i].replace("_", " ") for i in order], size=9.5)
    axes.tick_params(axis="y", length=0)
    full = "adjusted" if explanation.other.any() else "with TDE"
    legend = [("light: as trained", PALE), (f"full: {full}", INK)]
    if class_frequency:
        legend += [(name, GROUP_COLORS[group]) for group, name in TOP1_GROUPS.items()]
    best = class_names[int(np.argmax(after))]
    headline(figure, f"{best}: {explanation.steps or 'alpha 0'}", legend)
    return figure
