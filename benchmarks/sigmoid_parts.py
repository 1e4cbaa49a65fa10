"""What TDE and logit adjustment do on sigmoid classifiers: the figures of docs/sigmoid.md.

``sigmoid_parts --runs FOLDER ... --datasets FOLDER`` takes folders of trained models (their
``config.yaml`` and checkpoints; generated sets) and prints a table for each question, means over
the seeds of models of one name and set. Regions and results are kept in ``--cache``, so that
another model costs what it takes alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lvis_tde.data.files import atomic_path
from lvis_tde.posthoc import Settings

from . import sigmoid_parts_measures as measures
from .sigmoid_parts_figure import score_figure
from .sigmoid_parts_regions import gather
from .sigmoid_parts_runs import FINAL, FORMAT, Run
from .sigmoid_parts_statistics import best
from .sigmoid_parts_tables import tables

__all__ = ["add_arguments", "markdown", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``benchmark.py sigmoid_parts``."""
    parser.add_argument("--runs", nargs="+", required=True, help="folders of trained models")
    parser.add_argument("--datasets", default="datasets", help="folder of the generated sets")
    parser.add_argument("--cache", default="output/sigmoid_parts", help="folder of regions")
    parser.add_argument("--images", type=int, default=400, help="of a split, at most")
    parser.add_argument(
        "--earlier", action="store_true", help="also the checkpoints before the final one"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--picture", default="", help="file of the score distributions")
    parser.add_argument(
        "--pictured", nargs="+", default=["sigmoid"], help="names of the runs that it shows"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures every run that has no result yet, and gives the tables over all."""
    torch.set_num_threads(args.threads)
    cache = Path(args.cache)
    runs = [Run.open(Path(folder), args.datasets) for folder in args.runs]
    results = [_result(one, cache, args) for one in runs]
    if args.picture:
        sets: dict[str, list[Any]] = {}
        for one, result in zip(runs, results):
            if one.sigmoid and one.name in args.pictured:
                val = gather(one, cache, args.images)["val"]
                sets.setdefault(one.kind, []).append((val, steps(result["chosen"])))
        if not sets:
            raise ValueError(
                f"--picture needs a run named {' or '.join(args.pictured)} (--pictured)"
            )
        score_figure(sets).savefig(args.picture, dpi=150)
    return tables(results)


def _result(one: Run, cache: Path, args: argparse.Namespace) -> dict[str, Any]:
    work = partial(measure, one, cache, args.images)
    result = kept(cache / f"{one.stem}_{args.images}_{FORMAT}.json", work, one.folder / FINAL)
    if one.sigmoid and args.earlier:
        for path in sorted(one.folder.glob("model_0*.pth")):
            file = cache / f"{one.stem}_{path.stem}_{args.images}_{FORMAT}.json"
            work = partial(before, one, cache, args.images, path.name)
            result.setdefault("earlier", {})[path.stem] = kept(file, work, path)
    return result


def kept(path: Path, work: Callable[[], dict[str, Any]], checkpoint: Path) -> dict[str, Any]:
    """A result from its file, or from ``work`` if there is none as new as the checkpoint."""
    if not path.exists() or path.stat().st_mtime < checkpoint.stat().st_mtime:
        result = work()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as unfinished:
            Path(unfinished).write_text(json.dumps(result, indent=1), "utf-8")
    # Read back, so that new and old results are alike.
    return with_numbers(json.loads(path.read_text("utf-8")))


def steps(chosen: dict[str, float]) -> dict[str, Settings]:
    """What the picture shows, by title."""
    region = chosen["region part"] or measures.TYPICAL
    beta = chosen["logit adjustment + shift"] or measures.BETA
    means = chosen["class means"] or measures.SIMILARITY
    return {
        "trained model": Settings(),
        f"region part {region:g}": Settings(region=region),
        f"logit adjustment {beta:g} + shift": Settings(logit_adjustment=beta, keep_sum="factual"),
        f"class means {means:g}": Settings(class_means=means),
    }


def markdown(result: dict[str, Any]) -> str:
    """Titles and tables."""
    parts = []
    for title, rows in result.items():
        head, *body = rows
        lines = [head, ["---"] * len(head), *body]
        text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
        parts.append(f"**{title}**\n\n{text}")
    return "\n\n".join(parts)


def measure(one: Run, cache: Path, images: int) -> dict[str, Any]:
    """Everything of one model."""
    about = {"kind": one.kind, "seed": one.seed, "name": one.name, "sigmoid": one.sigmoid}
    splits = gather(one, cache, images)
    if not one.sigmoid:
        return {**about, "powers": measures.softmax_powers(splits)}
    found = measures.curves(splits)
    chosen = {name: best(ap_of(curve["calib"])) for name, curve in found.items()}
    return {
        **about,
        "curves": found,
        "chosen": chosen,
        "ranking": measures.ranking(splits["val"], measures.TYPICAL),
        "projections": measures.projections(splits["val"]),
        "directions": measures.directions(splits, one.seed),
        "limits": measures.limits(splits["val"], chosen),
    }


def before(one: Run, cache: Path, images: int, weights: str) -> dict[str, Any]:
    """Of a checkpoint on the way: what the region part is and does there."""
    splits = gather(one, cache, images, weights)
    names = ("region part", "logit adjustment + shift")
    return {
        "curves": measures.curves(splits, names),
        "ranking": measures.ranking(splits["val"], measures.TYPICAL),
        "projections": measures.projections(splits["val"]),
    }


def ap_of(curve: dict[float, dict[str, float]]) -> dict[float, float]:
    """Strength to AP."""
    return {strength: metrics["AP"] for strength, metrics in curve.items()}


def with_numbers(value: Any) -> Any:
    """What JSON made of numbers as keys, undone."""
    if not isinstance(value, dict):
        return value
    return {_number(key): with_numbers(inner) for key, inner in value.items()}


def _number(key: str) -> str | float:
    try:
        return float(key)
    except ValueError:
        return key
