"""Figures of an evaluation, as Matplotlib figures without global state.

Colors of rare, common and frequent: :mod:`lvis_tde.visualization.charts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from ..evaluation.confusion import OUTCOMES, Confusions
from ..evaluation.result import LVISResult
from .charts import GROUP_COLORS as COLORS
from .charts import GROUPS as NAMES

RUN_COLORS = ("#9aa5b1", "#1f2933", "#627d98", "#cbd2d9")
_OUTCOME_COLORS = ("#1f2933", COLORS["r"], COLORS["c"], COLORS["f"], "#dde2e7")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _clean(axes, grid: str | None = "y") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if grid:
        axes.grid(axis=grid, color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)


def frequency_bars(results: Mapping[str, LVISResult]) -> Figure:
    """AP over all, rare, common and frequent classes, one bar a run.

    Args:
        results: name of a run to its result.

    Returns:
        The figure.
    """
    figure = _figure(7, 3.6)
    axes = figure.add_subplot()
    groups = ("AP", "APr", "APc", "APf")
    width = 0.8 / len(results)
    single = len(results) == 1
    for i, (name, result) in enumerate(results.items()):
        values = [result.metrics[g] for g in groups]
        at = np.arange(len(groups)) + (i - (len(results) - 1) / 2) * width
        color = [RUN_COLORS[1], *COLORS.values()] if single else RUN_COLORS[i % 4]
        bars = axes.bar(at, np.maximum(values, 0), width * 0.94, color=color, label=name)
        axes.bar_label(
            bars, ["n/a" if v < 0 else f"{v:.1f}" for v in values], padding=2, fontsize=9
        )
    labels = ["all", *(f"{NAMES[f]} (AP{f})" for f in "rcf")]
    axes.set_xticks(np.arange(len(groups)), labels)
    axes.set_ylabel(f"{next(iter(results.values())).iou_type} AP (%)")
    axes.margins(y=0.12)
    if not single:
        axes.legend(frameon=False, fontsize=9)
    _clean(axes)
    return figure


def ap_against_images(results: Mapping[str, LVISResult]) -> Figure:
    """AP of each class against its training images, one panel a run, with the mean by decile.

    Args:
        results: name of a run to its result.

    Returns:
        The figure.
    """
    figure = _figure(5.6 * len(results) + 0.4, 4)
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, (name, result) in zip(panels, results.items()):
        rows = dots(result)
        for f, color in COLORS.items():
            some = [row for row in rows if row["frequency"] == f]
            axes.scatter(
                [row["image_count"] for row in some],
                [row["AP"] for row in some],
                s=14,
                color=color,
                alpha=0.55,
                linewidths=0,
                label=NAMES[f],
            )
        x, y = trend(rows)
        axes.plot(x, y, color="#1f2933", linewidth=1.8, label="mean by tenth of the classes")
        axes.set_xscale("log")
        axes.set_xlim(0.8, 1.3 * max((row["image_count"] for row in rows), default=10))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_ylim(-3, 103)
        axes.set_xlabel("training images of the class")
        axes.set_title(name, fontsize=10)
        _clean(axes, "both")
    panels[0].set_ylabel(f"{next(iter(results.values())).iou_type} AP of the class (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    return figure


def dots(result: LVISResult) -> list[dict[str, Any]]:
    """Classes with an AP and at least one training image.

    Args:
        result: of a run.

    Returns:
        Their rows, by number of training images.
    """
    rows = [r for r in result.per_category if r["image_count"] and not math.isnan(r["AP"])]
    return sorted(rows, key=lambda row: row["image_count"])


def trend(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Geometric mean of images and mean AP of each tenth of the classes.

    Classes with the same number of images stay together.

    Args:
        rows: from :func:`dots`.

    Returns:
        Training images and AP (%), at most ten each.
    """
    if not rows:
        return [], []
    images = np.array([row["image_count"] for row in rows], dtype=np.float64)
    ap = np.array([row["AP"] for row in rows])
    edges = np.unique(np.quantile(images, np.arange(1, 10) / 10))
    tenth = np.searchsorted(edges, images, side="right")
    parts = [tenth == i for i in np.unique(tenth)]
    x = [float(np.exp(np.log(images[part]).mean())) for part in parts]
    return x, [float(ap[part].mean()) for part in parts]


