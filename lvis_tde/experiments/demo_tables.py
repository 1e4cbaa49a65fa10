"""The demo's figures as tables."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

from ..visualization.charts import plot_group_ap
from ..visualization.palette import RUN_NAMES
from .demo_pictures import draw_ap_over_images
from .recording import METRICS

__all__ = ["format_table", "summarize_seeds"]


def format_table(results: dict) -> str:
    """The results as one table in Markdown, which also reads well in a terminal."""
    lines = [
        f"{'run':<22} | {'task':<4} | " + " | ".join(f"{m:>5}" for m in METRICS),
        f"{'-' * 22} | {'-' * 4} | " + " | ".join("-" * 4 + ":" for _ in METRICS),
    ]
    for run, tasks in results["runs"].items():
        for task, values in tasks.items():
            numbers = " | ".join(f"{values[m]:5.1f}" for m in METRICS)
            lines.append(f"{RUN_NAMES[run]:<22} | {task:<4} | {numbers}")
    return "\n".join(f"| {line} |" for line in lines)


def summarize_seeds(output: str | os.PathLike) -> str:
    """Mean and sample standard deviation over all seeds that were run, as a table in Markdown.

    Also draws ``group_ap_seeds.png`` and ``ap_over_images_seeds.png`` in ``output``.

    Args:
        output: the folder given to :func:`run_demo`.

    Raises:
        ValueError: if it holds no results, or those of sets that differ in more than their seed.
    """
    paths = sorted(Path(output).glob("seed*/results.json"))
    if not paths:
        raise ValueError(f"{output} holds no seed*/results.json: run the demo first.")
    results = [json.loads(path.read_text("utf-8")) for path in paths]
    # Results from before there were kinds do not name their set.
    sets = [{**result.get("set", {}), "seed": None} for result in results]
    for path, found in zip(paths, sets):
        if found != sets[0]:
            raise ValueError(
                f"{paths[0].parent} and {path.parent} are results on different sets: remove one "
                "of them, or sum up each kind in an output of its own."
            )
    runs = {run: [result["runs"][run] for result in results] for run in results[0]["runs"]}
    plot_group_ap(runs).savefig(Path(output) / "group_ap_seeds.png", dpi=150)
    if all("per_class" in result for result in results):  # absent from older results
        draw_ap_over_images(results, Path(output) / "ap_over_images_seeds.png")
    lines = [f"| mask AP, {len(results)} seeds | " + " | ".join(METRICS) + " |"]
    lines.append("|---|" + "---|" * len(METRICS))
    for run, seeds in runs.items():
        columns = [[values["segm"][metric] for values in seeds] for metric in METRICS]
        spread = [statistics.stdev(c) if len(c) > 1 else 0.0 for c in columns]
        cells = [f"{statistics.mean(c):.1f} ± {s:.1f}" for c, s in zip(columns, spread)]
        lines.append(f"| {RUN_NAMES[run]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
