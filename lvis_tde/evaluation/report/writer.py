"""A report of one or several runs: a self-contained HTML page and its figures as PNGs."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from ...visualization.class_charts import (
    COLORS,
    NAMES,
    ap_against_images,
    change_bars,
    changes,
    confusion_bars,
    dots,
    frequency_bars,
    trend,
)
from ..confusion import Confusions
from ..result import LVISResult
from .page import PAGE


def write_report(
    output_dir: str | os.PathLike[str],
    results: Mapping[str, LVISResult],
    confusions: Mapping[str, Confusions] | None = None,
) -> Path:
    """Write ``report.html`` and its PNGs.

    Args:
        output_dir: folder, made if it is missing.
        results: name of a run to its result, all on the same annotations. Between the first and
            the last of several the most improved and most damaged classes are shown.
        confusions: name of a run to its confusions of rare classes.

    Returns:
        Path of the page, which needs no other file.

    Raises:
        ValueError: no result, or runs of different IoU types.
    """
    types = {result.iou_type for result in results.values()}
    if len(types) != 1:
        raise ValueError(f"a report needs runs of one IoU type, got {sorted(types)}")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    runs = list(results.values())
    figures = {"frequency_bars": frequency_bars(results)}
    figures["ap_against_images"] = ap_against_images(results)
    if len(runs) > 1:
        figures["changes"] = change_bars(runs[0], runs[-1])
    if confusions:
        figures["rare_confusions"] = confusion_bars(confusions)
    images = {name: _save(figure, folder / f"{name}.png") for name, figure in figures.items()}
    sections = [
        (
            "Rare, common and frequent classes",
            _image(images["frequency_bars"], 620) + _metrics(results),
        ),
        (
            "AP against training images",
            "<p class=note>One dot a class, " + ", ".join(map(_mark, "rcf")) + "; point at it for "
            "its name. The line is the mean of each tenth of the classes.</p><div class=panels>"
            + "".join(_scatter(name, result) for name, result in results.items())
            + "</div>",
        ),
    ]
    if len(runs) > 1:
        names = list(results)
        title = f"Most improved and most damaged, {names[0]} → {names[-1]}"
        sections.append((title, _image(images["changes"], 760) + _change_tables(runs[0], runs[-1])))
    if confusions:
        note = (
            "<p class=note>For each object of a rare class: the highest-scoring detection whose "
            "box has an IoU of at least 0.5 with it.</p>"
        )
        sections.append(
            (
                "What rare classes are taken for",
                note + _image(images["rare_confusions"], 720 if len(runs) == 1 else 1160),
            )
        )
    sections.append(("All classes", _class_table(results)))
    body = "".join(f"<section><h2>{escape(t)}</h2>{content}</section>" for t, content in sections)
    title = f"LVIS {next(iter(types))}: {' / '.join(results)}"
    page = folder / "report.html"
    page.write_text(PAGE.replace("$TITLE", escape(title)).replace("$BODY", body), "utf-8")
    return page


def _save(figure: Figure, path: Path) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def _image(png: bytes, width: int) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="" style="width:{width}px" src="data:image/png;base64,{data}">'


def _number(value: float, sign: bool = False) -> str:
    if math.isnan(value) or value < -100 + 1e-9 and not sign:
        return "–"
    return f"{value:+.1f}" if sign else f"{value:.1f}"


def _metrics(results: Mapping[str, LVISResult]) -> str:
    keys = list(next(iter(results.values())).metrics)
    rows = [
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{_number(result.metrics[key])}</td>" for key in keys)
        for name, result in results.items()
    ]
    if len(results) > 1:
        first, *_, last = results.values()
        cells = []
        for key in keys:
            defined = min(first.metrics[key], last.metrics[key]) > -100
            change = last.metrics[key] - first.metrics[key] if defined else math.nan
            cells.append(f"<td>{_number(change, sign=True)}</td>")
        rows.append(f"<tr class=change><th>change</th>{''.join(cells)}")
    head = "".join(f"<th>{key}</th>" for key in keys)
    return f"<div class=wide><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"


def _tip(row: dict) -> str:
    text = (
        f"{row['name']} ({NAMES[row['frequency']]}): AP {row['AP']:.1f}, "
        f"{row['image_count']} training images, {row['num_gt']} objects here"
    )
    return escape(text, quote=True)


def _scatter(name: str, result: LVISResult, width: int = 640, height: int = 400) -> str:
    rows = dots(result)
    left, right, top, bottom = 44, 12, 28, 40
    most = max((row["image_count"] for row in rows), default=1)
    span = max(math.log10(most) + 0.1, 1)

    def x(count: float) -> float:
        return left + (width - left - right) * math.log10(count) / span

    def y(ap: float) -> float:
        return height - bottom - (height - top - bottom) * ap / 100

    parts = [f'<text x="{left}" y="16" class=title>{escape(name)}</text>']
    for ap in range(0, 101, 20):
        parts.append(f'<path class=grid d="M{left} {y(ap):.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(ap) + 4:.1f}" class=end>{ap}</text>')
    for power in range(int(span) + 1):
        at = x(10**power)
        parts.append(f'<path class=grid d="M{at:.1f} {top}V{height - bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - 22}" class=mid>{10**power:,}</text>')
    label = "training images of the class"
    parts.append(f'<text x="{width / 2}" y="{height - 5}" class=mid>{label}</text>')
    for row in rows:
        parts.append(
            f'<circle cx="{x(row["image_count"]):.1f}" cy="{y(row["AP"]):.1f}" r="3.6" '
            f'fill="{COLORS[row["frequency"]]}" data-tip="{_tip(row)}"/>'
        )
    line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(*trend(rows)))
    parts.append(f'<polyline points="{line}"/>')
    return f'<svg viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'


def _mark(frequency: str) -> str:
    return f'<i style="background:{COLORS[frequency]}"></i>{NAMES[frequency]}'


def _change_tables(before: LVISResult, after: LVISResult) -> str:
    tables = []
    for title, rows in zip(("Most improved", "Most damaged"), changes(before, after)):
        body = "".join(
            f"<tr><td>{escape(row['name'])}<td>{_mark(row['frequency'])}"
            f"<td>{row['image_count'] or '–'}<td>{row['num_gt']}<td>{_number(row['before'])}"
            f"<td>{_number(row['AP'])}<td>{_number(row['change'], sign=True)}"
            for row in rows
        )
        head = "<tr><th>class<th><th>images<th>objects<th>before<th>after<th>change"
        tables.append(f"<div><h3>{title}</h3><table>{head}{body}</table></div>")
    return f"<div class=panels>{''.join(tables)}</div>"


def _class_table(results: Mapping[str, LVISResult]) -> str:
    columns = ["class", "frequency", "training images", "objects", "detections counted"]
    columns += [f"{m} {name}" for name in results for m in ("AP", "AP50", "AR")]
    body = []
    for rows in zip(*(result.per_category for result in results.values())):
        row = rows[0]
        cells = [escape(row["name"]), _mark(row["frequency"]), row["image_count"] or "–"]
        cells += [row["num_gt"], " / ".join(str(r["num_dt"]) for r in rows)]
        cells += [_number(r[m]) for r in rows for m in ("AP", "AP50", "AR")]
        body.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    head = "".join(f"<th>{escape(column)}" for column in columns)
    return (
        '<p><input id=filter type=search placeholder="filter by name"> '
        "Click on a heading to sort.</p><div class='wide tall'>"
        f"<table id=classes><thead><tr>{head}</thead><tbody>{''.join(body)}</tbody></table></div>"
    )
