"""What tables, page and pictures read off a ``study.json``: means over seeds, ranks, orders."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...calibration.family import COMPOSITION
from ...calibration.methods import FACTUAL
from ...evaluation.ranking import counted_pairs, ranks
from ...evaluation.seeds import seed_half_width
from ...visualization.palette import KINDS, METHOD_NAMES

__all__ = [
    "METRICS",
    "Mean",
    "changes_of",
    "disagreements",
    "glance",
    "incomplete",
    "incomplete_in_words",
    "mean_of",
    "name_of",
    "plain",
    "ranks_of",
    "recipe_title",
    "seeds_of",
    "signed",
    "tasks_of",
    "values_of",
]

Study = Mapping[str, Any]

METRICS = ("AP", "APr", "APc", "APf")


class Mean(NamedTuple):
    """Over seeds.

    Attributes:
        mean: of the seeds that have a value.
        half: half of the 95 % interval of the mean, NaN for one seed.
        seeds: how many.
    """

    mean: float
    half: float
    seeds: int


def mean_of(values: Iterable[float]) -> Mean | None:
    """Mean and interval over seeds; None without any value."""
    known = list(values)
    if not known:
        return None
    return Mean(statistics.fmean(known), seed_half_width(known), len(known))


def _defined(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def values_of(study: Study, run: str, task: str, metric: str) -> dict[str, float]:
    """A metric of a run, seed by seed, without the seeds where it is missing or undefined."""
    found = {
        seed: one["val"].get(task, {}).get(metric)
        for seed, one in study["runs"].get(run, {}).items()
    }
    return {seed: value for seed, value in found.items() if _defined(value) and value >= 0}


def changes_of(pair: Mapping[str, Any], task: str, metric: str) -> dict[str, Mapping[str, Any]]:
    """The difference of a pair, seed by seed: "difference", "interval" and "wins".

    The last two are None where every resample of the images lacks the classes.
    """
    found = {seed: tasks.get(task, {}).get(metric) for seed, tasks in pair["seeds"].items()}
    return {seed: one for seed, one in found.items() if one and _defined(one["difference"])}


def tasks_of(study: Study) -> list[str]:
    """Those that a run has, boxes first."""
    seeds = (one for run in study["runs"].values() for one in run.values())
    return sorted({task for one in seeds for task in one["val"]})


def incomplete(study: Study) -> dict[str, int]:
    """Runs that lack a seed of the study, and how many they have. Ranks and orders leave them out:
    each seed is another set, so means over different seeds cannot be compared."""
    known = {run: len(seeds) for run, seeds in study["runs"].items()}
    return {run: count for run, count in known.items() if count < len(study["seeds"])}


def incomplete_in_words(study: Study) -> str:
    """The recipes of :func:`incomplete` runs: "sigmoid (3 of 5 seeds)"; "" without any."""
    counts = {run.partition("/")[0]: count for run, count in incomplete(study).items()}
    whole = len(study["seeds"])
    return ", ".join(f"{recipe_title(study, r)} ({n} of {whole} seeds)" for r, n in counts.items())


def recipe_title(study: Study, recipe: str) -> str:
    """What a recipe is called."""
    return study["recipes"].get(recipe, {}).get("title") or recipe


def name_of(study: Study, run: str) -> str:
    """A run in words: "de-confound + TDE"; of a model as trained the recipe's title alone."""
    recipe, _, method = run.partition("/")
    title = recipe_title(study, recipe)
    return title if method == FACTUAL else f"{title} + {METHOD_NAMES.get(method, method)}"


def ranks_of(study: Study, task: str, metric: str) -> dict[str, float]:
    """Rank of each run by its mean over seeds, 1 for the best, without :func:`incomplete` ones."""
    short = incomplete(study)
    seeds = {run: values_of(study, run, task, metric) for run in study["runs"] if run not in short}
    means = {run: statistics.fmean(v.values()) for run, v in seeds.items() if v}
    return ranks(means) if len(means) > 1 else dict.fromkeys(means, 1.0)


