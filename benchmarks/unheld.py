"""Strengths chosen without held-out images: what each way keeps of the held-out choice's gain.

``unheld --runs FOLDER ... --datasets FOLDER`` takes folders of trained models (their
``config.yaml`` and checkpoint; generated sets). Each way chooses the strength of TDE, of logit
adjustment, and of both, on training images alone; the gain is that on val over the model as
trained. Results are kept in ``--cache``, a file a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lvis_tde.calibration.settings import describe
from lvis_tde.posthoc import Settings

from .sigmoid_parts import kept
from .sigmoid_parts_regions import PER_REGION, Regions
from .sigmoid_parts_runs import FINAL, Run
from .unheld_measures import MEASURES, shares
from .unheld_regions import SAMPLES, of_images, regions_of_sources

__all__ = ["WAYS", "add_arguments", "candidates", "markdown", "run"]

HELD_OUT = "held-out images: AP"
SOURCES = ("training", "augmented", "refitted")
EVALUATED = SOURCES[:2]
THEORY = "no images: beta 1, alpha times the mean cosine 1"
WAYS = (
    HELD_OUT,
    *(f"{source} images, {sample}: AP" for source in EVALUATED for sample in SAMPLES),
    *(f"{source} images: {measure}" for source in SOURCES for measure in MEASURES),
    THEORY,
    *(f"held-out images: {measure}" for measure in MEASURES),
)
METHODS = ("TDE", "logit adjustment", "both")
SHOWN = ("AP", "APr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``benchmark.py unheld``."""
    parser.add_argument("--runs", nargs="+", required=True, help="folders of trained models")
    parser.add_argument("--datasets", default="datasets", help="folder of the generated sets")
    parser.add_argument("--cache", default="output/unheld", help="folder of the results")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")


