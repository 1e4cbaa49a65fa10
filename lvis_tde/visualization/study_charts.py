"""Charts of a study's runs: at a glance, AP over APr of all, and their ranks by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .charts import METRIC_GROUPS
from .figure import bare, headline, new_figure, shrink, spread
from .palette import (
    GRID,
    GROUP_COLORS,
    GROUPS,
    INK,
    METHOD_COLORS,
    METHOD_LETTERS,
    METHOD_NAMES,
    MUTED,
    PAPER,
    series_styles,
)

__all__ = ["plot_glance", "plot_ranks", "plot_runs"]

_FIRST = "factual"
_ROW = 0.215  # inches of a line of ranks
_LINE = 0.42  # inches of a training at a glance


def plot_glance(
    recipes: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, int]]]],
    *,
    title: str = "Mask AP on val (%)",
) -> Figure:
    """A line for each training, a dot for it and for each method on it, with intervals.

    Args:
        recipes: title to method to "AP" and "APr", each with mean, half of its interval (NaN for
            none) and number of seeds; an undefined (NaN or negative) mean is not drawn.
        title: of the chart.

    Returns:
        The figure, AP on the left and APr on the right.

    Raises:
        ValueError: if there is no recipe.
    """
    if not recipes:
        raise ValueError("recipes is empty: pass the runs of at least one recipe")
    width, height = 9.2, 1.34 + _LINE * len(recipes)
    figure = new_figure(width, height)
    methods = [m for m in METHOD_NAMES if any(m in one for one in recipes.values())]
    colors = {method: METHOD_COLORS.get(method, MUTED) for method in methods}
    markers = dict(zip(methods, "Dos^vPX<>ph*Hd"))
    apart = min(0.22, 1.1 / max(1, len(methods)))
    panels = {"AP": "AP, all classes", "APr": "APr, rare classes"}
    for index, (metric, name) in enumerate(panels.items()):
        below, tall = 0.52 / height, _LINE * len(recipes) / height
        axes = figure.add_axes((0.25 + 0.375 * index, below, 0.35, tall))
        bare(axes, "x")
        axes.tick_params(axis="x", labelcolor=MUTED)
        axes.set_xlabel(name, size=9.5, color=MUTED)
        for y, one in enumerate(recipes.values()):
            known = {m: one[m][metric] for m in methods if metric in one.get(m, {})}
            known = {m: figures for m, figures in known.items() if figures[0] >= 0}
            means = [mean for mean, _, _ in known.values()]
            if means:
                axes.plot((min(means), max(means)), (y, y), color=GRID, lw=2.2, zorder=1)
            for method, (mean, half, _) in known.items():
                # A little apart, so that equal ones are all seen.
                place = y + apart * (methods.index(method) - (len(methods) - 1) / 2)
                if math.isfinite(half):
                    ends = mean - half, mean + half
                    axes.plot(ends, (place, place), color=colors[method], lw=1, alpha=0.55)
                axes.plot(mean, place, markers[method], ms=5.5, color=colors[method], zorder=3)
        axes.set_xlim(min(0, axes.get_xlim()[0]) if metric == "APr" else None)
        axes.set_ylim(len(recipes) - 0.45, -0.55)
        axes.set_yticks(range(len(recipes)), [] if index else list(recipes), size=9, color=INK)
        if not index:
            for text in axes.get_yticklabels():
                shrink(text, 0.235 * width * figure.dpi)
    headline(figure, title, [(METHOD_NAMES[m], colors[m]) for m in methods])
    return figure


def plot_runs(
    recipes: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    title: str = "All runs: box AP over APr (%)",
) -> Figure:
    """A dot for each run; a recipe has one color and one marker, thin lines lead to its methods.

    Args:
        recipes: title of a recipe to its methods, each with APr and AP in percent; "factual", the
            model as trained, is the large marker. Runs with an undefined (NaN or negative) figure
            are left out.
        title: of the chart.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no recipe.
    """
    if not recipes:
        raise ValueError("recipes is empty: pass the runs of at least one recipe")
    width, height = 9.2, 6.6
    figure = new_figure(width, height)
    axes = figure.add_axes((0.075, 0.13, 0.66, 0.79))
    bare(axes, "both")
    axes.tick_params(labelcolor=MUTED)
    axes.set_xlabel("APr, rare classes", size=9.5, color=MUTED)
    axes.set_ylabel("AP, all classes", size=9.5, color=MUTED)
    ends, used = [], {}
    for recipe, (color, marker) in series_styles(recipes).items():
        methods = recipes[recipe]
        known = {m: at for m, at in methods.items() if all(0 <= v < math.inf for v in at)}
        if not known:
            continue
        start = known.get(_FIRST, next(iter(known.values())))
        for method, at in known.items():
            if method == _FIRST:
                continue
            axes.plot(*zip(start, at), color=color, lw=0.7, alpha=0.45, zorder=2)
            axes.plot(*at, marker, ms=4.5, color=PAPER, mec=color, mew=1.1, zorder=3)
            letter = METHOD_LETTERS.get(method, method)
            used[method] = letter
            axes.annotate(
                letter, at, (4, 3), textcoords="offset points", size=7, color=color, zorder=5
            )
        axes.plot(*start, marker, ms=9.5, color=color, mec=PAPER, mew=0.8, zorder=4)
        ends.append((recipe, start, color, marker))
    axes.margins(0.06)
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    axes.set_ylim(low, high)
    axes.set_xlim(left, right)
    ends.sort(key=lambda end: end[1][1])
    places = spread([at[1] for _, at, _, _ in ends], 0.042 * (high - low))
    over = max(0.0, places[-1] - high) - max(0.0, low - places[0]) if places else 0.0
    names = []
    for (recipe, at, color, marker), place in zip(ends, places):
        edge, y = right + 0.05 * (right - left), place - over
        axes.plot([at[0], edge], [at[1], y], color=GRID, lw=0.9, clip_on=False, zorder=1)
        axes.plot(edge, y, marker, ms=6.5, color=color, clip_on=False, zorder=4)
        text = axes.annotate(
            f"{recipe}  {at[1]:.1f}",
            (edge, y),
            (8, 0),
            textcoords="offset points",
            va="center",
            size=9,
            color=INK,
            annotation_clip=False,
        )
        names.append(shrink(text, 0.215 * width * figure.dpi))
    smallest = min((text.get_fontsize() for text in names), default=0)
    for text in names:
        text.set_fontsize(smallest)
    headline(figure, title, [])
    letters = ", ".join(f"{letter} {METHOD_NAMES.get(m, m)}" for m, letter in used.items())
    words = f"Large: as trained. Small: {letters}." if letters else "As trained."
    figure.text(0.02, 0.015, words, size=8, color=MUTED, wrap=True)
    return figure


def plot_ranks(
    runs: Mapping[str, Mapping[str, float]],
    *,
    title: str = "Rank by class frequency, 1 is the best",
) -> Figure:
    """A line for each run, in the order of AP's ranks, with a dot for its rank in each group.

    Args:
        runs: name of a run to its ranks by "AP", "APr", "APc" and "APf"; what it has not is not
            drawn.
        title: of the chart.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("runs is empty: pass the ranks of at least one run")
    names: Sequence[str] = sorted(runs, key=lambda run: runs[run].get("AP", math.inf))
    width, height = 9.2, 1.35 + _ROW * len(names)
    figure = new_figure(width, height)
    axes = figure.add_axes((0.36, 0.42 / height, 0.61, _ROW * len(names) / height))
    bare(axes, "x")
    axes.spines["bottom"].set_visible(False)
    colors = {"AP": INK, **{m: GROUP_COLORS[g] for m, g in METRIC_GROUPS.items()}}
    markers = dict(zip(colors, ("D", "v", "s", "^")))
    for y, run in enumerate(names):
        found = {metric: runs[run][metric] for metric in colors if metric in runs[run]}
        if found:
            ends = min(found.values()), max(found.values())
            axes.plot(ends, (y, y), color=GRID, lw=2.2, zorder=1, solid_capstyle="round")
        for metric, rank in found.items():
            # A little apart, so that equal ranks are all seen.
            place = y + 0.14 * (list(colors).index(metric) - 1.5)
            axes.plot(rank, place, markers[metric], ms=5, color=colors[metric], zorder=3)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0.3, len(names) + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(range(len(names)), names, size=8.5, color=INK)
    axes.set_xlabel("rank among all runs", size=9.5, color=MUTED)
    words = {"AP": "◆ AP", "APr": "▼ APr", "APc": "■ APc", "APf": "▲ APf"}
    legend = [
        (f"{words[m]}, {GROUPS[METRIC_GROUPS[m]] if m in METRIC_GROUPS else 'all classes'}", c)
        for m, c in colors.items()
    ]
    headline(figure, title, [])
    x = 0.02
    for name, color in legend:
        text = figure.text(x, 1 - 0.456 / height, name, va="top", size=10, color=color)
        x += (text.get_window_extent().width + 18) / (width * figure.dpi)
    return figure
