"""A study as one CSV file in long form: a row for each number, for other programs to draw from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

from .numbers import METRICS, Mean, changes_of, mean_of, ranks_of, tasks_of, values_of

__all__ = ["COLUMNS", "tidy_csv"]

COLUMNS = (
    *("kind", "run", "over", "task", "metric", "seed", "value", "low", "high"),
    *("interval", "seeds", "wins", "rank", "strength"),
)
"""Of "run" and "difference" rows with a seed have 95 % intervals over images, those without one the
mean over seeds with Student's; ``wins`` is the share of the resamples, in their mean rows of the
seeds, in which the first run is better. "tau" is of published orders."""

_IMAGES, _SEEDS = "images", "seeds"


def tidy_csv(study: Mapping[str, Any]) -> str:
    """All numbers of the tables.

    Args:
        study: content of ``study.json``.

    Returns:
        CSV with :data:`COLUMNS`; what a row does not have is empty.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for rows in (_runs(study), _differences(study), _orders(study)):
        writer.writerows(rows)
    return text.getvalue()


def _over_seeds(mean: Mean | None) -> dict[str, Any]:
    if mean is None:
        return {}
    row: dict[str, Any] = {"value": round(mean.mean, 4), "seeds": mean.seeds}
    if not math.isnan(mean.half):
        ends = {"low": mean.mean - mean.half, "high": mean.mean + mean.half}
        row |= {name: round(end, 4) for name, end in ends.items()}
        row["interval"] = _SEEDS
    return row


def _ends(interval: Any) -> dict[str, Any]:
    if not interval or None in interval:
        return {}
    return {"low": interval[0], "high": interval[1], "interval": _IMAGES}


def _runs(study: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task in tasks_of(study):
        for metric in METRICS:
            ranks = ranks_of(study, task, metric)
            for run, seeds in study["runs"].items():
                values = values_of(study, run, task, metric)
                row = {"kind": "run", "run": run, "task": task, "metric": metric}
                for seed, value in values.items():
                    ends = seeds[seed].get("intervals", {}).get(task, {}).get(metric)
                    one = {"seed": seed, "value": value, "strength": seeds[seed].get("strength")}
                    yield {**row, **one, **_ends(ends)}
                if values:
                    rank = {"rank": f"{ranks[run]:g}"} if run in ranks else {}
                    yield {**row, **_over_seeds(mean_of(values.values())), **rank}


def _differences(study: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for pair in study.get("pairs", ()):
        named = {"kind": "difference", "run": pair["run"], "over": pair["over"]}
        for task in sorted({task for one in pair["seeds"].values() for task in one}):
            for metric in METRICS:
                row = {**named, "task": task, "metric": metric}
                found = changes_of(pair, task, metric)
                for seed, one in found.items():
                    own = {"seed": seed, "value": one["difference"], "wins": one["wins"]}
                    yield {**row, **own, **_ends(one["interval"])}
                if found:
                    mean = mean_of(one["difference"] for one in found.values())
                    shares = mean_of(w for one in found.values() if (w := one["wins"]) is not None)
                    wins = {"wins": round(shares.mean, 4)} if shares else {}
                    yield {**row, **_over_seeds(mean), **wins}


def _orders(study: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for order in study.get("orders", ()):
        row = {"kind": "tau", "run": order["title"], "metric": order["metric"]}
        row["task"] = order.get("task", "bbox")
        for seed, tau in order["seeds"].items():
            yield {**row, "seed": seed, "value": tau}
        yield {**row, "value": order.get("tau"), "seeds": len(order["seeds"])}
