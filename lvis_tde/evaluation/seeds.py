"""Means and intervals over seeds: what another training would have given.

The 95 % interval of a mean is Student's. Runs of one seed share its training set, so gains are
taken seed by seed, which is far narrower than the difference of two means.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

__all__ = ["seed_half_width", "seed_intervals", "seed_rows", "student"]

Seeds = Sequence[Mapping[str, float]]
SHOWN = {"top1": "top-1", "many": "many", "medium": "medium", "few": "few"}


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, to 0.003.

    Args:
        freedom: degrees of freedom, >= 1.
    """
    if freedom < 5:
        return (12.706, 4.303, 3.182, 2.776)[freedom - 1]
    # Expansion about the normal quantile (Abramowitz and Stegun 26.7.5).
    terms = (1.95996, 2.37227, 2.82250, 2.55585)
    return sum(term / freedom**power for power, term in enumerate(terms))


def seed_half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean.

    Args:
        values: one per seed, at least one.

    Returns:
        NaN for a single seed, which says nothing about another, and where a seed has NaN.
    """
    if len(values) < 2 or any(map(math.isnan, values)):
        return math.nan
    return student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def seed_intervals(
    runs: Mapping[str, Seeds], metrics: Sequence[str] = tuple(SHOWN)
) -> dict[str, dict[str, tuple[float, float]]]:
    """Intervals of the mean of each metric of each run, for the charts.

    Args:
        runs: name of a run to its metrics, one mapping per seed.
        metrics: which.

    Returns:
        Run to metric to (low, high).
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for run, seeds in runs.items():
        found[run] = {}
        for metric in metrics:
            values = [seed[metric] for seed in seeds]
            mean, half = statistics.fmean(values), seed_half_width(values)
            found[run][metric] = mean - half, mean + half
    return found


def seed_rows(
    runs: Mapping[str, Seeds],
    *,
    names: Mapping[str, str] | None = None,
    metrics: Mapping[str, str] = SHOWN,
    gains: Sequence[str] = ("top1", "few"),
) -> list[list[str]]:
    """A table of runs: mean and interval of each metric, and the gain over the first run.

    Args:
        runs: name of a run to its metrics, one mapping per seed; all with the same seeds in the
            same order.
        names: what to call the runs.
        metrics: which, and their headings.
        gains: metrics to give the gain of, with the interval of its mean over seeds.

    Returns:
        Rows of cells; the first is the head.

    Raises:
        ValueError: no run, or runs of different numbers of seeds.
    """
    numbers = {len(seeds) for seeds in runs.values()}
    if len(numbers) != 1 or 0 in numbers:
        raise ValueError(f"runs need the same seeds, got runs of {sorted(numbers)} seeds")
    table = [["run", *metrics.values(), *(f"gain in {metrics[m]}" for m in gains)]]
    first = next(iter(runs))
    for run, seeds in runs.items():
        cells = [_cell([seed[m] for seed in seeds], ".1f") for m in metrics]
        for m in gains:
            changes = [seed[m] - base[m] for seed, base in zip(seeds, runs[first])]
            cells.append("" if run == first else _cell(changes, "+.1f"))
        table.append([(names or {}).get(run, run), *cells])
    return table


def _cell(values: Sequence[float], form: str) -> str:
    mean, half = statistics.fmean(values), seed_half_width(values)
    if math.isnan(mean):
        return "–"
    return f"{mean:{form}}" if math.isnan(half) else f"{mean:{form}} ± {half:.1f}"
