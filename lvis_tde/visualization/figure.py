"""What all figures share: matplotlib without pyplot or display, axes, a title with its legend."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from .palette import GRID, INK, MUTED, PAPER

__all__ = ["bare", "figure_to_array", "headline", "new_figure", "shrink", "spread", "width_for"]

DPI = 100


class _Figure(Figure):
    """Writes names as they are, also those with two dollar signs, which are no formulas."""

    def draw(self, renderer) -> None:
        for text in self.findobj(Text):
            _as_it_is(text)
        super().draw(renderer)


def _as_it_is(text: Text) -> Text:
    # What matplotlib writes itself, at ticks of logarithmic axes, is a formula.
    if text.get_text() and r"\mathdefault" not in text.get_text():
        text.set_parse_math(False)
    return text


def new_figure(width: float, height: float, **options) -> Figure:
    """A figure of its own, so that nothing global changes and no display is needed.

    Args:
        width: inches.
        height: inches.
        options: of :class:`matplotlib.figure.Figure`.

    Returns:
        With a canvas.
    """
    figure = _Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER, **options)
    FigureCanvasAgg(figure)
    return figure


def width_for(runs: Collection) -> float:
    """Inches of a chart of several runs: more than four need room for their names and numbers."""
    return max(7.6, 1.95 * len(runs))


def figure_to_array(figure: Figure) -> np.ndarray:
    """Render a figure.

    Args:
        figure: a figure, with or without a canvas.

    Returns:
        RGB, (H, W, 3) uint8.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def bare(axes: Axes, grid: str | None = None) -> None:
    """Axes with a line at the bottom and perhaps a grid.

    Args:
        axes: changed.
        grid: "x", "y", "both", or None for none.
    """
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(length=0, labelcolor=INK, labelsize=9)
    if grid:
        axes.grid(axis=grid, color=GRID, lw=0.8)
        axes.set_axisbelow(True)


def headline(figure: Figure, title: str, legend: Sequence[tuple[str, str]]) -> None:
    """Title at the left; below it the names of the series in their colors.

    Args:
        figure: with a canvas; its uppermost 0.8 inches are free.
        title: words.
        legend: name and color of each series.
    """
    figure.text(0.02, 1 - 0.114 / figure.get_figheight(), title, va="top", size=13, color=INK)
    x, width = 0.02, figure.get_figwidth() * figure.dpi
    # As far below the title in inches, whatever the height.
    y = 1 - 0.456 / figure.get_figheight()
    for name, color in legend:
        square = figure.text(x, y, "■", va="top", size=11, color=color)
        x += (square.get_window_extent().width + 4) / width
        text = _as_it_is(figure.text(x, y - 0.002, name, va="top", size=10, color=INK))
        x += (text.get_window_extent().width + 18) / width


def shrink(text: Text, width: float) -> Text:
    """Make words smaller where they would be too long.

    Args:
        text: changed, if it is longer.
        width: pixels that it may take.

    Returns:
        The same text.
    """
    _as_it_is(text)
    for _ in range(4):  # widths of small letters are whole pixels, so once may not be enough
        length = text.get_window_extent().width
        if not length > width > 0:
            break
        text.set_fontsize(text.get_fontsize() * width / length)
    return text


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart until neighbors are ``gap`` apart, each as little as needed.

    Args:
        values: positions.
        gap: least distance.

    Returns:
        Positions in the same order.
    """
    order = np.argsort(values, kind="stable")
    placed = np.asarray(values, dtype=float)[order]
    for _ in range(100):
        short = gap - np.diff(placed)
        if (short <= 1e-9).all():
            break
        for i in np.flatnonzero(short > 0):
            lack = max(0.0, gap - (placed[i + 1] - placed[i]))
            placed[i] -= lack / 2
            placed[i + 1] += lack / 2
    result = np.empty_like(placed)
    result[order] = placed
    return result.tolist()
