"""What a sweep over post-hoc methods found, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.result import LVISComparison, percent
from ..evaluation.top1_comparison import Top1Comparison
from ..posthoc import Settings
from ..visualization.palette import KINDS, METHOD_NAMES
from .family import METRICS
from .image_sweep import SHOWN as IMAGE_METRICS
from .image_sweep import TASK
from .methods import FACTUAL
from .settings import describe

__all__ = [
    "aligned",
    "axes_of",
    "cell",
    "format_posthoc",
    "gain_cell",
    "gains_of",
    "strength_of",
]


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """A table in Markdown whose first columns are flush left; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        [
            cell.ljust(w) if i < left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        ]
        for row in rows
    ]
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def strength_of(row: Mapping[str, Any]) -> str:
    """In words: of a method a number, of a composition all of them."""
    if row["method"] == FACTUAL:
        return ""
    if row["strength"] is None:
        known = {k: v for k, v in row["settings"].items() if k != "words"}
        return describe(Settings(**known)) or FACTUAL
    return f"{row['strength']:g}" if row["strength"] else "0 (off)"


def gains_of(comparison: LVISComparison | Top1Comparison) -> dict[str, dict[str, Any]]:
    """A paired comparison as JSON has it.

    Returns:
        Metric to "difference" and "interval" in points, and "wins", the share of the resamples in
        which the second is better.
    """
    return {
        name: {
            "difference": round(difference, 4),
            "interval": [round(end, 4) for end in comparison.intervals[name]],
            "wins": round(comparison.wins[name], 4),
        }
        for name, difference in comparison.difference.items()
    }


def gain_cell(gain: Mapping[str, Any] | None) -> str:
    """One of :func:`gains_of` in print: "+1.4 [+0.9, +2.0] 99%"; 0 where nothing is another."""
    if gain is None:
        return ""
    difference, ends = gain["difference"], gain["interval"]
    if difference is None or difference != difference or None in ends:
        return "n/a"
    if difference == ends[0] == ends[1] == 0:
        return "0"
    return f"{difference:+.1f} [{ends[0]:+.1f}, {ends[1]:+.1f}] {gain['wins']:.0%}"


def axes_of(found: Mapping[str, Any]) -> tuple[str, str]:
    """The metrics of the picture: of rare classes, and of all."""
    known = found["rows"][0]["calibration"]
    if found["task"] == TASK:
        return ("few", "balanced") if known.get("few") is not None else ("top1", "balanced")
    return ("APr", "AP") if "APr" in known else ("AP50", "AP")


def _kind(task: str) -> str:
    return "" if task == TASK else f"{KINDS.get(task, task).lower()} "


def cell(value: float | None, ends: Sequence[float | None] | None = None) -> str:
    """A metric in print, with its interval: "30.5 [28.1, 33.0]"."""
    text = "n/a" if value is None else percent(value)
    if text == "n/a" or not ends or None in ends:
        return text
    return f"{text} [{ends[0]:.1f}, {ends[1]:.1f}]"


def _gain(row: Mapping[str, Any], first: Mapping[str, Any], metric: str) -> float | None:
    after, before = row.get(metric), first.get(metric)
    if after is None or before is None or min(after, before) < 0:
        return None
    return after - before


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.1f}"


def format_posthoc(found: Mapping[str, Any]) -> str:
    """A table for each task, and what choosing flatters.

    Args:
        found: what :func:`~lvis_tde.calibration.posthoc_sweep.run_posthoc_sweep` returns.
    """
    rows, metric, task = found["rows"], found["metric"], found["task"]
    named = f"{_kind(task)}{metric}"
    cost = "".join(f", at most {v:g} {k} lost" for k, v in found["max_loss"].items())
    parts = [
        f"Best {named} on {found['chosen_on']}{cost}, of {found['tried']} settings: "
        f"{found['chosen']['words'] or 'nothing, as trained'}."
    ]
    tasks = list(rows[0].get("metrics", ()))
    tables: list[tuple[str, str]] = [(one, found["reported_on"]) for one in sorted(tasks)[::-1]]
    for of, dataset in tables or [(task, found["chosen_on"])]:
        parts.append(_table(rows, of, dataset, reported=bool(tables)))
        if tables and rows[-1].get("gains"):
            parts.append(_gains_table(rows, of))
    if tables and found["bootstrap"]:
        parts.append(
            f"In brackets 95 % intervals from {found['bootstrap']} resamples of the images; of "
            "gains on the same images for both, and behind them the share with a gain."
        )
    if found.get("remark"):
        parts.append(found["remark"])
    if task in tasks:
        parts += _gap(found, rows, named)
    return "\n\n".join(parts)


def _metrics_shown(known: Mapping[str, Any], task: str) -> list[str]:
    shown = [m for m in (IMAGE_METRICS if task == TASK else (*METRICS, "AP50")) if m in known]
    return [m for m in shown if m != "AP50" or "APr" not in known]


def _table(rows, task: str, dataset: str, *, reported: bool) -> str:
    def metrics(row) -> Mapping[str, Any]:
        return row["metrics"][task] if reported else row["calibration"]

    shown = _metrics_shown(metrics(rows[0]), task)
    table = [[f"{_kind(task)}on {dataset}", "strength", *shown]]
    for row in rows:
        ends = row.get("intervals", {}).get(task, {}) if reported else {}
        cells = [cell(metrics(row).get(m), ends.get(m)) for m in shown]
        # All strengths of the composition would make the table twice as wide.
        strength = "above" if row["strength"] is None else strength_of(row)
        table.append([METHOD_NAMES.get(row["method"], row["method"]), strength, *cells])
    return aligned(table, 2)


def _gains_table(rows, task: str) -> str:
    """Of each row the gain over the first, with its interval."""
    shown = _metrics_shown(rows[-1]["gains"].get(task, {}), task)
    table = [[f"{_kind(task)}gain over as trained", *shown]]
    for row in rows[1:]:
        gains = row["gains"].get(task, {})
        name = METHOD_NAMES.get(row["method"], row["method"])
        table.append([name, *(gain_cell(gains.get(metric)) for metric in shown)])
    return aligned(table, 1)


def _gap(found: Mapping[str, Any], rows, named: str) -> list[str]:
    metric, task = found["metric"], found["task"]
    heads = ["where it was chosen", "where it was not", "gap"]
    table, pairs = [[f"gain in {named}", *heads]], []
    for row in rows[1:]:
        chosen = _gain(row["calibration"], rows[0]["calibration"], metric)
        other = _gain(row["metrics"][task], rows[0]["metrics"][task], metric)
        gap = None if chosen is None or other is None else chosen - other
        pairs.append((chosen, other, gap))
        name = METHOD_NAMES.get(row["method"], row["method"])
        table.append([name, *map(_signed, pairs[-1])])
    return [
        aligned(table, 1),
        "The choice gains {} {named} on {chosen_on}, where it was chosen, and {} on {reported_on}, "
        "a gap of {}.".format(*map(_signed, pairs[-1]), named=named, **found),
    ]
