"""Charts of single classes: AP against training images, what changed, what is taken for what.

A row is a dict of a class, as in :class:`lvis_tde.evaluation.LVISResult`: ``name, frequency`` ("r",
"c" or "f"), ``image_count, AP`` and ``num_gt``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from .figure import bare, headline, new_figure, width_for
from .palette import (
    GROUP_COLORS,
    GROUPS,
    INK,
    KINDS,
    MUTED,
    OUTCOME_COLORS,
    PAPER,
    RUN_NAMES,
    run_colors,
)

__all__ = [
    "FEW_DOTS",
    "ap_against_images",
    "change_bars",
    "confusion_bars",
    "highest_ap",
    "plot_ap_over_images",
    "rank_bars",
]

Rows = Sequence[Mapping[str, Any]]
FEW_DOTS = 60
"""With fewer classes their dots are larger."""


def highest_ap(rows: Rows) -> int:
    """Upper end of an axis of AP.

    Args:
        rows: of all panels that shall have it.

    Returns:
        The least multiple of 20 that no AP is above; at least 20.
    """
    return max(20, 20 * math.ceil(max((row["AP"] for row in rows), default=0) / 20))


def ap_against_images(
    runs: Mapping[str, tuple[Rows, tuple[Sequence[float], Sequence[float]]]],
    *,
    task: str = "segm",
    title: str | None = None,
    groups: Mapping[str, str] = GROUPS,
) -> Figure:
    """A dot per class and a line through means, one panel per run.

    Args:
        runs: name of a run to its rows, with an ``image_count`` and an ``AP`` each, and to the
            training images and AP of the line.
        task: "segm", "bbox" or "boundary".
        title: default: names the task.
        groups: names of the groups.

    Returns:
        The figure.
    """
    width = 5.6 * len(runs) + 0.4
    figure = new_figure(width, 4.4)
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(0.5 / width, 0.12, 1 - 0.3 / width, 0.79, wspace=0.08)
    top = highest_ap([row for rows, _ in runs.values() for row in rows])
    for axes, (name, (rows, line)) in zip(panels, runs.items()):
        for f, color in GROUP_COLORS.items():
            some = [row for row in rows if row["frequency"] == f]
            x, y = [row["image_count"] for row in some], [row["AP"] for row in some]
            # A few dots would vanish under the line.
            look = {"s": 42, "zorder": 3} if len(rows) < FEW_DOTS else {"s": 14, "alpha": 0.55}
            axes.scatter(x, y, color=color, linewidths=0, clip_on=False, **look)
        axes.plot(*line, color=INK, lw=1.8, clip_on=False)
        axes.set_xscale("log")
        axes.set_xlim(0.8, 1.3 * max((row["image_count"] for row in rows), default=10))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.minorticks_off()
        axes.set_ylim(0, 1.03 * top)
        axes.set_xlabel("training images of the class", color=MUTED)
        axes.set_title(name, size=10, color=INK)
        bare(axes, "both")
    title = title or f"{KINDS.get(task, task)} AP of each class against its training images (%)"
    headline(figure, title, [*_legend(groups), ("mean of each tenth of the classes", INK)])
    return figure


def plot_ap_over_images(
    runs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    bounds: tuple[int, int],
    names: Mapping[str, str] | None = None,
    task: str = "segm",
    title: str | None = None,
) -> Figure:
    """A line per run, all in one panel: where on the tail they differ.

    Args:
        runs: name of a run to training images, ascending, and AP of its line's points.
        bounds: most training images of a rare and of a common class.
        names: what to call the runs; default :data:`~lvis_tde.visualization.palette.RUN_NAMES`.
        task: "segm", "bbox" or "boundary".
        title: default: names the task.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("runs is empty: pass at least one run")
    colors, names = run_colors(runs), {**RUN_NAMES, **(names or {})}
    figure = new_figure(width_for(runs), 4.2)
    axes = figure.add_axes((0.065, 0.135, 0.915, 0.63))
    for run, (images, ap) in runs.items():
        axes.plot(images, ap, "-o", color=colors[run], lw=2.2, ms=5, clip_on=False, zorder=3)
    points = [x for images, _ in runs.values() for x in images]
    axes.set_xscale("log")
    low, high = min(points, default=1) / 1.25, max(points, default=100) * 1.25
    axes.set_xlim(low, high)
    top = axes.get_ylim()[1]
    axes.set_ylim(0, 1.04 * top if any(len(ap) for _, ap in runs.values()) else 100)
    edges = [low, *(min(max(bound, low), high) for bound in bounds), high]
    for edge in edges[1:-1]:
        axes.axvline(edge, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
    place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom", "size": 10}
    for group, left, right in zip(GROUPS, edges, edges[1:]):
        if right > left:
            middle = math.sqrt(left * right)
            axes.text(middle, 1.01, GROUPS[group], color=GROUP_COLORS[group], **place)
    ticks = [t for e in range(-1, 7) for t in (10**e, 2 * 10**e, 5 * 10**e) if low <= t <= high]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training images of a class (each point: a tenth of the classes)", color=MUTED)
    bare(axes, "y")
    axes.tick_params(axis="x", length=3, color=MUTED)
    axes.tick_params(axis="y", labelcolor=MUTED)
    title = title or f"{KINDS.get(task, task)} AP over training images (%)"
    headline(figure, title, [(names.get(run, run), color) for run, color in colors.items()])
    return figure


def change_bars(
    rows: Rows,
    *,
    title: str = "Change of AP, most improved and most damaged classes (points)",
    groups: Mapping[str, str] = GROUPS,
    counted: str = "objects",
) -> Figure:
    """A bar per class.

    Args:
        rows: with ``before`` and ``change`` of AP, too; from top to bottom.
        title: of the figure.
        groups: names of the groups.
        counted: what ``num_gt`` counts.

    Returns:
        The figure.
    """
    height = 0.26 * max(len(rows), 2) + 1.5
    figure = new_figure(7.6, height)
    axes = figure.add_axes((0.3, 0.6 / height, 0.68, 1 - 1.5 / height))
    if not rows:
        axes.text(0.5, 0.5, "no class changed", ha="center", transform=axes.transAxes, color=INK)
        axes.set_axis_off()
        headline(figure, title, [])
        return figure
    at = np.arange(len(rows))[::-1]
    values, colors = [r["change"] for r in rows], [GROUP_COLORS[r["frequency"]] for r in rows]
    bars = axes.barh(at, values, color=colors, height=0.72)
    words = [f"{r['change']:+.1f}  ({r['before']:.0f} → {r['AP']:.0f})" for r in rows]
    axes.bar_label(bars, [w.replace("-", "−") for w in words], padding=3, fontsize=7.5, color=INK)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_xlabel(f"beside each name: its {counted} in this set", size=9, color=MUTED)
    # Room for the words at the ends of the bars.
    low, high = min(0, *values), max(0, *values)
    axes.set_xlim(low - 0.3 * (high - low) * (low < 0), high + 0.3 * (high - low) * (high > 0))
    axes.set_ylim(-0.7, len(rows) - 0.3)
    bare(axes, "x")
    axes.set_yticks(at, [f"{row['name'][:28]} · {row['num_gt']}" for row in rows], size=8)
    headline(figure, title, _legend(groups))
    return figure


def confusion_bars(
    outcomes: Mapping[str, Mapping[str, int]],
    mistakes: Mapping[str, Sequence[tuple[str, str, str, int]]],
    *,
    title: str = "Objects of rare classes are detected as … (%)",
    counted: str = "objects",
) -> Figure:
    """What objects of rare classes are taken for: shares per run, and the most frequent mistakes.

    Args:
        outcomes: name of a run to its outcomes, in the order of
            :data:`~lvis_tde.visualization.palette.OUTCOME_COLORS`, and their numbers of objects.
        mistakes: name of a run to (class, what it is taken for, the latter's frequency, objects),
            from top to bottom.
        title: of the figure.
        counted: what the numbers count.

    Returns:
        The figure.
    """
    count = len(outcomes)
    height = 5.3 + 0.35 * count
    figure = new_figure(5.2 * count + 2.0, height, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.75 / height), hspace=0.04)
    grid = figure.add_gridspec(2, count, height_ratios=[0.2 + 0.35 * count, 4.2])
    axes = figure.add_subplot(grid[0, :])
    _shares(axes, outcomes, OUTCOME_COLORS)
    for column, (name, rows) in enumerate(mistakes.items()):
        axes = figure.add_subplot(grid[1, column])
        at = np.arange(len(rows))[::-1]
        bars = axes.barh(at, [r[3] for r in rows], color=[GROUP_COLORS[r[2]] for r in rows])
        axes.bar_label(bars, padding=2, fontsize=7.5, color=INK)
        axes.set_title(f"{name}: most frequent mistakes ({counted})", size=9, loc="left", color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
        bare(axes, "x")
        axes.set_yticks(at, [f"{a[:22]} → {b[:22]}" for a, b, *_ in rows], size=7.5)
    legend = list(zip(next(iter(outcomes.values())), OUTCOME_COLORS))
    headline(figure, title, legend)
    return figure


def rank_bars(ranks: Mapping[str, Mapping[str, int]]) -> Figure:
    """Where the objects of rare classes stand among the detections of their own class.

    Args:
        ranks: name of a run to the three of :data:`lvis_tde.evaluation.confusion.RANKS`, in that
            order, and their numbers of objects.

    Returns:
        The figure.
    """
    height = 1.1 + 0.35 * len(ranks)
    figure = new_figure(9.2, height, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.75 / height))
    axes = figure.subplots()
    colors = (GROUP_COLORS["r"], OUTCOME_COLORS[0], OUTCOME_COLORS[-1])
    _shares(axes, ranks, colors)
    title = "Objects of rare classes are found, by the ranking within their class (%)"
    headline(figure, title, list(zip(next(iter(ranks.values())), colors)))
    return figure


def _shares(axes, runs: Mapping[str, Mapping[str, int]], colors: Sequence[str]) -> None:
    """A bar of 100 % per run, from top to bottom; the last part is pale."""
    for row, run in enumerate(list(runs.values())[::-1]):
        total, left = max(sum(run.values()), 1), 0.0
        for number, color in zip(run.values(), colors):
            share = 100 * number / total
            axes.barh(row, share, left=left, color=color, height=0.62)
            if share >= 4:
                text_color = INK if color == colors[-1] else PAPER
                place = {"ha": "center", "va": "center", "size": 8}
                axes.text(left + share / 2, row, f"{share:.0f}", color=text_color, **place)
            left += share
    bare(axes)
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(range(len(runs)), list(runs)[::-1])
    axes.set_xlim(0, 100)
    axes.set_xticks([])


def _legend(groups: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, GROUP_COLORS[group]) for group, name in groups.items()]
