"""A report of one or several classifiers on a test set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ...visualization.charts import TOP1_BARS, plot_group_ap
from ...visualization.class_charts import (
    ap_against_images,
    change_bars,
    confusion_bars,
    highest_ap,
)
from ...visualization.palette import TOP1_GROUPS
from ...visualization.top1_charts import plot_reliability, plot_shifts
from ..top1 import Top1Result
from ..top1_comparison import compare_top1
from .classes import changes, dots, trend
from .page import picture, write_page
from .scatter import scatter
from .tables import change_tables, filtered, mark, number, span

__all__ = ["write_top1_report"]

_OUTCOMES = {
    "": "their own class",
    "r": "another one with few",
    "c": "one with medium",
    "f": "one with many",
}


@dataclass
class _Rows:
    """Rows as the charts of detection have them."""

    per_category: list[dict[str, Any]]

    def __init__(self, result: Top1Result) -> None:
        self.per_category = [
            {**row, "AP": row["accuracy"], "num_gt": row["images"]} for row in result.per_class
        ]


def write_top1_report(
    output_dir: str | os.PathLike[str], results: Mapping[str, Top1Result], bootstrap: int = 1000
) -> Path:
    """Write ``report.html`` and its PNGs.

    Args:
        output_dir: folder, made if it is missing.
        results: name of a run to its result, all on the same images. The last of several is
            compared to the first.
        bootstrap: resamples of that comparison; 0 for no intervals.

    Returns:
        Path of the page, which needs no other file.

    Raises:
        ValueError: no result, or results on different images.
    """
    if not results:
        raise ValueError("results is empty: pass at least one run")
    folder, names = Path(output_dir), list(results)
    rows = {name: _Rows(result) for name, result in results.items()}
    sections = [
        ("Classes of many, medium and few training images", _groups(folder, results, bootstrap)),
        ("Accuracy against training images", _images(folder, rows)),
        ("Other priors of the test set", _shifts(folder, results)),
    ]
    if len(names) > 1:
        better, worse = changes(rows[names[0]], rows[names[-1]])
        words = "Change of accuracy, most improved and most damaged classes (points)"
        options: Any = {"groups": TOP1_GROUPS, "counted": "test images"}
        figure = change_bars(better + worse[::-1], title=words, **options)
        part = picture(figure, folder / "changes.png", 760)
        title = f"Most improved and most damaged, {names[0]} → {names[-1]}"
        sections.append((title, part + change_tables(better, worse, **options)))
    if any(row["frequency"] == "r" and row["images"] for row in rows[names[0]].per_category):
        sections.append(("What classes of few images are taken for", _confusions(folder, results)))
    sections.append(("Calibration", _calibration(folder, results)))
    sections.append(("All classes", _class_table(results)))
    return write_page(folder, f"Classification: {' / '.join(names)}", sections)


def _groups(folder: Path, results: Mapping[str, Top1Result], bootstrap: int) -> str:
    low, high = next(iter(results.values())).bounds
    words = {"many": f"many\n> {high} images", "few": f"few\n< {low} images"}
    words["medium"] = f"medium\n{low} to {high} images"
    figure = plot_group_ap(
        {name: {"top1": result.metrics} for name, result in results.items()},
        task="top1",
        names={name: name for name in results},
        title="Top-1 accuracy by training images of the class (%)",
        metrics={m: (words.get(m, label), color) for m, (label, color) in TOP1_BARS.items()},
        intervals={name: result.intervals for name, result in results.items()},
    )
    return picture(figure, folder / "top1_groups.png", 680) + _metrics_table(results, bootstrap)


def _metrics_table(results: Mapping[str, Top1Result], bootstrap: int) -> str:
    first, *_, last = [*results.values()] * 2
    keys = list(first.metrics)
    rows = []
    for name, result in results.items():
        cells = [_cell(result.metrics[key], result.intervals.get(key)) for key in keys]
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}")
    known = any(result.intervals for result in results.values())
    note = "Brackets: 95 % intervals over test images, drawn within each class." if known else ""
    if len(results) > 1:
        found = compare_top1(first, last, bootstrap=max(bootstrap, 1))
        intervals = found.intervals if bootstrap else {}
        change = last.metrics["ece"] - first.metrics["ece"]
        cells = [_cell(found.difference[k], intervals.get(k), True) for k in keys if k != "ece"]
        rows.append(f"<tr class=change><th>change</th>{''.join(cells)}{_cell(change, None, True)}")
        note += (
            f" The change is that of the same images: {found.gained} became right, {found.lost} "
            "wrong"
        )
        share = f"; the last run is better in {100 * found.wins['top1']:.1f} % of the resamples"
        note += f"{share if bootstrap else ''}."
    head = "".join(f"<th>{key}</th>" for key in keys)
    return (
        f"<div class=wide><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
        f"<p class=note>{note}</p>"
    )


def _cell(value: float, interval: tuple[float, float] | None, sign: bool = False) -> str:
    words = number(value, sign)
    if interval and words != "–":
        words += f" <small>[{number(interval[0], sign)}, {number(interval[1], sign)}]</small>"
    return f"<td>{words}</td>"


def _tip(row: Mapping[str, Any]) -> str:
    return (
        f"{row['name']} ({TOP1_GROUPS[row['frequency']]}): {row['AP']:.1f} % right, "
        f"{row['image_count']} training images, {row['num_gt']} images here"
    )


def _images(folder: Path, rows: Mapping[str, _Rows]) -> str:
    runs = {name: dots(run) for name, run in rows.items()}
    panels = {name: (run, trend(run)) for name, run in runs.items()}
    title = "Accuracy of each class against its training images (%)"
    figure = ap_against_images(panels, title=title, groups=TOP1_GROUPS)
    picture(figure, folder / "accuracy_against_images.png")
    highest = highest_ap([row for run in runs.values() for row in run])
    charts = "".join(scatter(name, *panel, highest, tip=_tip) for name, panel in panels.items())
    marks = ", ".join(mark(group, TOP1_GROUPS) for group in TOP1_GROUPS)
    missing = len(next(iter(rows.values())).per_category) - len(next(iter(runs.values())))
    left_out = f" Classes without training or test images have none: {missing}." if missing else ""
    return (
        f"<p class=note>One dot per class, {marks}; point at it for its name. The line is the mean "
        f"of each tenth of the classes.{left_out}</p><div class=panels>{charts}</div>"
    )


def _shifts(folder: Path, results: Mapping[str, Top1Result]) -> str:
    shown = {name: result.shifted for name, result in results.items()}
    bands = {name: result.intervals for name, result in results.items()}
    figure = plot_shifts(shown, intervals=bands, names={name: name for name in results})
    return (
        "<p class=note>Each class's accuracy weighted by its share in test sets as LADE makes them "
        "(Hong et al. 2021): under forward 50 the most frequent class of training is 50 times as "
        "likely as the rarest, under backward 50 the other way round. No run is told the prior."
        "</p>"
    ) + picture(figure, folder / "shifts.png", 760)


def _confusions(folder: Path, results: Mapping[str, Top1Result]) -> str:
    outcomes, mistakes = {}, {}
    for name, result in results.items():
        rows, pairs = result.per_class, Counter(
            zip(result.labels.tolist(), result.predictions.tolist())
        )
        counts = dict.fromkeys(_OUTCOMES.values(), 0)
        wrong = []
        for (label, taken), n in pairs.most_common():
            if rows[label]["frequency"] != "r":
                continue
            group = rows[taken]["frequency"] if taken != label else ""
            counts[_OUTCOMES[group]] += n
            if group:
                wrong.append((rows[label]["name"], rows[taken]["name"], group, n))
        outcomes[name], mistakes[name] = counts, wrong[:15]
    figure = confusion_bars(
        outcomes,
        mistakes,
        title="Images of classes with few training images are taken for … (%)",
        counted="images",
    )
    return picture(figure, folder / "few_confusions.png", 720 if len(results) == 1 else 1160)


def _calibration(folder: Path, results: Mapping[str, Top1Result]) -> str:
    bins = {name: result.reliability for name, result in results.items()}
    errors = {name: result.metrics["ece"] for name, result in results.items()}
    figure = plot_reliability(bins, errors=errors, names={name: name for name in results})
    return (
        "<p class=note>A dot for each bin of confidence, its area the share of the images. Below "
        "the diagonal the model is surer than it is right.</p>"
    ) + picture(figure, folder / "calibration.png", int(72 * figure.get_figwidth()))


def _class_table(results: Mapping[str, Top1Result]) -> str:
    columns = ["class", "group", "training images", "test images"]
    columns += [f"{m} {name}" for name in results for m in ("accuracy", "predicted")]
    body = []
    for rows in zip(*(result.per_class for result in results.values())):
        row = rows[0]
        cells = [escape(row["name"]), mark(row["frequency"], TOP1_GROUPS), row["image_count"]]
        cells += [row["images"]]
        for r in rows:
            cells += [f"{number(r['accuracy'])}{span(r.get('interval'))}", r["predicted"]]
        body.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    return filtered(columns, body)
