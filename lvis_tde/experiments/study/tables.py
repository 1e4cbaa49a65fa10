"""The tables of a study: plain rows first, then Markdown, LaTeX and CSV of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...calibration.methods import FACTUAL
from ...calibration.posthoc_table import aligned, cell, gain_cell
from ...evaluation.ranking import highest_tau
from ...visualization.palette import KINDS, METHOD_NAMES
from .numbers import (
    METRICS,
    changes_of,
    glance,
    incomplete_in_words,
    mean_of,
    name_of,
    plain,
    ranks_of,
    recipe_title,
    seeds_of,
    signed,
    tasks_of,
    values_of,
)
from .published import PAPER, PAPER_SOURCE

__all__ = ["Table", "latex", "markdown", "study_tables"]

_LATEX = {
    **{one: f"\\{one}" for one in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "–": "--", "“": "``", "”": "''", "’": "'", "<": "$<$", ">": "$>$"},
}


@dataclass(frozen=True)
class Table:
    """A table in print.

    Attributes:
        title: above it.
        rows: of cells, the first is the head.
        left: columns that are flush left; the others hold numbers.
        note: below it.
    """

    title: str
    rows: Sequence[Sequence[str]]
    left: int
    note: str = ""


def study_tables(study: Mapping[str, Any]) -> list[Table]:
    """All tables of a study that have rows.

    Args:
        study: content of ``study.json``.
    """
    tables = [_glance(study), *(_runs(study, task) for task in tasks_of(study))]
    tables += [_ranks(study), _paper(study), _orders(study), _differences(study)]
    tables += [_differences_by_seed(study), _runs_by_seed(study)]
    return [table for table in tables if len(table.rows) > 1]


def _seeds_note(study: Mapping[str, Any]) -> str:
    count = len(study["seeds"])
    if count < 2:
        return "One seed: there is no interval over seeds."
    return f"Mean of {count} seeds ± half of Student's 95 % interval of that mean."


def _glance(study: Mapping[str, Any]) -> Table:
    task, found = glance(study)
    methods = [m for m in METHOD_NAMES if any(m in some for some in found.values())]
    columns = [(metric, method) for metric in ("AP", "APr") for method in methods]
    rows = [["trained", *(f"{metric} {METHOD_NAMES[method]}" for metric, method in columns)]]
    for recipe, some in found.items():
        means = (some.get(method, {}).get(metric) for metric, method in columns)
        cells = [plain(mean, of=len(study["seeds"])) for mean in means]
        rows.append([recipe_title(study, recipe), *cells])
    title = f"At a glance: {KINDS[task].lower()} AP and APr on val (%)" if task else ""
    return Table(title, rows if len(methods) > 1 else [], 1, _seeds_note(study))


def _runs(study: Mapping[str, Any], task: str) -> Table:
    rows = [["trained", "method", "seeds", *METRICS]]
    for run, seeds in study["runs"].items():
        found = {metric: values_of(study, run, task, metric) for metric in METRICS}
        if not any(found.values()):
            continue
        recipe, _, method = run.partition("/")
        names = [recipe_title(study, recipe), METHOD_NAMES.get(method, method)]
        count = sum(task in one["val"] for one in seeds.values())
        cells = [plain(mean_of(values.values()), of=count) for values in found.values()]
        rows.append([*names, str(count), *cells])
    return Table(f"{KINDS[task]} AP on val (%)", rows, 2, _seeds_note(study))


def _ranks(study: Mapping[str, Any]) -> Table:
    """By the first task."""
    tasks = tasks_of(study)
    found = {metric: ranks_of(study, tasks[0], metric) for metric in METRICS} if tasks else {}
    rows = [["trained", "method", *METRICS]]
    known = found.get("AP", {})
    for run in sorted(known, key=known.__getitem__):
        recipe, _, method = run.partition("/")
        cells = [f"{of[run]:g}" if run in of else "–" for of in found.values()]
        rows.append([recipe_title(study, recipe), METHOD_NAMES.get(method, method), *cells])
    short = incomplete_in_words(study)
    note = "Of the mean over seeds, 1 is the best; equals have the mean of their ranks."
    if short:
        note += f" Without what lacks seeds: {short}."
    return Table(f"Ranks by {KINDS[tasks[0]].lower()} AP" if tasks else "", rows, 2, note)


def _named(study: Mapping[str, Any], pair: Mapping[str, Any], task: str) -> list[str]:
    kind = KINDS[task].lower()
    return [name_of(study, pair["run"]), name_of(study, pair["over"]), kind]


def _pairs(study: Mapping[str, Any]) -> Iterable[tuple[Mapping[str, Any], str]]:
    """Pairs with the tasks that they have."""
    for pair in study.get("pairs", ()):
        for task in sorted({task for one in pair["seeds"].values() for task in one}):
            yield pair, task


def _differences(study: Mapping[str, Any]) -> Table:
    held = [f"{metric} {what}" for metric in ("AP", "APr") for what in ("seeds", "resamples")]
    rows = [["run", "over", "of", *METRICS, *held]]
    for pair, task in _pairs(study):
        found = {metric: list(changes_of(pair, task, metric).values()) for metric in METRICS}
        cells = [signed(mean_of(one["difference"] for one in found[m])) for m in METRICS]
        for metric in ("AP", "APr"):
            ones = found[metric]
            better = sum(one["difference"] > 0 for one in ones)
            wins = mean_of(one["wins"] for one in ones if one["wins"] is not None)
            cells += [f"{better}/{len(ones)}" if ones else "–", f"{wins.mean:.0%}" if wins else "–"]
        rows.append([*_named(study, pair, task), *cells])
    return Table(
        "Differences on the same seed and images (points)",
        rows,
        3,
        f"{_seeds_note(study)} Behind them the seeds with a gain, and the share of the resamples "
        "of val's images with one, mean over seeds.",
    )


def _differences_by_seed(study: Mapping[str, Any]) -> Table:
    seeds = seeds_of(study)
    rows = [["run", "over", "of", "", *(f"seed {seed}" for seed in seeds)]]
    for pair, task in _pairs(study):
        for metric in ("AP", "APr"):
            found = changes_of(pair, task, metric)
            cells = [gain_cell(found[seed]) if seed in found else "–" for seed in seeds]
            rows.append([*_named(study, pair, task), metric, *cells])
    return Table(
        "Differences seed by seed (points)",
        rows,
        4,
        "In brackets 95 % intervals from resamples of val's images, the same for both runs, and "
        "behind them the share of the resamples with a gain.",
    )


def _runs_by_seed(study: Mapping[str, Any]) -> Table:
    """By the first task."""
    seeds, tasks = seeds_of(study), tasks_of(study)
    rows = [["trained", "method", "", *(f"seed {seed}" for seed in seeds)]]
    for run, found in study["runs"].items():
        recipe, _, method = run.partition("/")
        names = [recipe_title(study, recipe), METHOD_NAMES.get(method, method)]
        for metric in ("AP", "APr"):
            values = values_of(study, run, tasks[0], metric)
            ends = {s: one.get("intervals", {}).get(tasks[0], {}) for s, one in found.items()}
            cells = [cell(values[s], ends[s].get(metric)) if s in values else "–" for s in seeds]
            rows.append([*names, metric, *cells])
    return Table(
        f"{KINDS[tasks[0]]} AP on val seed by seed (%)" if tasks else "",
        rows,
        3,
        "In brackets 95 % intervals from resamples of val's images.",
    )


def _paper(study: Mapping[str, Any]) -> Table:
    """Tables 4 and 5 of the paper with ours beside them; empty where nothing is known."""
    names = ["mask AP", *METRICS[1:], "box AP"]
    own = [("segm", metric) for metric in METRICS] + [("bbox", "AP")]
    rows = [["trained", "TDE", "exempt", *names, *(f"published {name}" for name in names)]]
    for run, published in PAPER.items():
        if run not in study["runs"]:
            continue
        recipe, _, method = run.partition("/")
        found = [mean_of(values_of(study, run, *one).values()) for one in own]
        row = [recipe_title(study, recipe), "off" if method == FACTUAL else "on"]
        row.append({"tde": "yes", "tde_joint": "no"}.get(method, ""))
        row += ["" if one is None else plain(one, of=len(study["seeds"])) for one in found]
        row += [f"{value:.1f}" for value in published] if published else [""] * len(names)
        rows.append(row)
    note = f"{_seeds_note(study)} Published: {PAPER_SOURCE}, another detector on another set."
    known = any(PAPER[run] for run in PAPER if run in study["runs"] and not _plain_softmax(run))
    return Table("The paper's tables 4 and 5", rows if known else rows[:1], 3, note)


def _plain_softmax(run: str) -> bool:
    return run.startswith("softmax/")


def _orders(study: Mapping[str, Any]) -> Table:
    seeds = seeds_of(study)
    seed_head = [f"seed {seed}" for seed in seeds]
    rows = [["published order, worst first", "of", "pairs", "most", "tau", *seed_head]]
    for order in study.get("orders", ()):
        tied = [" ~ ".join(name_of(study, run) for run in some) for some in order["runs"]]
        of = f"{KINDS[order.get('task', 'bbox')].lower()} {order['metric']}"
        taus = [order.get("tau"), *(order["seeds"].get(seed) for seed in seeds)]
        cells = ["–" if t is None or math.isnan(t) else f"{t:.2f}" for t in taus]
        absent = ", ".join(name_of(study, run) for run in order.get("without", ()))
        name = f"{order['title']}: {' < '.join(tied)}" + f"; without {absent}" * bool(absent)
        most = f"{highest_tau(order['runs']):.2f}"
        rows.append([name, of, str(order["pairs"]), most, *cells])
    note = (
        "Kendall's tau-b of the mean over seeds and of each seed; of different values it is at "
        "most 1, or less where the order has ties (~), and the negative of that for the reverse."
    )
    return Table("Published orders", rows, 2, note)


def markdown(tables: Sequence[Table], lines: Sequence[str] = ()) -> str:
    """Tables in Markdown, after some paragraphs."""
    parts = list(lines)
    for table in tables:
        parts += [f"**{table.title}**", aligned(table.rows, table.left)]
        parts += [table.note] if table.note else []
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(one, one) for one in text)


def latex(tables: Sequence[Table]) -> str:
    """Tables in LaTeX, for ``\\usepackage{booktabs}``."""
    parts = []
    for table in tables:
        columns = "l" * table.left + "r" * (len(table.rows[0]) - table.left)
        head, *rows = (" & ".join(map(_escaped, row)) + r" \\" for row in table.rows)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
        lines += [*rows, r"\bottomrule", r"\end{tabular}"]
        caption = rf"\caption{{{_escaped(f'{table.title}. {table.note}'.strip())}}}"
        parts.append("\n".join([r"\begin{table}", r"\small", caption, *lines, r"\end{table}"]))
    return "\n\n".join(parts) + "\n"
