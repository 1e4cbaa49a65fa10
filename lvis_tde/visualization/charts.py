"""Charts of average precision per frequency group.

Each is a matplotlib Figure of its own, without pyplot, so nothing global changes and no display is
needed. Colors are from Okabe and Ito's palette, which color-blind readers can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}
GROUP_COLORS = {"r": "#D55E00", "c": "#0072B2", "f": "#009E73"}
METRIC_GROUPS = {"APr": "r", "APc": "c", "APf": "f"}
METRIC_NAMES = {"AP": "all classes", **{m: GROUPS[g] for m, g in METRIC_GROUPS.items()}}
RUN_NAMES = {
    "softmax": "softmax",
    "softmax_tde": "softmax, TDE on",
    "deconfound": "de-confound, TDE off",
    "tde": "de-confound, TDE on",
}
RUN_COLORS = {
    "softmax": "#B8B8B8",
    "softmax_tde": "#6F6F6F",
    "deconfound": "#56B4E9",
    "tde": "#0B4F7D",
}
INK = "#222222"
_SPARE_COLORS = ("#CC79A7", "#E69F00", "#009E73", "#D55E00")
_MUTED, _GRID = "#6B6B6B", "#E3E3E3"
_DPI = 100


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


def plot_group_ap(
    results: Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    *,
    task: str = "segm",
    names: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Bars of AP, APr, APc and APf, one per run.

    Args:
        results: for each run its results ``{"segm": {"AP", "APr", "APc", "APf"}, "bbox": ...}`` in
            percent, as ``runs`` in the demo's ``results.json``; or a sequence of them, one per
            seed, drawn as the mean with a dot for each seed.
        task: "segm" or "bbox".
        names: what to call the runs; default :data:`RUN_NAMES`.
        title: default: names the task.

    Returns:
        The figure.

    Raises:
        ValueError: if ``results`` is empty or a run lacks the task.
    """
    if not results:
        raise ValueError("results is empty: pass at least one run")
    names = {**RUN_NAMES, **(names or {})}
    figure = Figure(figsize=(7.6, 3.8), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0.06, 0.13, 0.92, 0.66))
    metrics = ("AP", *METRIC_GROUPS)
    width = 0.8 / len(results)
    spare = iter(_SPARE_COLORS * len(results))
    highest, legend = 0.0, []
    for index, (run, seeds) in enumerate(results.items()):
        seeds = [seeds] if isinstance(seeds, Mapping) else list(seeds)
        if not seeds or any(task not in seed for seed in seeds):
            raise ValueError(f"run {run!r} has no results for task {task!r}")
        color = RUN_COLORS.get(run) or next(spare)
        legend.append((names.get(run, run), color))
        for group, metric in enumerate(metrics):
            values = np.array([seed[task].get(metric, math.nan) for seed in seeds], dtype=float)
            x = group + (index - (len(results) - 1) / 2) * width
            if np.isnan(values).all():
                axes.text(x, 0, "n/a", ha="center", va="bottom", size=8, color=_MUTED)
                continue
            mean, top = np.nanmean(values), np.nanmax(values)
            axes.bar(x, mean, width * 0.92, color=color)
            if len(values) > 1:
                offsets = np.linspace(-0.25, 0.25, len(values)) * width
                axes.plot(x + offsets, values, "o", ms=3, color="white", mec=INK, mew=0.8)
            axes.annotate(
                f"{mean:.1f}",
                (x, max(mean, top if len(values) > 1 else mean)),
                (0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                size=9,
                color=INK,
            )
            highest = max(highest, top)
    _bare(axes)
    axes.set_yticks([])
    axes.set_ylim(0, max(highest, 1.0) * 1.1)
    axes.set_xlim(-0.5, len(metrics) - 0.5)
    labels = [f"{metric}\n{METRIC_NAMES[metric]}" for metric in metrics]
    axes.set_xticks(range(len(metrics)), labels, size=10, color=INK)
    kind = {"segm": "Mask", "bbox": "Box"}.get(task, task)
    _headline(figure, title or f"{kind} AP by class frequency (%)", legend)
    return figure


def plot_ap_over_alpha(
    curve: Mapping[float, Mapping[str, float]],
    *,
    chosen: float | None = None,
    title: str = "Mask AP on the calibration split over alpha (%)",
) -> Figure:
    """Lines of AP, APr, APc and APf over the strength of TDE, with the chosen alpha marked.

    Args:
        curve: for each alpha (0: TDE off) its ``{"AP", "APr", "APc", "APf"}`` in percent.
        chosen: the alpha to mark.
        title: title of the chart.

    Returns:
        The figure.

    Raises:
        ValueError: if ``curve`` is empty.
    """
    if not curve:
        raise ValueError("curve is empty: pass the AP of at least one alpha")
    alphas = sorted(curve)
    figure = Figure(figsize=(7.6, 3.8), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0.07, 0.14, 0.76, 0.70))
    ends = []
    for metric in ("AP", *METRIC_GROUPS):
        values = np.array([curve[a].get(metric, math.nan) for a in alphas], dtype=float)
        known = np.flatnonzero(~np.isnan(values))
        if not len(known):
            continue
        color = INK if metric == "AP" else GROUP_COLORS[METRIC_GROUPS[metric]]
        axes.plot(
            alphas,
            values,
            "-o",
            color=color,
            lw=2.6 if metric == "AP" else 1.6,
            ms=4,
            clip_on=False,
            zorder=3,
        )
        ends.append((values[known[-1]], f"{metric}  {METRIC_NAMES[metric]}", color))
    _bare(axes)
    axes.grid(axis="y", color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, labelcolor=_MUTED, labelsize=9)
    axes.set_xlabel("alpha (0: TDE off)", size=10, color=_MUTED)
    axes.tick_params(axis="x", length=3, color=_MUTED, labelcolor=INK, labelsize=9)
    axes.margins(x=0.02)
    low, high = axes.get_ylim()
    gap = (high - low) * 0.065
    for y, (_, label, color) in zip(_spread([e[0] for e in ends], gap), ends):
        axes.annotate(
            label,
            (1, y),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            size=9.5,
            color=color,
        )
    if chosen is not None:
        axes.axvline(chosen, color=_MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"chosen: {chosen:g}",
            (chosen, 1),
            (0, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="bottom",
            size=9,
            color=_MUTED,
        )
    axes.set_ylim(low, high)
    _headline(figure, title, [])
    return figure


def plot_explanation(
    explanation,
    row: int,
    *,
    class_names: Sequence[str],
    class_frequency: Sequence[str] | None = None,
    top: int = 8,
    title: str | None = None,
) -> Figure:
    """Bars of the effects on a detection's top classes, and of their scores without and with TDE.

    Args:
        explanation: an :class:`~lvis_tde.calibration.explain.Explanation`.
        row: which of its rows.
        class_names: name of each class, as ``thing_classes``.
        class_frequency: "r", "c" or "f" of each class; None draws all in one color.
        top: number of classes: those with the highest scores without or with TDE.
        title: default: names the class that TDE makes of it.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no such row, or the classes are not as many as the names.
    """
    if not 0 <= row < len(explanation):
        raise ValueError(f"row={row} is not one of the {len(explanation)} that are explained")
    num_classes = explanation.total.shape[1] - 1
    if len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class names for {num_classes} classes")
    values = {
        name: getattr(explanation, name)[row].tolist()
        for name in ("total", "direct", "factual_probs", "probs")
    }
    before, after = values["factual_probs"], values["probs"]
    order = sorted(range(num_classes), key=lambda i: (-max(before[i], after[i]), i))[:top]
    order = [*sorted(order, key=lambda i: (-after[i], -before[i], i)), num_classes]
    names = [*(name.replace("_", " ") for name in class_names), "background"]
    groups = list(class_frequency) if class_frequency else ["c"] * num_classes
    colors = [*(GROUP_COLORS[group] for group in groups), _MUTED]

    figure = Figure(figsize=(9.0, 1.45 + 0.42 * len(order)), dpi=_DPI, facecolor="white")
    height = figure.get_figheight()
    bottom, tall = 0.55 / height, 1 - 1.5 / height
    panels = (
        ((0.21, bottom, 0.36, tall), "total", "direct", "logit", "{:+.2f}"),
        ((0.63, bottom, 0.35, tall), "factual_probs", "probs", "score", "{:.3f}"),
    )
    for place, first, second, label, form in panels:
        axes = figure.add_axes(place)
        for y, i in enumerate(order):
            axes.barh(y - 0.19, values[first][i], 0.36, color=colors[i], alpha=0.35)
            axes.barh(y + 0.19, values[second][i], 0.36, color=colors[i])
            for shift, value in ((-0.19, values[first][i]), (0.19, values[second][i])):
                axes.annotate(
                    form.format(value),
                    (max(value, 0), y + shift),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    size=7.5,
                    color=INK,
                )
        _bare(axes)
        axes.axvline(0, color=_MUTED, lw=0.8)
        axes.set_ylim(len(order) - 0.5, -0.5)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.16 * (high - low))
        axes.set_yticks([])
        axes.set_xlabel(label, size=10, color=_MUTED)
        axes.tick_params(axis="x", labelcolor=_MUTED, labelsize=8)
        axes.axhline(len(order) - 1.5, color=_GRID, lw=0.8)
        if label == "logit":
            axes.set_yticks(range(len(order)), [names[i] for i in order], size=9.5)
            axes.tick_params(axis="y", length=0)
            for tick, i in zip(axes.get_yticklabels(), order):
                tick.set_color(colors[i])
    cosines = ", ".join(f"{value:.2f}" for value in explanation.cosine[row].tolist())
    best = max(range(num_classes), key=after.__getitem__)
    legend = [
        ("light: without TDE (total effect)", "#BBBBBB"),
        ("full: with TDE (direct effect)", INK),
    ]
    if class_frequency:
        legend += [(GROUPS[group], GROUP_COLORS[group]) for group in GROUPS]
    words = f"{names[best]}: alpha {explanation.alpha:g}, cosine to the mean {cosines}"
    _headline(figure, title or words, legend)
    return figure


def _bare(axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.tick_params(axis="x", length=0)


def _headline(figure: Figure, title: str, legend: Sequence[tuple[str, str]]) -> None:
    """Title at the left; below it the names of the series in their colors."""
    FigureCanvasAgg(figure)
    figure.text(0.02, 1 - 0.114 / figure.get_figheight(), title, va="top", size=13, color=INK)
    x, width = 0.02, figure.get_figwidth() * figure.dpi
    # As far below the title in inches, whatever the height.
    y = 1 - 0.456 / figure.get_figheight()
    for name, color in legend:
        square = figure.text(x, y, "■", va="top", size=11, color=color)
        x += (square.get_window_extent().width + 4) / width
        text = figure.text(x, y - 0.002, name, va="top", size=10, color=INK)
        x += (text.get_window_extent().width + 18) / width


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart until neighbors are ``gap`` apart, each as little as needed."""
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
