"""The finished units of a study together: ``study.json``."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...calibration.posthoc_table import gains_of
from ...calibration.tried import as_json
from ...evaluation import compare_resampled
from ...evaluation.ranking import counted_pairs, kendall_tau
from .file import Order, Study
from .provenance import together
from .resamples import Results, load_resamples
from .unit import Unit

__all__ = ["gather"]

_OF_RUN = ("strength", "settings", "calibration", "val", "intervals")


def gather(study: Study, units: Sequence[Unit]) -> dict[str, Any]:
    """All that the finished units found, with differences and rank correlations.

    Args:
        study: of the units.
        units: those that are not finished are left out.

    Returns:
        dict: as JSON has it: "title", "file", "set", "seeds", "commit", "date", "hardware",
        "seconds", "recipes", "runs" (run to seed to "strength", "settings", "calibration", "val"
        and "intervals"), "pairs" (differences of two runs of a seed on the same resamples of val),
        "orders" (Kendall's tau of published orders) and "curves" (recipe to seed to what was
        recorded over the training).

    Raises:
        ValueError: if no unit is finished.
    """
    found = {(unit.recipe.name, unit.seed): unit.result() for unit in units}
    done = {key: one for key, one in found.items() if one is not None}
    if not done:
        raise ValueError(f"{units[0].output} holds no finished unit of {study.title!r}.")
    runs: dict[str, dict[str, Any]] = {}
    for (recipe, seed), one in done.items():
        for method, row in one["runs"].items():
            values = {key: row[key] for key in _OF_RUN}
            runs.setdefault(f"{recipe}/{method}", {})[str(seed)] = values
    resamples = _Resamples({(u.recipe.name, u.seed): u.folder for u in units})
    return as_json(
        {
            "title": study.title,
            "file": study.content,
            "set": study.content["set"],
            "seeds": sorted({seed for _, seed in done}),
            **together([one.get("made", {}) for one in done.values()]),
            "seconds": round(sum(sum(one["seconds"].values()) for one in done.values()), 1),
            "recipes": {
                name: {"title": one.title, "config": Path(one.config).name, "opts": list(one.opts)}
                for name, one in study.recipes.items()
            },
            "runs": runs,
            "pairs": [
                {"run": run, "over": over, "seeds": resamples.compared(run, over, runs)}
                for run, over in study.pairs
                if _seeds_of(runs, (run, over))
            ],
            "orders": [_ranked(order, runs) for order in study.orders if _known(order, runs)],
            "curves": _curves(done),
        }
    )


def _seeds_of(runs: Mapping[str, Mapping[str, Any]], some: Iterable[str]) -> list[str]:
    """Seeds that all of some runs have, in order."""
    common = set.intersection(*(set(runs.get(run, ())) for run in some))
    return sorted(common, key=int)


class _Resamples:
    """Those of units, read when they are asked for."""

    def __init__(self, folders: Mapping[tuple[str, int], Path]):
        self._folders, self._known = folders, dict[tuple[str, int], Results]()

    def _of(self, run: str, seed: str) -> Mapping[str, Any]:
        recipe, _, method = run.partition("/")
        key = recipe, int(seed)
        if key not in self._known:
            self._known[key] = load_resamples(self._folders[key] / "resamples.npz")
        return self._known[key][method]

    def compared(self, run: str, over: str, runs: Mapping[str, Any]) -> dict[str, Any]:
        """Of each seed that has both the difference of each task that both have."""
        found = {}
        for seed in _seeds_of(runs, (run, over)):
            before, after = self._of(over, seed), self._of(run, seed)
            found[seed] = {
                task: gains_of(compare_resampled(before[task], after[task]))
                for task in sorted(before.keys() & after.keys())
            }
        return found


def _known(order: Order, runs: Mapping[str, Any]) -> list[list[str]]:
    """The order without the runs that have no such result; nothing where it then says nothing."""

    def has(run: str) -> bool:
        seeds = runs.get(run, {}).values()
        return bool(seeds) and all(order.task in one["val"] for one in seeds)

    tied = [[run for run in some if has(run)] for some in order.runs]
    tied = [some for some in tied if some]
    return tied if len(tied) > 1 and _seeds_of(runs, sum(tied, [])) else []


def _ranked(order: Order, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    tied = _known(order, runs)
    names = sum(tied, [])
    seeds = _seeds_of(runs, names)

    def values(some: Sequence[str]) -> dict[str, float]:
        return {
            run: statistics.fmean(runs[run][seed]["val"][order.task][order.metric] for seed in some)
            for run in names
        }

    return {
        **{k: v for k, v in dataclasses.asdict(order).items() if k != "runs"},
        "runs": tied,
        "without": [run for run in (*sum(order.runs, ()), *order.without) if run not in names],
        "tau": round(kendall_tau(tied, values(seeds)), 4),
        "pairs": len(counted_pairs(tied)),
        "seeds": {seed: round(kendall_tau(tied, values([seed])), 4) for seed in seeds},
    }


def _curves(done: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    curves: dict[str, dict[str, Any]] = {}
    for (recipe, seed), one in done.items():
        if one["curve"]:
            curves.setdefault(recipe, {})[str(seed)] = one["curve"]
    return curves