def candidates(sigmoid: bool) -> dict[str, list[Settings]]:
    """What each method chooses from, weakest first; "both" has those of one alone, too."""
    alphas = (0.1, 0.2, 0.35, 0.5) if sigmoid else (0.5, 1.0, 1.5, 2.0, 3.0)
    pairs = [(a, b) for a in alphas[:2] for b in (0.5, 1.0)]
    pairs += [] if sigmoid else [(1.5, 0.5)]
    off = [Settings()]
    tde = [Settings(region=a, class_=a) for a in alphas]
    adjusted = [Settings(logit_adjustment=b) for b in (0.5, 1.0, 1.5, 2.0)]
    both = [Settings(region=a, class_=a, logit_adjustment=b) for a, b in pairs]
    found = (off + tde, off + adjusted, off + tde + adjusted + both)
    return dict(zip(METHODS, found))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures every model that has no result yet, and gives the tables over all."""
    torch.set_num_threads(args.threads)
    cache = Path(args.cache)
    results = []
    for one in (Run.open(Path(folder), args.datasets) for folder in args.runs):
        path = cache / f"unheld_{one.stem}.json"
        results.append(kept(path, lambda one=one: measure(one), one.folder / FINAL))  # type: ignore
    return tables(results)


def measure(one: Run) -> dict[str, Any]:
    """What every way chooses of every method, and what that gives on val."""
    sources, samples = regions_of_sources(one)
    methods = candidates(one.sigmoid)
    everything = list(dict.fromkeys(s for some in methods.values() for s in some))
    scores = {HELD_OUT: _ap(sources["held out"], everything)}
    for name in EVALUATED:
        for sample in SAMPLES:
            regions = of_images(sources[name], samples[sample])
            scores[f"{name} images, {sample}: AP"] = _ap(regions, everything)
    for name, title in (*((s, s) for s in SOURCES), ("held out", "held-out")):
        for measure_, values in _measured(sources[name], everything).items():
            scores[f"{title} images: {measure_}"] = values
    chosen = {
        way: {name: max(some, key=values.__getitem__) for name, some in methods.items()}
        for way, values in scores.items()
    }
    chosen[THEORY] = _theory(sources["training"], methods)
    wanted = dict.fromkeys([Settings(), *(s for row in chosen.values() for s in row.values())])
    val = {s: sources["val"].ap(sources["val"].probabilities(s)) for s in wanted}
    return {
        "kind": one.kind,
        "seed": one.seed,
        "name": one.name,
        "images": {name: len(ids) for name, ids in samples.items()},
        "as trained": val[Settings()],
        "chosen": {
            way: {name: {"words": describe(s), **val[s]} for name, s in row.items()}
            for way, row in chosen.items()
        },
        "scores": {way: {describe(s): v for s, v in row.items()} for way, row in scores.items()},
        "val": {describe(s): metrics for s, metrics in val.items()},
    }


def _ap(regions: Regions, settings: Iterable[Settings]) -> dict[Settings, float]:
    return {s: regions.ap(regions.probabilities(s))["AP"] for s in settings}


def _measured(regions: Regions, settings: Sequence[Settings]) -> dict[str, dict[Settings, float]]:
    """:data:`MEASURES` of each setting, on the regions that show an object."""
    labels, counts = regions.labels, regions.counts
    rows = labels < regions.num_classes
    objects = replace(regions, **{name: getattr(regions, name)[rows] for name in PER_REGION})
    found: dict[str, dict[Settings, float]] = {name: {} for name in MEASURES}
    for one in settings:
        given = shares(objects.probabilities(one))
        for name, how in MEASURES.items():
            found[name][one] = how(given, labels[rows], counts)
    return found


def _theory(regions: Regions, methods: Mapping[str, list[Settings]]) -> dict[str, Settings]:
    """Of the strengths that are tried the nearest to what is said without a measurement.

    Logit adjustment by the prior itself is right for equal classes (Menon et al., 2021, section
    4); the authors of TDE suggest an alpha for which alpha times the cosine to the mean is 1.
    """
    cosine = regions.cosine[regions.labels < regions.num_classes].mean()
    alpha = 1 / max(float(cosine), 1e-6)
    adjusted = Settings(logit_adjustment=1.0)
    nearest = min(methods["TDE"], key=lambda s: abs(s.class_ - alpha))
    return dict(zip(METHODS, (nearest, adjusted, adjusted)))


def tables(results: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Gains on val and their shares, means over the seeds of models of one kind and name."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in results:
        groups.setdefault(f"{one['kind']}, {one['name']}", []).append(one)
    found = {}
    for title, group in groups.items():
        seeds = ", ".join(str(one["seed"]) for one in group)
        columns = [(method, metric) for method in METHODS for metric in SHOWN]
        rows = [["chosen by", *(": ".join(one) for one in columns)]]
        rows += [[way, *(_cell(group, way, *one) for one in columns)] for way in WAYS]
        found[f"{title}, seeds {seeds}: gain on val (share of the held-out gain)"] = rows
    for title, group in groups.items():
        strengths = [["chosen by", *METHODS]]
        for way in WAYS:
            words = [[one["chosen"][way][m]["words"] or "off" for one in group] for m in METHODS]
            strengths.append([way, *("; ".join(some) for some in words)])
        found[f"{title}: strengths, seed by seed"] = strengths
    return found


def gain(group: Sequence[Mapping[str, Any]], way: str, method: str, metric: str) -> float:
    """Mean over models of what a way's choice adds to a metric on val."""
    gains = [one["chosen"][way][method][metric] - one["as trained"][metric] for one in group]
    return sum(gains) / len(gains)


def _cell(group: Sequence[Mapping[str, Any]], way: str, method: str, metric: str) -> str:
    own, most = gain(group, way, method, metric), gain(group, HELD_OUT, method, metric)
    # A share of next to nothing says nothing.
    share = f" ({100 * own / most:.0f} %)" if most >= 0.2 and way != HELD_OUT else ""
    return f"{own:+.2f}{share}"


def markdown(result: Mapping[str, list[list[str]]]) -> str:
    """Titles and tables."""
    parts = []
    for title, (head, *body) in result.items():
        lines = [head, ["---"] * len(head), *body]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"**{title}**\n\n{text}")
    return "\n\n".join(parts)
