"""The demo's figures as tables."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..calibration.family import COMPOSITION
from ..calibration.family import METRICS as SHOWN
from ..calibration.methods import FACTUAL
from ..calibration.posthoc_table import aligned, cell, gain_cell, strength_of
from ..data.files import atomic_path
from ..visualization.charts import plot_group_ap
from ..visualization.palette import METHOD_NAMES, RUN_NAMES
from .demo_pictures import draw_ap_over_images, draw_methods
from .recording import METRICS

__all__ = ["format_family", "format_table", "summarize_seeds"]


_WITH_INTERVALS = ("AP", "APr", "APc", "APf")
_NOTE = (
    "In brackets 95 % intervals from 1000 resamples of the images, and behind those of gains the "
    "share of the resamples in which there is one."
)


def format_table(results: Mapping[str, Any]) -> str:
    """The results as tables in Markdown, which also read well in a terminal.

    The first is of the runs, the second of their differences. Intervals are left out where results
    are from before there were any.
    """
    table = [["run", "task", *METRICS]]
    for run, tasks in results["runs"].items():
        for task, values in tasks.items():
            ends = results.get("intervals", {}).get(run, {}).get(task, {})
            cells = [
                cell(values[m], ends.get(m) if m in _WITH_INTERVALS else None) for m in METRICS
            ]
            table.append([RUN_NAMES[run], task, *cells])
    gains = [["gain", "over", "task", *_WITH_INTERVALS]]
    for one in results.get("gains", ()):
        names = [RUN_NAMES[one[key]] for key in ("run", "over")]
        for task in results["runs"][one["run"]]:
            gains.append([*names, task, *(gain_cell(one[task][m]) for m in _WITH_INTERVALS)])
    tables = [aligned(table, 2)]
    if len(gains) > 1:
        tables += [aligned(gains, 3), _NOTE]
    return "\n\n".join(tables)


def format_family(results: Mapping[str, Any]) -> str:
    """Every method on every model, box AP on val, as one table in Markdown for each model.

    Args:
        results: what :func:`~lvis_tde.experiments.demo.run_demo` returns.
    """
    tables = []
    for part, rows in results["posthoc"].items():
        gains = {f"gain in {m}": m for m in ("AP", "APr") if "gains" in rows[0]}
        table = [[f"{_part_name(part)}, boxes on val", "strength", *SHOWN, *gains]]
        for row in rows:
            numbers = [f"{row['val'][metric]:.1f}" for metric in SHOWN]
            numbers += [_gain_of(row, metric) for metric in gains.values()]
            table.append([_method_name(row["method"]), strength_of(row), *numbers])
        tables.append(aligned(table, 2))
    return "\n\n".join(tables)


def _part_name(part: str) -> str:
    return RUN_NAMES.get(part, part).removesuffix(", TDE off")


def _method_name(method: str) -> str:
    return METHOD_NAMES.get(method, method)


def _gain_of(row: Mapping[str, Any], metric: str) -> str:
    return "" if row["method"] == FACTUAL else gain_cell(row["gains"][metric])


def _spread(values: Sequence[float], form: str = ".1f") -> str:
    """Mean and sample standard deviation, which one value has none of."""
    if min(values) <= -100:
        return "n/a"
    mean = f"{statistics.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def _summarize_gains(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences of masks' AP: over the seeds, and seed by seed with their intervals."""
    heads = [f"gain in mask AP, {len(results)} seeds", "over"]
    spread = [[*heads, *_WITH_INTERVALS]]
    single = [["seed by seed", "over", "", *(f"seed {result['seed']}" for result in results)]]
    for pairs in zip(*(result["gains"] for result in results)):
        names = [RUN_NAMES[pairs[0][key]] for key in ("run", "over")]
        found = [pair["segm"] for pair in pairs]
        cells = [_spread([one[m]["difference"] for one in found], "+.1f") for m in _WITH_INTERVALS]
        spread.append([*names, *cells])
        for metric in ("AP", "APr"):
            single.append([*names, metric, *(gain_cell(one[metric]) for one in found)])
    return [aligned(spread, 2), aligned(single, 3), _NOTE]


