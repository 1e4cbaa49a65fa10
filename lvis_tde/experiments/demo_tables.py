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
from ..calibration.posthoc_table import aligned, strength_of
from ..data.files import atomic_path
from ..visualization.charts import plot_group_ap
from ..visualization.palette import METHOD_NAMES, RUN_NAMES
from .demo_pictures import draw_ap_over_images, draw_methods
from .recording import METRICS

__all__ = ["format_family", "format_table", "summarize_seeds"]


def format_table(results: dict) -> str:
    """The results as one table in Markdown, which also reads well in a terminal."""
    width = max(len(RUN_NAMES[run]) for run in results["runs"])
    lines = [
        f"{'run':<{width}} | {'task':<4} | " + " | ".join(f"{m:>5}" for m in METRICS),
        f"{'-' * width} | {'-' * 4} | " + " | ".join("-" * 4 + ":" for _ in METRICS),
    ]
    for run, tasks in results["runs"].items():
        for task, values in tasks.items():
            numbers = " | ".join(f"{values[m]:5.1f}" for m in METRICS)
            lines.append(f"{RUN_NAMES[run]:<{width}} | {task:<4} | {numbers}")
    return "\n".join(f"| {line} |" for line in lines)


def format_family(results: Mapping[str, Any]) -> str:
    """Every method on every model, box AP on val, as one table in Markdown for each model.

    Args:
        results: what :func:`~lvis_tde.experiments.demo.run_demo` returns.
    """
    tables = []
    for part, rows in results["posthoc"].items():
        name = RUN_NAMES.get(part, part).removesuffix(", TDE off")
        table = [[f"{name}, boxes on val", "strength", *SHOWN]]
        for row in rows:
            numbers = [f"{row['val'][metric]:.1f}" for metric in SHOWN]
            table.append(
                [METHOD_NAMES.get(row["method"], row["method"]), strength_of(row), *numbers]
            )
        tables.append(aligned(table, 2))
    return "\n\n".join(tables)


def _spread(values: Sequence[float], form: str = ".1f") -> str:
    """Mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{form}} ± {deviation:.1f}"


def _summarize_family(seeds: Sequence[Mapping[str, Any]]) -> str:
    """:func:`format_family` over seeds, with the gains over the same seed's trained model."""
    tables = []
    for part in seeds[0]:
        name = RUN_NAMES.get(part, part).removesuffix(", TDE off")
        heads = [f"{name}, boxes on val, {len(seeds)} seeds", "strengths", *SHOWN]
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
            table.append([METHOD_NAMES.get(method, method), strengths, *cells, *gains])
        tables.append(aligned(table, 2))
    return "\n\n".join(tables)


def summarize_seeds(output: str | os.PathLike) -> str:
    """Mean and sample standard deviation over all seeds that were run, as tables in Markdown.

    The first is of the runs' mask AP, one more for each model of the methods' box AP, with the
    gains over the model as trained, seed by seed. Also draws ``group_ap_seeds.png``,
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
    table = "\n".join(lines)
    if not all("posthoc" in result for result in results):  # likewise
        return table
    draw_methods(results, Path(output) / "posthoc_seeds.png")
    return f"{table}\n\n{_summarize_family([result['posthoc'] for result in results])}"
