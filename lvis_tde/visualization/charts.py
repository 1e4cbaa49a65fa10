"""Charts of average precision per frequency group, and of what TDE does to one detection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .figure import bare, headline, new_figure, spread, width_for
from .palette import (
    GRID,
    GROUP_COLORS,
    GROUPS,
    INK,
    KINDS,
    MUTED,
    PALE,
    PAPER,
    RUN_NAMES,
    TOP1_GROUPS,
    run_colors,
)

__all__ = ["TOP1_BARS", "plot_ap_over_alpha", "plot_explanation", "plot_group_ap"]

METRIC_GROUPS = {"APr": "r", "APc": "c", "APf": "f"}
METRIC_NAMES = {"AP": "all classes", **{m: GROUPS[g] for m, g in METRIC_GROUPS.items()}}
_AP_BARS = {m: (f"{m}\n{n}", GROUP_COLORS.get(m[2:], INK)) for m, n in METRIC_NAMES.items()}
TOP1_BARS = {
    "top1": ("all images", INK),
    **{name: (name, GROUP_COLORS[group]) for group, name in TOP1_GROUPS.items()},
}
"""Accuracies to draw as bars: for each its label and its color in a chart of one run."""


def plot_group_ap(
    results: Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    *,
    task: str = "segm",
    names: Mapping[str, str] | None = None,
    title: str | None = None,
    metrics: Mapping[str, tuple[str, str]] = _AP_BARS,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Figure:
    """Bars of AP, APr, APc and APf, one per run; the bars of a single run have its groups' colors.

    Args:
        results: for each run its results ``{"segm": {"AP", "APr", "APc", "APf"}, "bbox": ...}`` in
            percent, as ``runs`` in the demo's ``results.json``; or a sequence of them, one per
            seed, drawn as the mean with a dot for each seed. NaN, or as in ``lvis`` a negative
            number, where a group has no classes.
        task: "segm", "bbox" or "boundary".
        names: what to call the runs; default :data:`~lvis_tde.visualization.palette.RUN_NAMES`.
        title: default: names the task.
        metrics: other metrics to draw, as :data:`TOP1_BARS`: label and color of each.
        intervals: run to the ends of a line over the bar of each metric that has one.

    Returns:
        The figure.

    Raises:
        ValueError: if ``results`` is empty or a run lacks the task.
    """
    if not results:
        raise ValueError("results is empty: pass at least one run")
    names = {**RUN_NAMES, **(names or {})}
    colors = run_colors(results)
    single = [color for _, color in metrics.values()] if len(results) == 1 else None
    figure = new_figure(width_for(results), 3.8)
    axes = figure.add_axes((0.03, 0.13, 0.95, 0.66))
    width, highest, most = 0.8 / len(results), 1.0, 1
    for index, (run, seeds) in enumerate(results.items()):
        seeds = [seeds] if isinstance(seeds, Mapping) else list(seeds)
        if not seeds or any(task not in seed for seed in seeds):
            raise ValueError(f"run {run!r} has no results for task {task!r}")
        for group, metric in enumerate(metrics):
            values = np.array([seed[task].get(metric, math.nan) for seed in seeds], dtype=float)
            values[values < 0] = math.nan
            x = group + (index - (len(results) - 1) / 2) * width
            if np.isnan(values).all():
                axes.text(x, 0, "n/a", ha="center", va="bottom", size=8, color=MUTED)
                continue
            mean, top = np.nanmean(values), np.nanmax(values)
            axes.bar(x, mean, width * 0.92, color=single[group] if single else colors[run])
            if len(values) > 1:
                most = max(most, len(values))
                offsets = np.linspace(-0.25, 0.25, len(values)) * width
                axes.plot(x + offsets, values, "o", ms=3, color=PAPER, mec=INK, mew=0.8)
            ends = (intervals or {}).get(run, {}).get(metric)
            if ends and np.isfinite(ends).all():
                for shade, thickness in ((PAPER, 3.2), (INK, 1.3)):  # to be seen on any color
                    axes.plot([x, x], ends, color=shade, lw=thickness, solid_capstyle="butt")
                top = max(top, ends[1])
            _label(axes, f"{mean:.1f}", (x, top), (0, 3), ha="center", va="bottom", size=9)
            highest = max(highest, top)
    bare(axes)
    axes.set_yticks([])
    axes.set_ylim(0, highest * 1.1)
    axes.set_xlim(-0.5, len(metrics) - 0.5)
    labels = [label for label, _ in metrics.values()]
    axes.set_xticks(range(len(metrics)), labels, size=10, color=INK)
    legend = [(names.get(run, run), color) for run, color in colors.items()]
    of_seeds = f", mean and each of {most} seeds" if most > 1 else ""
    title = title or f"{KINDS.get(task, task)} AP by class frequency (%){of_seeds}"
    # The colors of a single run are those of the groups, which the axis names.
    headline(figure, f"{title}: {legend[0][0]}" if single else title, [] if single else legend)
    return figure


def plot_ap_over_alpha(
    curve: Mapping[float, Mapping[str, float]],
    *,
    chosen: float | None = None,
    title: str = "Mask AP on the calibration split over alpha (%)",
    lines: Mapping[str, tuple[str, str]] | None = None,
) -> Figure:
    """Lines of AP, APr, APc and APf over the strength of TDE, with the chosen alpha marked.

    Args:
        curve: for each alpha (0: TDE off) its ``{"AP", "APr", "APc", "APf"}`` in percent.
        chosen: the alpha to mark.
        title: title of the chart.
        lines: other metrics, as :data:`TOP1_BARS`; the first is drawn bold.

    Returns:
        The figure.

    Raises:
        ValueError: if ``curve`` is empty.
    """
    if not curve:
        raise ValueError("curve is empty: pass the AP of at least one alpha")
    alphas = sorted(curve)
    figure = new_figure(7.6, 3.8)
    axes = figure.add_axes((0.07, 0.14, 0.76, 0.70))
    ends = []
    lines = lines or _AP_BARS
    for metric, (label, color) in lines.items():
        values = np.array([curve[a].get(metric, math.nan) for a in alphas], dtype=float)
        values[values < 0] = math.nan  # no classes, as lvis says it
        known = np.flatnonzero(~np.isnan(values))
        if not len(known):
            continue
        width = 2.6 if metric == next(iter(lines)) else 1.6
        axes.plot(alphas, values, "-o", color=color, lw=width, ms=4, clip_on=False, zorder=3)
        ends.append((values[known[-1]], label.replace("\n", "  "), color))
    bare(axes, "y")
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.set_xlabel("alpha (0: TDE off)", size=10, color=MUTED)
    axes.tick_params(axis="x", length=3, color=MUTED, labelcolor=INK, labelsize=9)
    axes.margins(x=0.02)
    # From zero: an axis cut off below would make much of little.
    high = 1.04 * axes.get_ylim()[1]
    gap = high * 0.065
    for y, (_, label, color) in zip(spread([e[0] for e in ends], gap), ends):
        ends_of = {"xycoords": ("axes fraction", "data"), "va": "center", "size": 9.5}
        _label(axes, label, (1, y), (8, 0), color=color, **ends_of)
    if chosen is not None:
        axes.axvline(chosen, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
        above = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
        _label(axes, f"chosen: {chosen:g}", (chosen, 1), (0, 2), size=9, color=MUTED, **above)
    axes.set_ylim(0, high)
    headline(figure, title, [])
    return figure


def plot_explanation(
    explanation,
    row: int,
    *,
    class_names: Sequence[str],
    class_frequency: Sequence[str] | None = None,
    top: int = 8,
    title: str | None = None,
    group_names: Mapping[str, str] = GROUPS,
    image: np.ndarray | None = None,
    box: Sequence[float] | None = None,
) -> Figure:
    """Bars of the effects on a detection's top classes, and of their scores without and with TDE.

    Args:
        explanation: an :class:`~lvis_tde.calibration.explain.Explanation`.
        row: which of its rows.
        class_names: name of each class, as ``thing_classes``.
        class_frequency: "r", "c" or "f" of each class; None draws all in one color.
        top: number of classes: those with the highest scores without or with TDE.
        title: default: names the class that TDE makes of it.
        group_names: of "r", "c" and "f".
        image: RGB, (H, W, 3) uint8, to show what is explained.
        box: x0, y0, x1, y1 of the detection in its pixels.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no such row, or the classes are not as many as the names.
    """
    if not 0 <= row < len(explanation):
        raise ValueError(f"row={row} is not one of the {len(explanation)} that are explained")
    columns, num_classes = explanation.total.shape[1], len(class_names)
    if num_classes not in (columns, columns - 1):
        raise ValueError(f"{num_classes} class names for {columns - 1} classes")
    # Neither images nor sigmoids have a background.
    background = num_classes < columns and not getattr(explanation, "sigmoid", False)
    values = {
        name: getattr(explanation, name)[row].tolist()
        for name in ("total", "adjusted", "factual_probs", "probs")
    }
    before, after = values["factual_probs"], values["probs"]
    order = sorted(range(num_classes), key=lambda i: (-max(before[i], after[i]), i))[:top]
    order = sorted(order, key=lambda i: (-after[i], -before[i], i))
    if background:
        order.append(num_classes)
    names = [*(name.replace("_", " ") for name in class_names), "background"]
    groups = list(class_frequency) if class_frequency else ["c"] * num_classes
    colors = [*(GROUP_COLORS[group] for group in groups), MUTED]

    left = 0.0 if image is None or box is None else 2.3
    figure = new_figure(9.0 + left, 1.45 + 0.42 * len(order))
    height, width = figure.get_figheight(), figure.get_figwidth()
    bottom, tall = 0.55 / height, 1 - 1.5 / height
    if image is not None and box is not None:
        place = (0.02, bottom, (left - 0.1) / width, tall)
        _show_crop(figure.add_axes(place, anchor="NW"), image, box)
    panels = (
        (((left + 1.89) / width, 3.24 / width), "total", "adjusted", "logit", "{:+.2f}"),
        (((left + 5.67) / width, 3.15 / width), "factual_probs", "probs", "score", "{:.3f}"),
    )
    for (x, wide), first, second, label, form in panels:
        axes = figure.add_axes((x, bottom, wide, tall))
        for y, i in enumerate(order):
            axes.barh(y - 0.19, values[first][i], 0.36, color=colors[i], alpha=0.35)
            axes.barh(y + 0.19, values[second][i], 0.36, color=colors[i])
            for shift, value in ((-0.19, values[first][i]), (0.19, values[second][i])):
                at = max(value, 0), y + shift
                _label(axes, form.format(value), at, (3, 0), va="center", size=7.5)
        bare(axes)
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.set_ylim(len(order) - 0.5, -0.5)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.16 * (high - low))
        axes.set_yticks([])
        axes.set_xlabel(label, size=10, color=MUTED)
        axes.tick_params(axis="x", labelcolor=MUTED, labelsize=8)
        if background:
            axes.axhline(len(order) - 1.5, color=GRID, lw=0.8)
        if label == "logit":
            axes.set_yticks(range(len(order)), [names[i] for i in order], size=9.5)
            axes.tick_params(axis="y", length=0)
            for tick, i in zip(axes.get_yticklabels(), order):
                tick.set_color(colors[i])
    cosines = ", ".join(f"{value:.2f}" for value in explanation.cosine[row].tolist())
    best = max(range(num_classes), key=after.__getitem__)
    legend = [
        ("light: without TDE (total effect)", PALE),
        (
            "full: with TDE (direct effect)" if not explanation.other.any() else "full: adjusted",
            INK,
        ),
    ]
    if class_frequency:
        legend += [(name, GROUP_COLORS[group]) for group, name in group_names.items()]
    steps = explanation.steps or "alpha 0"
    words = f"{names[best]}: {steps}, cosine to the mean {cosines}"
    headline(figure, title or words, legend)
    return figure


def _show_crop(axes, image: np.ndarray, box: Sequence[float]) -> None:
    """A box of an image, and a little around it."""
    x0, y0, x1, y1 = (float(value) for value in box)
    around = 0.25 * max(x1 - x0, y1 - y0, 8)
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), interpolation="bicubic")
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=INK, lw=1.5))
    axes.set_xlim(max(0, x0 - around), min(image.shape[1], x1 + around))
    axes.set_ylim(min(image.shape[0], y1 + around), max(0, y0 - around))
    axes.set_axis_off()


def _label(axes, text: str, at, offset, *, color: str = INK, **options) -> None:
    """Words beside a point, moved by some typographic points."""
    axes.annotate(text, at, offset, textcoords="offset points", color=color, **options)
