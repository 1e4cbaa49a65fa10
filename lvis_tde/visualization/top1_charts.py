"""Charts of classifiers: runs by group, accuracy under shifted priors, calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .charts import TOP1_BARS
from .figure import bare, headline, new_figure, spread
from .palette import GRID, INK, MUTED, PAPER, RUN_NAMES, run_colors

__all__ = ["plot_reliability", "plot_shifts", "plot_top1_runs"]

Seeds = Sequence[Mapping[str, float]]
Intervals = Mapping[str, Mapping[str, tuple[float, float]]]


def plot_top1_runs(
    sets: Mapping[str, Mapping[str, Seeds]],
    *,
    intervals: Mapping[str, Intervals] | None = None,
    names: Mapping[str, str] | None = None,
    title: str = "Top-1 accuracy by training images of the class (%)",
) -> Figure:
    """A line of dots per run, a column per group, a block per data set: for many runs.

    Args:
        sets: name of a data set to its runs, each with one mapping per seed from ``top1``,
            ``many``, ``medium`` and ``few`` to percent.
        intervals: data set to run to metric to the ends of a line through the dot.
        names: what to call the runs; default :data:`~lvis_tde.visualization.palette.RUN_NAMES`.
        title: of the chart.

    Returns:
        The figure: the mean as a dot, its value beside it, seeds as rings, and the first run's
        mean as a line from top to bottom.

    Raises:
        ValueError: a data set without runs.
    """
    if not sets or not all(sets.values()):
        raise ValueError(
            f"every data set needs a run, got {({s: list(r) for s, r in sets.items()})}"
        )
    names = {**RUN_NAMES, **(names or {})}
    row, head, gap = 0.27, 1.0, 0.66
    width = 10.4
    height = head + sum(row * len(runs) + gap for runs in sets.values())
    figure = new_figure(width, height)
    top = height - head
    for name, runs in sets.items():
        tall = row * len(runs)
        for column, (metric, (label, color)) in enumerate(TOP1_BARS.items()):
            left = 0.205 + column * 0.2
            axes = figure.add_axes((left, (top - tall) / height, 0.172, tall / height))
            ends = (intervals or {}).get(name, {})
            _dots(axes, runs, metric, color, {run: ends.get(run, {}).get(metric) for run in runs})
            axes.set_title(label, size=10, color=color, pad=4)
            if not column:
                labels = [names.get(run, run) for run in runs]
                axes.set_yticks(range(len(runs)), labels, size=9.5, color=INK)
                at = {"transform": axes.get_yaxis_transform(), "size": 10.5, "weight": "bold"}
                axes.text(-1.1, -0.95, name, color=INK, va="center", **at)
        top -= tall + gap
    headline(figure, title, [])
    several = any(len(seeds) > 1 for runs in sets.values() for seeds in runs.values())
    words = "dot: mean over seeds, ring: a seed, " if several else ""
    words += f"{'line: 95 % interval, ' if intervals else ''}dashed: the first run"
    figure.text(0.02, 1 - 0.44 / height, words, va="top", size=9.5, color=MUTED)
    return figure


def _dots(axes, runs, metric, color, ends) -> None:
    values = {run: np.array([seed[metric] for seed in seeds]) for run, seeds in runs.items()}
    means = {run: float(found.mean()) for run, found in values.items()}
    points = np.concatenate([*values.values(), *(e for e in ends.values() if e)])
    points = points[np.isfinite(points)]
    bare(axes, "x")
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.set_yticks([])
    if not len(points):
        axes.set_xticks([])
        axes.text(0.5, 0.5, "n/a", ha="center", transform=axes.transAxes, color=MUTED)
        return
    low, high = max(0.0, points.min()), min(100.0, points.max())
    room = 0.08 * max(high - low, 2.0)
    # Room for the numbers at the right.
    axes.set_xlim(low - room, high + 4.4 * room)
    axes.xaxis.get_major_locator().set_params(nbins=4, integer=True)
    axes.tick_params(axis="x", labelcolor=MUTED, labelsize=8)
    axes.axvline(next(iter(means.values())), color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    best = max((mean for mean in means.values() if not math.isnan(mean)), default=math.nan)
    for y, (run, found) in enumerate(values.items()):
        end = ends[run]
        if end and np.isfinite(end).all():
            axes.plot(np.clip(end, 0, 100), [y, y], color=color, lw=1.6, alpha=0.55, zorder=2)
        if len(found) > 1:
            axes.plot(found, [y] * len(found), "o", ms=3, color=PAPER, mec=color, mew=0.7, zorder=3)
        axes.plot(means[run], y, "o", ms=6, color=color, zorder=4)
        axes.text(
            *(0.99, y, "–" if math.isnan(means[run]) else f"{means[run]:.1f}"),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            size=8.5,
            color=INK,
            weight="bold" if means[run] == best else "normal",
        )


def plot_shifts(
    runs: Mapping[str, Mapping[str, float] | Seeds],
    *,
    intervals: Intervals | None = None,
    names: Mapping[str, str] | None = None,
    title: str = "Top-1 accuracy under other priors of the test set (%)",
) -> Figure:
    """A line per run over test sets from as long-tailed as training to the reverse.

    Args:
        runs: name of a run to its accuracies by name of the shifted set, in their order; or to one
            such mapping per seed, drawn as the mean.
        intervals: run to set to the ends of a band.
        names: what to call the runs; default :data:`~lvis_tde.visualization.palette.RUN_NAMES`.
        title: of the chart.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("runs is empty: pass at least one run")
    colors, names = _colors(runs), {**RUN_NAMES, **(names or {})}
    seeds = {run: [v] if isinstance(v, Mapping) else list(v) for run, v in runs.items()}
    shifts = list(next(iter(seeds.values()))[0])
    # Room for the names at the ends of the lines.
    margin = 0.75 + 0.077 * max(len(names.get(run, run)) for run in runs)
    width = 6.6 + margin
    figure = new_figure(width, 4.2)
    axes = figure.add_axes((0.5 / width, 0.15, 6.0 / width, 0.72))
    x, ends = np.arange(len(shifts)), []
    for run, found in seeds.items():
        y = np.mean([[seed[shift] for shift in shifts] for seed in found], axis=0)
        band = (intervals or {}).get(run, {})
        if all(shift in band for shift in shifts):
            edges = np.array([band[shift] for shift in shifts]).T
            axes.fill_between(x, *edges, color=colors[run], alpha=0.16, lw=0)
        axes.plot(x, y, "-o", color=colors[run], lw=2.2, ms=4.5, clip_on=False, zorder=3)
        ends.append((y[-1], f"{names.get(run, run)}  {y[-1]:.1f}", colors[run]))
    bare(axes, "y")
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.set_xlim(-0.2, len(shifts) - 0.8)
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, low), min(100, high))
    axes.set_xticks(x, [s.lstrip("forwadbck") or s for s in shifts], size=9)
    middle = shifts.index("uniform") if "uniform" in shifts else None
    if middle is not None:
        axes.axvline(middle, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
    place = {"transform": axes.transAxes, "size": 9.5, "color": MUTED, "va": "top"}
    axes.text(0, -0.1, "← forward: frequent classes as in training", ha="left", **place)
    axes.text(1, -0.1, "backward: rare classes frequent →", ha="right", **place)
    low, high = axes.get_ylim()
    for y, (at, words, color) in zip(spread([e[0] for e in ends], 0.065 * (high - low)), ends):
        axes.plot([x[-1], x[-1] + 0.35], [at, y], color=GRID, lw=0.9, clip_on=False, zorder=1)
        axes.text(x[-1] + 0.4, y, words, va="center", size=9.5, color=color)
    headline(figure, title, [])
    return figure


def plot_reliability(
    runs: Mapping[str, np.ndarray],
    *,
    errors: Mapping[str, float] | None = None,
    names: Mapping[str, str] | None = None,
    title: str = "Accuracy over confidence (%)",
) -> Figure:
    """A panel per run: how often a model is right that says it is sure (Guo et al. 2017).

    Args:
        runs: name of a run to (B, 3): images, mean confidence and accuracy (0..1) of each bin.
        errors: run to its expected calibration error in percent.
        names: what to call the runs; default :data:`~lvis_tde.visualization.palette.RUN_NAMES`.
        title: of the chart.

    Returns:
        The figure; the area of a dot is its share of the images.

    Raises:
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("runs is empty: pass at least one run")
    colors, names = _colors(runs), {**RUN_NAMES, **(names or {})}
    width = 3.6 * len(runs) + 0.5
    figure = new_figure(max(width, 4.6), 4.2)
    width = figure.get_figwidth()
    for index, (run, bins) in enumerate(runs.items()):
        axes = figure.add_axes(((0.5 + 3.6 * index) / width, 0.125, 3.15 / width, 0.68))
        images, confidence, accuracy = bins[bins[:, 0] > 0].T
        axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
        for x, y in zip(100 * confidence, 100 * accuracy):
            axes.plot([x, x], [x, y], color=colors[run], lw=1.2, alpha=0.6, zorder=2)
        area = 12 + 500 * images / images.sum()
        axes.scatter(
            100 * confidence,
            100 * accuracy,
            s=area,
            color=colors[run],
            lw=0,
            clip_on=False,
            zorder=3,
        )
        error = (errors or {}).get(run, math.nan)
        words = "" if math.isnan(error) else f", calibration error {error:.1f}"
        axes.set_title(f"{names.get(run, run)}{words}", size=10, color=INK, loc="left")
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xlabel("confidence", size=9.5, color=MUTED)
        bare(axes, "both")
        axes.tick_params(labelcolor=MUTED)
    headline(figure, title, [])
    return figure


def _colors(runs) -> dict[str, str]:
    return run_colors(runs) if len(runs) > 1 else dict.fromkeys(runs, INK)
