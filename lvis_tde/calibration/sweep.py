"""From a config to the alpha that suits it, on images that are not those of the final figures."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from torch import nn

from ..arguments import DEFAULT_ALPHAS, SETTINGS
from ..data.files import atomic_path, write_text
from ..evaluation.result import percent
from ..modeling.image_classifier import ImageClassifier
from ..posthoc import Settings
from ..visualization.charts import TOP1_BARS, plot_ap_over_alpha
from ..visualization.palette import KINDS
from .alpha import Strength, sweep_alpha
from .checkpoint import load_trained, save_checkpoint
from .hold_out import hold_out, in_words
from .image_sweep import SHOWN as IMAGE_METRICS
from .image_sweep import TASK, sweep_images
from .settings import tde_predictors
from .statistics import remember_classes
from .sweep_checks import check_calibrate, check_metric, check_strengths, default_metric

__all__ = ["DEFAULT_ALPHAS", "SETTINGS", "best_alpha", "check_metric", "format_sweep", "run_sweep"]

logger = logging.getLogger(__name__)

_SHOWN = ("AP", "APr", "APc", "APf")


def run_sweep(
    recipe,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    *,
    setting: str = "alpha",
    metric: str | None = None,
    calibrate: float | None = None,
    seed: int = 0,
) -> dict:
    """Evaluates a trained model for several alphas and writes what was found.

    Its ``output_dir`` gets ``alpha.json`` and ``alpha.png``, and ``config_alpha.yaml`` and
    ``model_alpha.pth``: the config with the best alpha, to be used as it is, and the checkpoint
    that it names, which remembers what was chosen for it, and how. ``alpha.json`` is written
    after the evaluation of each alpha, with null as the best one until all are done. All else stays
    as the config has it, so strengths are chosen one after the other, each from the config that the
    last sweep wrote. Under another ``setting`` the files have its name in place of alpha.

    Args:
        recipe: a :class:`~lvis_tde.engine.Recipe` with TDE heads and ``weights``.
        alphas: values >= 0.
        setting: what they are strengths of: "alpha", or a strength of
            :class:`~lvis_tde.posthoc.Settings`.
        metric: task and metric to maximize, such as "segm/APr"; of equals the smaller alpha.
            Default: "segm/AP", without masks "bbox/AP", of a classifier of images
            "classification/balanced".
        calibrate: share of the training images to measure on, or whole number of them of each
            class; None for the set that the recipe
            has to choose on, or else the test set, whose figures are then those of the best of
            several models.
        seed: of the choice of these images.

    Returns:
        dict: what ``alpha.json`` holds: ``{"dataset", "metric", "alpha", "seconds", "results":
        {alpha: {task: {metric: percent}}}}``, under another setting with its name in place of
        "alpha"; empty but on rank 0.

    Raises:
        ValueError: if there are not exactly one training or test set, the metric is none of the
            results (before anything runs) or undefined on these images, or a value is out of its
            range.
    """
    alphas = sorted({float(alpha) for alpha in alphas})
    dataset, split = check_strengths(recipe, alphas, setting, calibrate)
    folder = Path(recipe.output_dir)
    model = load_trained(recipe, (dataset,))
    images = isinstance(model, ImageClassifier)
    metric = metric or default_metric(model)
    strengths = _strengths(model, setting, alphas)
    check_metric(metric, model, dataset)
    check_calibrate(model, calibrate)
    if calibrate is not None:
        dataset = hold_out(dataset, calibrate, folder, seed)
    elif split == "test_sets":
        logger.warning(
            "%s is chosen on %s. Do not report its figures there as those of a model that has "
            "not seen it: with --calibrate it is chosen on training images.",
            setting.capitalize(),
            dataset,
        )
    start = time.monotonic()
    report: dict[str, Any] = {
        "dataset": dataset,
        "calibrate": calibrate,
        "metric": metric,
        setting: None,
    }

    def write(found: dict[Any, dict], best: float | None = None) -> None:
        by_value = {strengths[strength]: results for strength, results in found.items()}
        seconds = round(time.monotonic() - start, 1)
        report.update({setting: best, "seconds": seconds, "results": _rounded(by_value)})
        write_text(folder / f"{setting}.json", json.dumps(report, indent=2) + "\n")

    sweep: Any = sweep_images if images else sweep_alpha
    swept = sweep(
        model,
        recipe.test_loader(dataset),
        list(strengths),
        lambda: recipe.evaluator(dataset, save=False),
        on_result=write,
    )
    if not comm.is_main_process():
        return {}
    found = {strengths[strength]: results for strength, results in swept.items()}
    best = best_alpha(found, metric)
    if best == alphas[-1] and len(alphas) > 1:
        logger.warning(
            "The best %s, %g, is the largest that was tried: try larger ones.", setting, best
        )
    write(swept, best)
    task, _ = metric.split("/")
    curve = {alpha: tasks[task] for alpha, tasks in found.items()}
    on = "training images" if calibrate is not None else dataset
    what, options = f"{KINDS.get(task, task)} AP", {}
    if images:
        what, options = "Accuracy", {"lines": TOP1_BARS}
    title = f"{what} over {setting} on {on} (%)"
    figure = plot_ap_over_alpha(curve, chosen=best, title=title, **options)
    with atomic_path(folder / f"{setting}.png") as partial:
        figure.savefig(partial, dpi=150)
    chosen, config = recipe.clone(), folder / f"config_{setting}.yaml"
    (strength,) = (one for one, value in strengths.items() if value == best)
    if isinstance(strength, Settings):
        chosen.set_posthoc(strength)
    else:
        chosen.set_alpha(strength)
    share = "" if calibrate is None else f", {in_words(calibrate)}"
    how = f"{setting} {best:g} by {metric} on {dataset}{share}"
    for predictor in tde_predictors(model):
        if isinstance(strength, Settings):
            predictor.posthoc = strength
        else:
            predictor.alpha = predictor.calibrated_alpha = best
        predictor.chosen = "; ".join(filter(None, (predictor.chosen, how)))
    remember_classes(model, dataset)
    checkpoint = folder / f"model_{setting}.pth"
    entry = {key: report[key] for key in ("dataset", "calibrate", "metric", setting)}
    save_checkpoint(model, checkpoint, **{setting: entry})
    chosen.weights = str(checkpoint)
    chosen.save(config)
    logger.info("%s = %g has the best %s: see %s.", setting, best, metric, config)
    return report


def _strengths(model: nn.Module, setting: str, values: Sequence[float]) -> dict[Any, float]:
    """What each value sets, to the value."""
    if setting == "alpha":
        return {value: value for value in values}
    own = tde_predictors(model)[0].posthoc
    options: list[dict[str, Any]] = [{setting: value} for value in values]
    return {dataclasses.replace(own, **one): one[setting] for one in options}


def _rounded(found: dict[float, dict]) -> dict[str, dict]:
    return {
        f"{alpha:g}": {
            # Of a classifier NaN is a group without classes, which JSON has no number for.
            task: {name: round(float(v), 4) for name, v in values.items() if not math.isnan(v)}
            for task, values in tasks.items()
        }
        for alpha, tasks in found.items()
    }


def best_alpha(found: dict[Strength, dict], metric: str) -> Strength:
    """The alpha, or settings, with the largest value of a metric.

    Args:
        found: alpha to results, see :func:`~lvis_tde.calibration.alpha.sweep_alpha`. Of equals the
            smallest is the best, and of settings the first.
        metric: task and name, such as "segm/APr".

    Raises:
        ValueError: if the results do not have the metric, or it is undefined for every alpha.
    """
    known = {f"{task}/{name}" for tasks in found.values() for task in tasks for name in tasks[task]}
    if metric not in known:
        raise ValueError(
            f"metric={metric!r} is not in the results: {', '.join(sorted(known)) or 'none'}."
        )
    task, name = metric.split("/")
    ordered = list(found)
    if not any(isinstance(alpha, Settings) for alpha in found):
        ordered.sort()  # type: ignore[type-var]
    values = {alpha: found[alpha].get(task, {}).get(name, math.nan) for alpha in ordered}
    # Without ground truth LVIS gives -1 (-100 in percent), COCO NaN.
    defined = {alpha: value for alpha, value in values.items() if value >= 0}
    if not defined:
        raise ValueError(
            f"{metric} is undefined for every alpha, so none is the best: the images show none of "
            "the classes or objects that it is about. Choose another metric or other images."
        )
    if len(defined) < len(values):
        undefined = [alpha for alpha in values if alpha not in defined]
        logger.warning("%s is undefined for alpha %s, which are left out.", metric, undefined)
    return max(defined, key=defined.__getitem__)


def format_sweep(report: dict) -> str:
    """The results of :func:`run_sweep` as one table in Markdown, the best value marked."""
    tasks = list(next(iter(report["results"].values())))
    columns: list[tuple[str, str]] = [
        (task, name)
        for task in tasks
        for name in (IMAGE_METRICS if task == TASK else _SHOWN)
        if name in next(iter(report["results"].values()))[task]
    ]
    setting = next(name for name in SETTINGS if name in report)
    heads = [f"{setting} ", *(name if task == TASK else f"{task} {name}" for task, name in columns)]
    rows = [heads, ["-" * (len(head) - 1) + ":" for head in heads]]
    for alpha, results in report["results"].items():
        mark = "*" if float(alpha) == report[setting] else " "
        cells = [percent(results[task][name]) for task, name in columns]
        rows.append([f"{alpha}{mark}", *cells])
    return "\n".join(
        "| " + " | ".join(cell.rjust(len(head)) for cell, head in zip(row, heads)) + " |"
        for row in rows
    )
