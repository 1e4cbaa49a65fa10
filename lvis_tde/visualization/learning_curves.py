"""Charts of what training does to features, weights and AP, and of TDE's gain by momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figure import bare, headline, new_figure, spread
from .palette import GRID, GROUP_COLORS, GROUPS, INK, METHOD_COLORS, MUTED, ramp, series_styles

__all__ = ["plot_gain_by_momentum", "plot_gain_over_ap", "plot_learning_curves"]

Curve = Sequence[Mapping[str, float]]

_NORMS = "mean norm of class weights"
_PANELS: tuple[tuple[str, Mapping[str, tuple[str, str]]], ...] = (
    ("cosine of foreground features to their mean", {"fg_cosine_to_mean": ("", INK)}),
    (
        _NORMS,
        {f"weight_norm_{g}": (name, GROUP_COLORS[g]) for g, name in GROUPS.items()},
    ),
    (
        "APr on held-out images (%)",
        {"APr": ("as trained", INK), "APr_tde": ("TDE", METHOD_COLORS["tde"])},
    ),
)


def plot_learning_curves(
    recipes: Mapping[str, Mapping[str, Curve]],
    *,
    title: str = "What training does to features, weights and rare classes",
) -> Figure:
    """A row for each recipe: cosine to the mean, norms of weights, APr, all over iterations.

    Args:
        recipes: title of a recipe to its seeds, each with rows of "iteration" and any of
            "fg_cosine_to_mean", "weight_norm_r", "weight_norm_c", "weight_norm_f", "APr" and
            "APr_tde". Seeds are thin lines, their mean where they have the same iterations a thick
            one. Axes begin at zero, and are the same for a cosine and for an AP in all rows. What
            no recipe has is left out.
        title: of the chart.

    Returns:
        The figure.

    Raises:
        ValueError: if there is none of it.
    """
    rows = [row for seeds in recipes.values() for curve in seeds.values() for row in curve]
    panels = [one for one in _PANELS if any(key in row for row in rows for key in one[1])]
    if not panels:
        raise ValueError(f"recipes has no curve: {', '.join(recipes) or 'it is empty'}")
    height, scale = 0.6 + 2.55 * len(recipes), len(_PANELS) / len(panels)
    figure = new_figure(10.4 / scale, height)
    grid: list[list[Axes]] = []
    ends: dict[Axes, list[tuple[float, str, str]]] = {}
    for row, (recipe, seeds) in enumerate(recipes.items()):
        bottom = (height - 0.6 - 2.55 * row - 2.0) / height
        grid.append([])
        for column, (label, lines) in enumerate(panels):
            left, wide = scale * (0.045 + 0.322 * column), scale * 0.205
            axes = figure.add_axes((left, bottom, wide, 1.72 / height))
            bare(axes, "y")
            axes.tick_params(axis="y", labelcolor=MUTED)
            axes.set_title(label, size=9, color=MUTED, loc="left")
            if not column:
                above = {"xycoords": "axes fraction", "textcoords": "offset points"}
                axes.annotate(recipe, (0, 1), (0, 20), size=10.5, color=INK, **above)
            ends[axes] = _lines(axes, seeds, lines)
            if row == len(recipes) - 1:
                axes.set_xlabel("iteration", size=9, color=MUTED)
            grid[-1].append(axes)
    for column, (label, _) in enumerate(panels):
        highest = max(line[column].get_ylim()[1] for line in grid)
        for line in grid if label != _NORMS else ():
            line[column].set_ylim(0, highest)
    for axes, named in ends.items():
        _name_ends(axes, named, 0.105 * axes.get_ylim()[1], 8.5)
    headline(figure, title, [])
    return figure


def _lines(
    axes: Axes, seeds: Mapping[str, Curve], lines: Mapping[str, tuple[str, str]]
) -> list[tuple[float, str, str]]:
    """
    Returns:
        Where the lines end, with words and color.
    """
    ends = []
    for key, (name, color) in lines.items():
        found = [_points(curve, key) for curve in seeds.values()]
        found = [points for points in found if points]
        for points in found if len(found) > 1 else ():
            axes.plot(*zip(*sorted(points.items())), color=color, lw=0.7, alpha=0.4)
        common = sorted(set.intersection(*map(set, found))) if found else []
        if common:
            means = [float(np.mean([points[i] for points in found])) for i in common]
            axes.plot(common, means, color=color, lw=2)
            form = ".1f" if key.startswith("AP") else ".2f"
            ends.append((means[-1], f"{name} {means[-1]:{form}}".strip(), color))
    if not ends:
        axes.text(0.5, 0.5, "n/a", ha="center", transform=axes.transAxes, color=MUTED)
    low, high = axes.get_ylim()
    axes.set_ylim(0, max(high, 1e-3) * 1.04)
    axes.set_xlim(left=0)
    return ends


def _points(curve: Curve, key: str) -> dict[int, float]:
    return {
        int(row["iteration"]): row[key]
        for row in curve
        if row.get(key) is not None and math.isfinite(row[key])
    }


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], gap: float, size: float) -> None:
    """Names of curves at the right, ``gap`` apart: height, words and color of each."""
    for y, (_, words, color) in zip(spread([end[0] for end in ends], gap), ends):
        axes.annotate(
            words,
            (1, y),
            (5, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            size=size,
            color=color,
            annotation_clip=False,
        )


def plot_gain_by_momentum(
    families: Mapping[str, Mapping[str, Mapping[str, tuple[Sequence[float], float]]]],
    *,
    metrics: Mapping[str, str] | None = None,
    title: str = "What TDE adds, by the momentum of training (points)",
) -> Figure:
    """A panel for each metric, a line for each family of recipes: gains over momentum.

    Args:
        families: title to the names of optimizers, in the order of the axis, each with a metric's
            gains, one a seed, and half of the interval of their mean, NaN for none. A name that is
            a number below 1 is SGD's momentum m, and lies at the logarithm of the 1 / (1 - m) steps
            that it remembers; others lie apart at the right.
        metrics: which, and their names; default AP and APr.
        title: of the chart.

    Returns:
        The figure: means with their intervals, and small dots for the seeds.

    Raises:
        ValueError: if there is no family, or none has a gain.
    """
    if not any(families.values()):
        raise ValueError("families is empty: pass the gains of at least one")
    metrics = metrics or {"AP": "AP, all classes", "APr": "APr, rare classes"}
    figure = new_figure(9.2, 4.0)
    names = list(dict.fromkeys(name for one in families.values() for name in one))
    places = _places(names)
    for column, (metric, label) in enumerate(metrics.items()):
        axes = figure.add_axes((0.06 + 0.49 * column, 0.15, 0.33, 0.66))
        axes.set_title(label, size=10, color=INK, loc="left")
        bare(axes, "y")
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.axhline(0, color=MUTED, lw=0.9)
        ends = []
        for index, (family, (color, marker)) in enumerate(series_styles(families).items()):
            found = families[family]
            shift = 0.035 * (index - (len(families) - 1) / 2)
            known = [(n, found[n][metric]) for n in names if found.get(n, {}).get(metric)]
            sgd = [
                (places[n] + shift, float(np.mean(v))) for n, (v, _) in known if _momentum(n) < 1
            ]
            if sgd:
                axes.plot(*zip(*sgd), color=color, lw=1.5, zorder=2)
            for name, (values, half) in known:
                x, mean = places[name] + shift, float(np.mean(values))
                if math.isfinite(half):
                    axes.plot([x, x], [mean - half, mean + half], color=color, lw=1.3, zorder=2)
                    axes.plot([x + 0.05] * len(values), values, ".", ms=4, color=color, alpha=0.5)
                axes.plot(x, mean, marker, ms=7, color=color, zorder=3)
            if known:
                ends.append((float(np.mean(known[-1][1][0])), family, color))
        apart = [places[n] for n in names if _momentum(n) >= 1]
        if apart and len(apart) < len(names):
            axes.axvline(min(apart) - 0.25, color=GRID, lw=1)
        axes.set_xticks([places[n] for n in names], names, size=9)
        axes.set_xlim(min(places.values()) - 0.2, max(places.values()) + 0.25)
        axes.set_xlabel("momentum of SGD", size=9.5, color=MUTED)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high)
        _name_ends(axes, ends, 0.075 * (high - low), 9)
    headline(figure, title, [])
    return figure


def plot_gain_over_ap(
    families: Mapping[str, Mapping[str, Mapping[str, Curve]]],
    *,
    title: str = "What TDE adds over AP as trained, checkpoints on held-out images (points)",
) -> Figure:
    """A column for each family of recipes, gains in AP above those in APr, a line for each seed.

    It tells apart whether an optimizer changes what TDE adds or only how far training gets.

    Args:
        families: title to the names of optimizers to their seeds, each with rows of "AP", "AP_tde",
            "APr" and "APr_tde"; rows that lack one of a pair are left out.
        title: of the chart.

    Returns:
        The figure. SGD's momenta are shades of one color, light for the least; lines go from one
        checkpoint to the next.

    Raises:
        ValueError: if there is no family.
    """
    if not any(families.values()):
        raise ValueError("families is empty: pass the curves of at least one")
    names = list(dict.fromkeys(name for one in families.values() for name in one))
    sgd = sorted((name for name in names if _momentum(name) < 1), key=_momentum)
    others = [name for name in names if _momentum(name) >= 1]
    colors = dict(zip(sgd, ramp(len(sgd))))
    colors |= {name: color for name, (color, _) in series_styles(others).items()}
    figure = new_figure(max(5.2, 4.6 * len(families)), 5.9)
    for column, (family, optimizers) in enumerate(families.items()):
        for row, (metric, label) in enumerate((("AP", "gain in AP"), ("APr", "gain in APr"))):
            wide = 1 / len(families)
            place = (0.05 + wide * column, 0.50 - 0.41 * row, wide - 0.09, 0.31)
            axes = figure.add_axes(place)
            bare(axes, "both")
            axes.set_title(f"{family}: {label}" if not row else label, size=10, loc="left")
            axes.axhline(0, color=MUTED, lw=0.9)
            for name, seeds in optimizers.items():
                for curve in seeds.values():
                    if points := _gains(curve, metric):
                        axes.plot(*zip(*points), ".-", color=colors[name], ms=5, lw=1.2)
            axes.set_xlim(left=0)
            if row:
                axes.set_xlabel("AP as trained", size=9.5, color=MUTED)
    legend = [(f"momentum {name}" if name in sgd else name, colors[name]) for name in colors]
    headline(figure, title, legend)
    return figure


def _gains(curve: Curve, metric: str) -> list[tuple[float, float]]:
    ap, one, other = (_points(curve, key) for key in ("AP", metric, f"{metric}_tde"))
    return [(ap[i], other[i] - one[i]) for i in sorted(ap.keys() & one.keys() & other.keys())]


def _momentum(name: str) -> float:
    """Momentum of SGD; infinity for the name of another optimizer."""
    try:
        return float(name)
    except ValueError:
        return math.inf


def _places(names: Sequence[str]) -> dict[str, float]:
    places = {n: -math.log10(1 - _momentum(n)) for n in names if _momentum(n) < 1}
    end = max(places.values(), default=-0.5)
    others = [n for n in names if _momentum(n) >= 1]
    return {**places, **{n: end + 0.5 * (i + 1) for i, n in enumerate(others)}}