def changes(before: LVISResult, after: LVISResult, count: int = 10) -> tuple[list, list]:
    """Classes whose AP rose and fell most.

    Args:
        before: one run.
        after: another run on the same annotations.
        count: how many of each.

    Returns:
        Rows of ``after`` with ``before`` and ``change`` added: most improved first, most damaged
        first.
    """
    old = {row["id"]: row["AP"] for row in before.per_category}
    rows = []
    for row in after.per_category:
        change = row["AP"] - old.get(row["id"], math.nan)
        if not math.isnan(change):
            rows.append({**row, "before": old[row["id"]], "change": change})
    rows.sort(key=lambda row: -row["change"])
    better = [row for row in rows[:count] if row["change"] > 0]
    return better, [row for row in rows[::-1][:count] if row["change"] < 0]


def change_bars(before: LVISResult, after: LVISResult) -> Figure:
    """The ten most improved and the ten most damaged classes.

    Args:
        before: one run.
        after: another.

    Returns:
        The figure.
    """
    better, worse = changes(before, after)
    rows = better + worse[::-1]
    figure = _figure(7, max(0.26 * len(rows) + 0.9, 1.6))
    axes = figure.add_subplot()
    if not rows:
        axes.text(0.5, 0.5, "no class changed", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    at = np.arange(len(rows))[::-1]
    bars = axes.barh(
        at,
        [row["change"] for row in rows],
        color=[COLORS[row["frequency"]] for row in rows],
        height=0.72,
    )
    axes.bar_label(
        bars,
        [f"{row['change']:+.1f}  ({row['before']:.0f} → {row['AP']:.0f})" for row in rows],
        padding=3,
        fontsize=7.5,
    )
    axes.set_yticks(at, [f"{row['name'][:28]} · {row['num_gt']}" for row in rows], fontsize=8)
    axes.axvline(0, color="#1f2933", linewidth=0.8)
    axes.set_xlabel("change of AP (points)   ·   beside each name: its objects in this set")
    axes.margins(x=0.28)
    handles = [axes.bar(0, 0, color=COLORS[f]) for f in "rcf"]
    axes.legend(handles, [NAMES[f] for f in "rcf"], frameon=False, fontsize=8, loc="lower right")
    _clean(axes, "x")
    return figure


def confusion_bars(confusions: Mapping[str, Confusions]) -> Figure:
    """What objects of rare classes are taken for: shares by run, and the most frequent mistakes.

    Args:
        confusions: name of a run to its confusions.

    Returns:
        The figure.
    """
    count = len(confusions)
    figure = _figure(5.2 * count + 2.0, 5.4)
    grid = figure.add_gridspec(2, count, height_ratios=[0.5 + 0.35 * count, 4.2])
    axes = figure.add_subplot(grid[0, :])
    for row, item in enumerate(reversed(confusions.values())):
        total, left = max(sum(item.outcomes.values()), 1), 0.0
        for outcome, color in zip(OUTCOMES, _OUTCOME_COLORS):
            share = 100 * item.outcomes[outcome] / total
            label = outcome if row == 0 else None
            axes.barh(row, share, left=left, color=color, height=0.62, label=label)
            if share >= 4:
                light = color in _OUTCOME_COLORS[:4]
                text_color = "white" if light else "#1f2933"
                middle = left + share / 2
                axes.text(
                    middle,
                    row,
                    f"{share:.0f}",
                    ha="center",
                    va="center",
                    color=text_color,
                    fontsize=8,
                )
            left += share
    axes.set_yticks(range(count), list(reversed(confusions)), fontsize=8)
    axes.set_xlim(0, 100)
    axes.set_xticks([])
    axes.set_title("objects of rare classes are detected as … (%)", fontsize=9, loc="left")
    figure.legend(
        *axes.get_legend_handles_labels(),
        frameon=False,
        fontsize=8,
        ncols=5,
        loc="outside lower center",
    )
    for side in axes.spines.values():
        side.set_visible(False)
    for column, (name, item) in enumerate(confusions.items()):
        axes = figure.add_subplot(grid[1, column])
        pairs = item.pairs.most_common(15)
        at = np.arange(len(pairs))[::-1]
        colors = [COLORS[item.frequencies[predicted]] for (_, predicted), _ in pairs]
        bars = axes.barh(at, [n for _, n in pairs], color=colors, height=0.7)
        axes.bar_label(bars, padding=2, fontsize=7.5)
        axes.set_yticks(at, [f"{a[:22]} → {b[:22]}" for (a, b), _ in pairs], fontsize=7.5)
        axes.set_title(f"{name}: most frequent mistakes (objects)", fontsize=9, loc="left")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _clean(axes, "x")
    return figure
