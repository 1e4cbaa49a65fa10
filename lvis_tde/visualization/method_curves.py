"""Chart of a sweep over methods: what each does to all classes and to rare ones, by strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from .figure import bare, headline, new_figure, spread
from .palette import GRID, INK, METHOD_COLORS, METHOD_NAMES, MUTED, run_colors

__all__ = ["plot_method_curves"]

Pair = tuple["float | None", "float | None"]


def plot_method_curves(
    curves: Mapping[str, Sequence[Pair]],
    *,
    chosen: Pair,
    words: str,
    axes: tuple[str, str] = ("APr", "AP"),
    title: str = "Every method by strength (%)",
) -> Figure:
    """A line for each method, from the trained model on, with a dot for each strength.

    Args:
        curves: name of a method to its points in percent, the first at strength 0; points with an
            undefined (None, NaN or negative) number are left out.
        chosen: the point that is marked.
        words: what it is.
        axes: names of the two numbers.
        title: of the chart.

    Returns:
        The figure.
    """
    height = 4.6
    figure = new_figure(7.6, height)
    panel = figure.add_axes((0.085, 0.125, 0.63, 0.69))
    bare(panel, "both")
    panel.tick_params(labelcolor=MUTED)
    panel.set_xlabel(axes[0], size=9.5, color=MUTED)
    panel.set_ylabel(axes[1], size=9.5, color=MUTED)
    colors = {**run_colors(curves), **METHOD_COLORS}
    ends = []
    for name, points in curves.items():
        known = [(x, y) for x, y in points if _defined(x) and _defined(y)]
        if known:
            xs, ys = zip(*known)
            panel.plot(xs, ys, "-o", color=colors[name], lw=1.4, ms=3.5, zorder=3)
            ends.append((name, xs[-1], ys[-1]))
    legend = []
    # All curves begin at the trained model; where it is undefined nothing is marked.
    firsts = [points[0] for points in curves.values() if points]
    if firsts and _defined(firsts[0][0]) and _defined(firsts[0][1]):
        panel.plot(*firsts[0], "o", ms=8, color=INK, zorder=4)
        legend.append(("as trained", INK))
    if _defined(chosen[0]) and _defined(chosen[1]):
        color = METHOD_COLORS["composition"]
        panel.plot(*chosen, "*", ms=17, color=color, mec="white", mew=1.0, zorder=5)
        legend.append((f"chosen: {words}", color))
    if not ends:
        panel.text(0.5, 0.5, "n/a", ha="center", transform=panel.transAxes, color=MUTED)
    panel.margins(0.08)
    low, high = panel.get_ylim()
    panel.set_ylim(low, high)
    left, right = panel.get_xlim()
    panel.set_xlim(left, right)
    ends.sort(key=lambda end: end[2])
    places = spread([y for _, _, y in ends], 0.055 * (high - low)) if ends else []
    for (name, x, y), place in zip(ends, places):
        edge = right + 0.05 * (right - left)
        panel.plot([x, edge], [y, place], color=GRID, lw=0.9, clip_on=False, zorder=1)
        panel.annotate(
            METHOD_NAMES.get(name, name),
            (edge, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=colors[name],
            annotation_clip=False,
        )
    headline(figure, title, legend)
    return figure


def _defined(value: float | None) -> bool:
    return value is not None and value >= 0
