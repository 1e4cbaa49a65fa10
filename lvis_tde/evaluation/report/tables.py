"""The tables of the page, as HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ...visualization.palette import GROUP_COLORS, GROUPS
from ..result import LVISComparison, LVISResult

__all__ = [
    "change_tables",
    "class_table",
    "difference_table",
    "filtered",
    "mark",
    "metrics_table",
    "number",
    "span",
]

Rows = Sequence[Mapping[str, Any]]


def number(value: float, sign: bool = False) -> str:
    """A figure with one decimal; a dash where there is none."""
    if math.isnan(value) or value < -100 + 1e-9 and not sign:
        return "–"
    return f"{value:+.1f}" if sign else f"{value:.1f}"


def metrics_table(results: Mapping[str, LVISResult]) -> str:
    """All metrics: a line per run, and the change from the first to the last of several.

    Args:
        results: name of a run to its result.

    Returns:
        HTML.
    """
    keys = list(next(iter(results.values())).metrics)
    rows = [
        f"<tr><th>{escape(name)}</th>"
        + "".join(
            f"<td>{number(result.metrics[key])}{span(result.intervals.get(key))}</td>"
            for key in keys
        )
        for name, result in results.items()
    ]
    if len(results) > 1:
        first, *_, last = results.values()
        cells = []
        for key in keys:
            defined = min(first.metrics[key], last.metrics[key]) > -100
            change = last.metrics[key] - first.metrics[key] if defined else math.nan
            cells.append(f"<td>{number(change, sign=True)}</td>")
        rows.append(f"<tr class=change><th>change</th>{''.join(cells)}")
    head = "".join(f"<th>{key}</th>" for key in keys)
    return f"<div class=wide><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"


def span(ends: tuple[float, float] | None, sign: bool = False) -> str:
    """An interval below its figure; nothing without one."""
    if ends is None or math.isnan(ends[0]):
        return ""
    # The blank ends the number by which the page sorts.
    return f" <br><small>{number(ends[0], sign)} to {number(ends[1], sign)}</small>"


def difference_table(comparison: LVISComparison) -> str:
    """The difference of two runs with its interval, and how often the second is better, as HTML."""
    rows = "".join(
        f"<tr><th>{name}</th><td>{number(difference, sign=True)}"
        f"{span(comparison.intervals[name], sign=True)}</td>"
        f"<td>{'–' if math.isnan(wins) else f'{wins:.0%}'}</td></tr>"
        for (name, difference), wins in zip(comparison.difference.items(), comparison.wins.values())
    )
    return (
        "<p class=note>Resamples of the images, the same for both: the interval holds 95 % of the "
        "differences. Other images would have given others; so would another training, which "
        "this does not measure.</p>"
        "<table><tr><th></th><th>difference</th><th>resamples in which it is better</th></tr>"
        f"{rows}</table>"
    )


def mark(frequency: str, groups: Mapping[str, str] = GROUPS) -> str:
    """Name of a group beside a dot in its color, as HTML."""
    return f'<i style="background:{GROUP_COLORS[frequency]}"></i>{groups[frequency]}'


def change_tables(
    better: Rows, worse: Rows, groups: Mapping[str, str] = GROUPS, counted: str = "objects"
) -> str:
    """Two tables side by side.

    Args:
        better: most improved classes, from :func:`~lvis_tde.evaluation.report.classes.changes`.
        worse: most damaged ones, likewise.
        groups: names of the groups.
        counted: what ``num_gt`` counts.

    Returns:
        HTML.
    """
    tables = []
    for title, rows in (("Most improved", better), ("Most damaged", worse)):
        body = "".join(
            f"<tr><td>{escape(row['name'])}<td>{mark(row['frequency'], groups)}"
            f"<td>{row['image_count'] or '–'}<td>{row['num_gt']}<td>{number(row['before'])}"
            f"<td>{number(row['AP'])}<td>{number(row['change'], sign=True)}"
            for row in rows
        )
        head = f"<tr><th>class<th><th>images<th>{counted}<th>before<th>after<th>change"
        tables.append(f"<div><h3>{title}</h3><table>{head}{body}</table></div>")
    return f"<div class=panels>{''.join(tables)}</div>"


def class_table(results: Mapping[str, LVISResult]) -> str:
    """A line per class, for the page's filter and sorting; those without objects are hidden.

    Args:
        results: name of a run to its result, all on the same annotations.

    Returns:
        HTML.
    """
    columns = ["class", "frequency", "training images", "objects", "detections counted"]
    columns += [f"{m} {name}" for name in results for m in ("AP", "AP50", "AR")]
    columns += ["change of AP"] if len(results) > 1 else []
    body = []
    for rows in zip(*(result.per_category for result in results.values())):
        row = rows[0]
        cells = [escape(row["name"]), mark(row["frequency"]), row["image_count"] or "–"]
        cells += [row["num_gt"], " / ".join(str(r["num_dt"]) for r in rows)]
        for r in rows:
            cells.append(f"{number(r['AP'])}{span(r.get('interval'))}")
            cells += [number(r[m]) for m in ("AP50", "AR")]
        if len(rows) > 1:
            cells.append(number(rows[-1]["AP"] - rows[0]["AP"], sign=True))
        start = "<tr>" if row["num_gt"] else "<tr class=empty hidden>"
        body.append(start + "".join(f"<td>{cell}" for cell in cells))
    return filtered(columns, body)


def filtered(columns: Sequence[str], body: Sequence[str]) -> str:
    """The table that the page filters by its first column and sorts by any.

    Args:
        columns: their headings; numbers from the third on.
        body: rows as HTML; those that begin with ``<tr class=empty hidden>`` are shown on request.

    Returns:
        HTML.
    """
    head = "".join(f"<th>{escape(column)}" for column in columns)
    empty = sum(row.startswith("<tr class=empty") for row in body)
    switch = (
        f" <label><input id=empty type=checkbox> show the {empty} classes without objects</label>"
        if empty
        else ""
    )
    return (
        '<p><input id=filter type=search placeholder="filter by name"> '
        f"Click on a heading to sort.{switch}</p><div class='wide tall'>"
        f"<table id=classes><thead><tr>{head}</thead><tbody>{''.join(body)}</tbody></table></div>"
    )