def _summarize_family(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """:func:`format_family` over seeds, with the gains over the same seed's trained model."""
    tables, seeds = [], [result["posthoc"] for result in results]
    for part in seeds[0]:
        heads = [f"{_part_name(part)}, boxes on val, {len(seeds)} seeds", "strengths", *SHOWN]
        table = [[*heads, "gain in AP", "gain in APr"]]
        found = [{row["method"]: row for row in seed[part]} for seed in seeds]
        for method in found[0]:
            rows = [seed[method] for seed in found]
            cells = [_spread([row["val"][metric] for row in rows]) for metric in SHOWN]
            gains = [""] * 2
            if method != FACTUAL:
                gains = [
                    _spread([s[method]["val"][m] - s[FACTUAL]["val"][m] for s in found], "+.1f")
                    for m in ("AP", "APr")
                ]
            between = "; " if method == COMPOSITION else ", "
            strengths = between.join(dict.fromkeys(strength_of(row) for row in rows))
            table.append([_method_name(method), strengths, *cells, *gains])
        tables.append(aligned(table, 2))
        if "gains" in seeds[0][part][0]:
            by_seed = dict(zip((result["seed"] for result in results), found))
            tables.append(_seed_by_seed(_part_name(part), by_seed))
    return tables


def _seed_by_seed(name: str, found: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> str:
    columns = [(metric, seed) for metric in ("AP", "APr") for seed in found]
    table = [[f"{name}, gain in", *(f"{metric}, seed {seed}" for metric, seed in columns)]]
    for method in next(iter(found.values())):
        if method != FACTUAL:
            cells = [_gain_of(found[seed][method], metric) for metric, seed in columns]
            table.append([_method_name(method), *cells])
    return aligned(table, 1)


def summarize_seeds(output: str | os.PathLike) -> str:
    """Mean and sample standard deviation over all seeds that were run, as tables in Markdown.

    The first is of the runs' mask AP, the next two of their differences: over the seeds, and seed
    by seed with intervals from resamples of the images. Two more for each model are the same of the
    methods' box AP and their gains over the model as trained. Also draws ``group_ap_seeds.png``,
    ``ap_over_images_seeds.png`` and ``posthoc_seeds.png`` in ``output``.

    Args:
        output: the folder given to :func:`run_demo`.

    Raises:
        ValueError: if it holds no results, or those of sets that differ in more than their seed, or
            of different models.
    """
    paths = sorted(Path(output).glob("seed*/results.json"))
    if not paths:
        raise ValueError(f"{output} holds no seed*/results.json: run the demo first.")
    results = [json.loads(path.read_text("utf-8")) for path in paths]
    # Results from before there were kinds do not name their set.
    sets = [{**result.get("set", {}), "seed": None} for result in results]
    for path, found, result in zip(paths, sets, results):
        if found != sets[0]:
            raise ValueError(
                f"{paths[0].parent} and {path.parent} are results on different sets: remove one "
                "of them, or sum up each kind in an output of its own."
            )
        if result["runs"].keys() != results[0]["runs"].keys():
            raise ValueError(
                f"{paths[0].parent} has results of {', '.join(results[0]['runs'])} and "
                f"{path.parent} of {', '.join(result['runs'])}: run the same models for each seed."
            )
    runs = {run: [result["runs"][run] for result in results] for run in results[0]["runs"]}
    figure = plot_group_ap(runs)
    with atomic_path(Path(output) / "group_ap_seeds.png") as partial:
        figure.savefig(partial, dpi=150)
    if all("per_class" in result for result in results):  # absent from older results
        draw_ap_over_images(results, Path(output) / "ap_over_images_seeds.png")
    lines = [f"| mask AP, {len(results)} seeds | " + " | ".join(METRICS) + " |"]
    lines.append("|---|" + "---|" * len(METRICS))
    for run, seeds in runs.items():
        cells = [_spread([values["segm"][metric] for values in seeds]) for metric in METRICS]
        lines.append(f"| {RUN_NAMES[run]} | " + " | ".join(cells) + " |")
    tables = ["\n".join(lines)]
    if all("gains" in result for result in results):  # likewise
        tables += _summarize_gains(results)
    if all("posthoc" in result for result in results):  # likewise
        draw_methods(results, Path(output) / "posthoc_seeds.png")
        tables += _summarize_family(results)
    return "\n\n".join(tables)
