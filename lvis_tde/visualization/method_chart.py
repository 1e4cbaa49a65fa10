"""Chart of methods: what each does to all classes and to rare ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from .figure import bare, headline, new_figure, spread
from .palette import GRID, INK, METHOD_COLORS, METHOD_NAMES, MUTED

__all__ = ["plot_methods"]

_PANEL, _NAMES = 2.7, 1.75  # inches of a panel, and of the names on its right


def plot_methods(
    models: Mapping[str, Sequence[tuple[str, float, float]]],
    *,
    title: str = "Each method on the trained models: box AP over APr (%)",
) -> Figure:
    """A dot for each method, a panel for each model; names are in the order of AP.

    Args:
        models: name of a model to its methods, each with APr and AP in percent; names of methods
            as in :data:`~lvis_tde.visualization.palette.METHOD_NAMES`, others are shown as they
            are. Methods with an undefined (NaN or negative) figure are left out.
        title: of the chart.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no model.
    """
    if not models:
        raise ValueError("models is empty: pass the methods of at least one model")
    wide = _PANEL + _NAMES + 0.45
    width, height = 0.25 + wide * len(models), 4.1
    figure = new_figure(width, height)
    for index, (name, methods) in enumerate(models.items()):
        left = (0.6 + index * wide) / width
        axes = figure.add_axes((left, 0.15, _PANEL / width, 0.65))
        axes.set_title(name, size=11, color=INK, loc="left")
        axes.set_xlabel("APr, rare classes", size=9.5, color=MUTED)
        axes.set_ylabel("AP, all classes" if not index else "", size=9.5, color=MUTED)
        bare(axes, "both")
        axes.tick_params(labelcolor=MUTED)
        known = [m for m in methods if all(math.isfinite(v) and v >= 0 for v in m[1:])]
        if not known:
            axes.text(0.5, 0.5, "n/a", ha="center", transform=axes.transAxes, color=MUTED)
            continue
        for method, x, y in known:
            color = METHOD_COLORS.get(method, MUTED)
            axes.plot(x, y, "o", ms=7 if method in METHOD_COLORS else 5, color=color, zorder=3)
        axes.margins(0.08)
        # Room for the names of methods whose dots lie close together.
        low, high = axes.get_ylim()
        axes.set_ylim(low, high)
        right = axes.get_xlim()[1]
        axes.set_xlim(axes.get_xlim())
        known.sort(key=lambda m: m[2])
        places = spread([m[2] for m in known], 0.078 * (high - low))
        over = max(0.0, places[-1] - high) - max(0.0, low - places[0])
        for (method, x, y), place in zip(known, places):
            color = METHOD_COLORS.get(method, MUTED)
            end = right + 0.06 * (right - axes.get_xlim()[0]), place - over
            axes.plot([x, end[0]], [y, end[1]], color=GRID, lw=0.9, clip_on=False, zorder=1)
            axes.annotate(
                f"{METHOD_NAMES.get(method, method)}  {y:.1f}",
                end,
                (3, 0),
                textcoords="offset points",
                va="center",
                size=8.5,
                color=color,
                annotation_clip=False,
            )
    headline(figure, title, [])
    return figure
