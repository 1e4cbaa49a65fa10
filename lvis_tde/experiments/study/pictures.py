"""The pictures of a study, from ``study.json`` alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ...calibration.methods import FACTUAL
from ...visualization.learning_curves import (
    plot_gain_by_momentum,
    plot_gain_over_ap,
    plot_learning_curves,
)
from ...visualization.palette import KINDS
from ...visualization.study_charts import plot_glance, plot_ranks, plot_runs
from .numbers import (
    METRICS,
    changes_of,
    glance,
    mean_of,
    name_of,
    ranks_of,
    recipe_title,
    tasks_of,
    values_of,
)

__all__ = ["Picture", "momentum_curves", "momentum_gains", "study_pictures"]

Study = Mapping[str, Any]
_MOST_CURVES = 4


class Picture(NamedTuple):
    """A picture, the heading of its section, and what it shows in words."""

    figure: Figure
    heading: str
    words: str


def study_pictures(study: Study) -> dict[str, Picture]:
    """Those that a study has numbers for.

    Args:
        study: content of ``study.json``.

    Returns:
        By name of its file without the ending.
    """
    found: dict[str, Picture] = {}
    tasks = tasks_of(study)
    shown, recipes = glance(study)
    if any(len(some) > 1 for some in recipes.values()):
        named = {recipe_title(study, recipe): some for recipe, some in recipes.items()}
        title = f"{KINDS[shown]} AP on val (%){_over(study)}"
        words = "AP and APr of each training as it is, with TDE and with the best composition."
        found["glance"] = Picture(plot_glance(named, title=title), "At a glance", words)
    if tasks:
        kind, over = KINDS[tasks[0]].lower(), _over(study)
        title = f"All runs: {kind} AP over APr on val (%){over}"
        dots = _dots(study, tasks[0])
        if dots:
            words = "AP over APr of every run; thin lines lead from a model as trained to methods."
            found["ap_over_apr"] = Picture(plot_runs(dots, title=title), "Runs", words)
        ranks = _ranks(study, tasks[0])
        if len(ranks) > 1:
            title = f"Rank by class frequency, {kind} AP{over}, 1 is the best"
            words = "Rank of every run by AP of all, of rare, of common and of frequent classes."
            found["ranks"] = Picture(plot_ranks(ranks, title=title), "Ranks", words)
    curves = _curves(study)
    if curves:
        words = "Cosine of features to their mean, norms of class weights and APr over training."
        figure = plot_learning_curves(curves)
        found["learning_curves"] = Picture(figure, "Over the training", words)
    gains = momentum_gains(study)
    if gains:
        words = "What TDE adds to AP and APr by the momentum of training."
        found["momentum"] = Picture(plot_gain_by_momentum(gains), "Momentum", words)
    courses = momentum_curves(study)
    if courses:
        words = (
            "What TDE of one strength adds over AP as trained, checkpoint by checkpoint: at equal "
            "AP trainings are equally far."
        )
        found["gain_over_ap"] = Picture(plot_gain_over_ap(courses), "Momentum and progress", words)
    return found


def _over(study: Study) -> str:
    finished = [len(seeds) for seeds in study["runs"].values()]
    least, most = min(finished, default=0), max(finished, default=0)
    count = f"{most}" if least == most else f"{least} to {most}"
    return f", mean of {count} seeds" if most > 1 else ""


def _dots(study: Study, task: str) -> dict[str, dict[str, tuple[float, float]]]:
    """APr and AP of all runs, without methods that change nothing on any seed."""
    dots: dict[str, dict[str, tuple[float, float]]] = {}
    for run in study["runs"]:
        recipe, _, method = run.partition("/")
        both = [values_of(study, run, task, metric) for metric in ("APr", "AP")]
        trained = [values_of(study, f"{recipe}/{FACTUAL}", task, m) for m in ("APr", "AP")]
        if all(both) and (method == FACTUAL or both != trained):
            x, y = (statistics.fmean(values.values()) for values in both)
            dots.setdefault(recipe_title(study, recipe), {})[method] = (x, y)
    return dots


def _ranks(study: Study, task: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for metric in METRICS:
        for run, rank in ranks_of(study, task, metric).items():
            found.setdefault(name_of(study, run), {})[metric] = rank
    return found


def _curves(study: Study) -> dict[str, Any]:
    """Curves of recipes, of many those with the optimizer that their config has."""
    drawn = {"fg_cosine_to_mean", "weight_norm_f", "APr"}
    curves = {
        name: seeds
        for name, seeds in study.get("curves", {}).items()
        if any(drawn & row.keys() for curve in seeds.values() for row in curve)
    }
    if len(curves) > _MOST_CURVES:
        usual = {n: s for n, s in curves.items() if optimizer_of(study, n) in ("", "0.9")}
        curves = usual or curves
    shown = list(curves)[:_MOST_CURVES]
    return {recipe_title(study, name): curves[name] for name in shown}


def optimizer_of(study: Study, recipe: str) -> str:
    """What a recipe's own options say of its optimizer: momentum of SGD, the name of another, or
    "" if they say nothing."""
    opts = study["recipes"].get(recipe, {}).get("opts", [])
    given = dict(zip(opts[::2], opts[1::2]))
    name = str(given.get("SOLVER.OPTIMIZER", "SGD"))
    if name != "SGD":
        return {"ADAMW": "AdamW"}.get(name, name)
    momentum = given.get("SOLVER.MOMENTUM")
    return "" if momentum is None else f"{float(momentum):g}"


def _family_of(study: Study, recipe: str) -> str:
    return recipe_title(study, recipe).split(",")[0]


def momentum_curves(study: Study) -> dict[str, dict[str, Mapping[str, Sequence[Any]]]]:
    """The curves with APs of recipes that name their optimizer, with and without TDE.

    Returns:
        Family, as of :func:`momentum_gains`, to optimizer to seeds; empty unless two optimizers of
        a family are there.
    """
    families: dict[str, dict[str, Mapping[str, Sequence[Any]]]] = {}
    for recipe, seeds in study.get("curves", {}).items():
        optimizer = optimizer_of(study, recipe)
        if optimizer and any("AP_tde" in row for curve in seeds.values() for row in curve):
            families.setdefault(_family_of(study, recipe), {})[optimizer] = seeds
    return {name: found for name, found in families.items() if len(found) > 1}


def momentum_gains(study: Study) -> dict[str, dict[str, dict[str, tuple[Sequence[float], float]]]]:
    """What TDE adds over the model as trained, by the optimizer of recipes that name theirs.

    Recipes whose titles agree up to the first comma are a family, such as "softmax, momentum 0.9".

    Returns:
        Family to optimizer to metric to the gains of the seeds and half of the interval of their
        mean; empty unless two optimizers of a family are there.
    """
    families: dict[str, dict[str, dict[str, tuple[Sequence[float], float]]]] = {}
    for pair in study.get("pairs", ()):
        recipe, _, method = pair["run"].partition("/")
        optimizer = optimizer_of(study, recipe)
        if method != "tde" or pair["over"] != f"{recipe}/factual" or not optimizer:
            continue
        family = families.setdefault(_family_of(study, recipe), {})
        for metric in ("AP", "APr"):
            gains = [one["difference"] for one in changes_of(pair, "bbox", metric).values()]
            mean = mean_of(gains)
            if mean is not None:
                family.setdefault(optimizer, {})[metric] = gains, mean.half
    return {name: found for name, found in families.items() if len(found) > 1}