def glance(study: Study) -> tuple[str, dict[str, dict[str, dict[str, Mean]]]]:
    """What each training gives as it is, with TDE, and with the best composition.

    Returns:
        The task, masks where they were evaluated; and recipe to method to AP and APr, the recipes
        with the highest AP first, whatever method has it, and those that lack seeds behind them.
        Methods without AP are left out.
    """
    task = tasks_of(study)[-1] if tasks_of(study) else ""
    found: dict[str, dict[str, dict[str, Mean]]] = {}
    for recipe in study["recipes"]:
        for method in (FACTUAL, "tde", COMPOSITION):
            values = {m: values_of(study, f"{recipe}/{method}", task, m) for m in ("AP", "APr")}
            means = {metric: mean_of(one.values()) for metric, one in values.items()}
            if means["AP"] is not None:
                known = {metric: mean for metric, mean in means.items() if mean is not None}
                found.setdefault(recipe, {})[method] = known
    best = {
        recipe: max((one["AP"].seeds, one["AP"].mean) for one in some.values())
        for recipe, some in found.items()
    }
    return task, {
        recipe: found[recipe] for recipe in sorted(found, key=best.__getitem__, reverse=True)
    }


def disagreements(study: Study) -> list[str]:
    """A sentence for each published order that the means over seeds do not have.

    Equal values are no agreement. Of each pair that is not as published it gives the difference on
    the same seeds with its interval, which may well include zero.
    """
    sentences = (_disagreement(study, order) for order in study.get("orders", ()))
    return [one for one in sentences if one]


def _disagreement(study: Study, order: Mapping[str, Any]) -> str:
    task, metric = order.get("task", "bbox"), order["metric"]
    seeds = {run: values_of(study, run, task, metric) for tied in order["runs"] for run in tied}
    common = sorted(set.intersection(*map(set, seeds.values())))
    source = f" ({order['source']})" if order.get("source") else ""
    absent = ", ".join(name_of(study, run) for run in order.get("without", ()))
    less = f" without {absent}" if absent else ""
    begin = f"The published order “{order['title']}”{source}{less} is not"
    if not common:
        return f"{begin} compared: its runs have no seed in common."
    pairs = counted_pairs(order["runs"])
    words = []
    for worse, better in pairs:
        gain = mean_of(seeds[better][seed] - seeds[worse][seed] for seed in common)
        if gain is not None and gain.mean <= 0:
            unsure = ", an interval that includes zero" if abs(gain.mean) <= gain.half else ""
            names = f"{name_of(study, better)} over {name_of(study, worse)}"
            words.append(f"{names} {signed(gain)}{unsure}")
    if not words:
        return ""
    tau = order.get("tau")
    measured = f"{KINDS[task].lower()} {metric}"
    over = f"{len(common)} seed{'s' * (len(common) > 1)}"
    are = "is" if len(words) == 1 else "are"
    return (
        f"{begin} reproduced: "
        f"{len(words)} of {len(pairs)} pairs {are} not that way around here "
        f"({measured}, {over}{f', Kendall’s tau {tau:.2f}' if _defined(tau) else ''}): "
        f"{'; '.join(words)}."
    )


def signed(mean: Mean | None, digits: int = 1) -> str:
    """A difference over seeds in print: "+1.4 ± 0.6"; "–" without any."""
    if mean is None:
        return "–"
    text = f"{mean.mean:+.{digits}f}" if mean.mean else f"{0:.{digits}f}"
    return text if math.isnan(mean.half) else f"{text} ± {mean.half:.{digits}f}"


def plain(mean: Mean | None, digits: int = 1, *, of: int = 0) -> str:
    """A metric over seeds in print: "30.5 ± 0.6", of fewer than ``of`` seeds "30.5 ± 0.6 (2 of 5)";
    "–" without any."""
    if mean is None:
        return "–"
    text = f"{mean.mean:.{digits}f}"
    text += "" if math.isnan(mean.half) else f" ± {mean.half:.{digits}f}"
    return f"{text} ({mean.seeds} of {of})" if mean.seeds < of else text


def seeds_of(study: Study) -> Sequence[str]:
    """The study's seeds as the keys of its runs."""
    return [str(seed) for seed in study["seeds"]]
