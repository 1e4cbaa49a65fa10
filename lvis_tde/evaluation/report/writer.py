"""A report of one or several runs: a self-contained HTML page and its figures as PNGs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path

from ...visualization import palette
from ...visualization.charts import plot_group_ap
from ...visualization.class_charts import (
    ap_against_images,
    change_bars,
    confusion_bars,
    highest_ap,
    rank_bars,
)
from ..confusion import OUTCOMES, RANKS, Confusions
from ..result import LVISComparison, LVISResult
from .classes import changes, dots, trend
from .page import picture, write_page
from .scatter import scatter
from .tables import change_tables, class_table, difference_table, mark, metrics_table

__all__ = ["write_report"]


def write_report(
    output_dir: str | os.PathLike[str],
    results: Mapping[str, LVISResult],
    confusions: Mapping[str, Confusions] | None = None,
    *,
    dataset: str = "",
    model: str = "",
    remark: str = "",
    comparison: LVISComparison | None = None,
) -> Path:
    """Write ``report.html`` and its PNGs.

    Args:
        output_dir: folder, made if it is missing.
        results: name of a run to its result, all on the same annotations. Between the first and
            the last of several the most improved and most damaged classes are shown.
        confusions: name of a run to its confusions of rare classes.
        dataset: its name, for the title.
        model: what all runs share, likewise.
        remark: words above all else.
        comparison: of the first run with the last.

    Returns:
        Path of the page, which needs no other file.

    Raises:
        ValueError: no result, or runs of different IoU types.
    """
    types = {result.iou_type for result in results.values()}
    if len(types) != 1:
        raise ValueError(f"a report needs runs of one IoU type, got {sorted(types)}")
    (iou_type,) = types
    folder, names = Path(output_dir), list(results)
    sections = [
        ("Rare, common and frequent classes", _groups(folder, results, iou_type)),
        ("AP against training images", _images(folder, results, iou_type)),
    ]
    if comparison is not None:
        title = f"Is {names[-1]} better than {names[0]}?"
        sections.insert(1, (title, difference_table(comparison)))
    if len(names) > 1:
        title = f"Most improved and most damaged, {names[0]} → {names[-1]}"
        sections.append((title, _changes(folder, results[names[0]], results[names[-1]])))
    if confusions:
        sections.append(("Where rare classes are found", _ranks(folder, confusions)))
        sections.append(("What rare classes are taken for", _confusions(folder, confusions)))
    sections.append(("All classes", class_table(results)))
    if remark:
        sections.insert(0, ("Note", f"<p>{escape(remark)}</p>"))
    kind, runs = palette.KINDS.get(iou_type, iou_type), " / ".join(names)
    title = f"{kind} AP on {dataset or 'LVIS'}: {f'{model}, ' if model else ''}{runs}"
    return write_page(folder, title, sections)


def _groups(folder: Path, results: Mapping[str, LVISResult], iou_type: str) -> str:
    runs = {name: {iou_type: result.metrics} for name, result in results.items()}
    intervals = {name: result.intervals for name, result in results.items() if result.intervals}
    figure = plot_group_ap(
        runs, task=iou_type, names={name: name for name in runs}, intervals=intervals or None
    )
    return picture(figure, folder / "group_ap.png", 680) + metrics_table(results)


def _images(folder: Path, results: Mapping[str, LVISResult], iou_type: str) -> str:
    runs = {name: dots(result) for name, result in results.items()}
    panels = {name: (rows, trend(rows)) for name, rows in runs.items()}
    picture(ap_against_images(panels, task=iou_type), folder / "ap_against_images.png")
    highest = highest_ap([row for rows in runs.values() for row in rows])
    charts = "".join(scatter(name, *panel, highest) for name, panel in panels.items())
    return (
        f"<p class=note>One dot per class, {', '.join(map(mark, palette.GROUPS))}; point at it for "
        "its name. The line is the mean of each tenth of the classes.</p>"
        f"<div class=panels>{charts}</div>"
    )


def _changes(folder: Path, before: LVISResult, after: LVISResult) -> str:
    better, worse = changes(before, after)
    figure = change_bars(better + worse[::-1])
    return picture(figure, folder / "changes.png", 760) + change_tables(better, worse)


def _ranks(folder: Path, confusions: Mapping[str, Confusions]) -> str:
    ranks = {name: {r: item.ranks[r] for r in RANKS} for name, item in confusions.items()}
    return (
        "<p class=note>This is what APr measures: each class has a ranking of its own, from its "
        "highest score in the whole set to its lowest, and n is the number of its objects. An "
        "object counts as found by the best detection of its class on it (IoU of the boxes at "
        "least 0.5), even where other classes score higher at that place, which the next chart "
        "shows. So a class can have a high AP and hardly ever be the best guess.</p>"
    ) + picture(rank_bars(ranks), folder / "rare_ranks.png", 900)


def _confusions(folder: Path, confusions: Mapping[str, Confusions]) -> str:
    outcomes = {n: {o: item.outcomes[o] for o in OUTCOMES} for n, item in confusions.items()}
    mistakes = {
        name: [(a, b, item.frequencies[b], n) for (a, b), n in item.pairs.most_common(15)]
        for name, item in confusions.items()
    }
    figure = confusion_bars(outcomes, mistakes)
    width = 720 if len(confusions) == 1 else 1160
    return (
        "<p class=note>For each object of a rare class: the highest-scoring detection whose box "
        "has an IoU of at least 0.5 with it, whatever its class. AP does not depend on this.</p>"
    ) + picture(figure, folder / "rare_confusions.png", width)
