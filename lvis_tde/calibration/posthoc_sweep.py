"""From a config to the post-hoc settings that suit it: chosen on some images, reported on others.

The choice costs one pass over the held-out images, by boxes alone; masks are predicted for what
reaches the table. Everything measured is on disk at once, so an ended run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..data.files import atomic_path, write_text
from ..evaluation import LVISEvaluator
from ..modeling.image_classifier import ImageClassifier
from ..posthoc import Settings
from ..visualization.method_curves import plot_method_curves
from .alpha import sweep_alpha
from .checkpoint import load_trained, save_checkpoint
from .family import COMPOSITION, Choice, search
from .hold_out import hold_out, in_words
from .image_sweep import ImagePass
from .paired import PairedIntervals
from .posthoc_checks import check_sizes, chosen_metric, pick_methods, task_of, two_sets
from .posthoc_table import axes_of, format_posthoc
from .replay import KeptBranches
from .settings import describe, tde_predictors
from .statistics import remember_classes
from .sweep_checks import check_calibrate
from .tried import Tried, as_json, key_of

__all__ = ["FILES", "run_posthoc_sweep"]

logger = logging.getLogger(__name__)

FILES = ("posthoc.md", "posthoc.json", "posthoc.png", "config_posthoc.yaml", "model_posthoc.pth")

# Of a detection in the columns of the evaluator, without and with its mask.
_BOX_BYTES, _MASK_BYTES = 60, 250

Add = Callable[[Settings, Any], None]


def run_posthoc_sweep(
    recipe,
    *,
    methods: Sequence[str] | None = None,
    grid: Mapping[str, Sequence[float]] | None = None,
    metric: str | None = None,
    max_loss: Mapping[str, float] | None = None,
    calibrate: float | None = None,
    seed: int = 0,
    report: bool = True,
    bootstrap: int = 1000,
    rounds: int = 4,
    memory: float = 8.0,
) -> dict[str, Any]:
    """Chooses the strengths of all post-hoc methods, and a composition, and reports them.

    Its ``output_dir`` gets :data:`FILES`: the table, what it was made from, a picture, and config
    and checkpoint of the best, to be used as they are. ``posthoc_tried.json`` and
    ``posthoc_reported.json`` grow with each evaluation; with the same weights, images and test
    options, what they hold is not measured again.

    Args:
        recipe: a :class:`~lvis_tde.engine.Recipe` with TDE and ``weights``. It chooses on its
            ``calibration_sets`` and reports on its ``test_sets``.
        methods: names, see :func:`~lvis_tde.calibration.methods.methods_of`; default: all that the
            model has the statistics for.
        grid: name of a method to strengths to try in place of its own.
        metric: to maximize, of boxes, see :func:`~.posthoc_checks.chosen_metric`.
        max_loss: metric to how many points of it the choice may cost at most.
        calibrate, seed: training images to choose on, see :func:`~.hold_out.calibration_images`.
        report, bootstrap: evaluate the rows on the test set; resamples for intervals, 0 for none.
        rounds: most rounds of the search for compositions.
        memory: GiB for regions and detections that are kept; more is measured in more passes. The
            model, and what one evaluation takes, come on top.

    Returns:
        dict: what ``posthoc.json`` holds; empty but on rank 0.

    Raises:
        ValueError: see :mod:`~lvis_tde.calibration.posthoc_checks`; or the metric is undefined.
    """
    check_sizes(memory, bootstrap, rounds)
    chosen_on, reported_on = two_sets(recipe, calibrate, report)
    folder, max_loss = Path(recipe.output_dir), dict(max_loss or {})
    model = load_trained(recipe, [name for name in (chosen_on, reported_on) if name])
    check_calibrate(model, calibrate)
    metric = chosen_metric(model, chosen_on, metric, max_loss)
    picked, task = pick_methods(model, methods, grid), task_of(model)
    if calibrate is not None:
        chosen_on = hold_out(chosen_on, calibrate, folder, seed)
    start, size = time.monotonic(), int(memory * 2**30)
    tried = Tried(folder / "posthoc_tried.json", key_of(recipe, model, chosen_on))
    measure = _measure(model, recipe, chosen_on, size)

    def evaluate(wanted: Sequence[Settings]) -> dict[Settings, Mapping[str, float]]:
        new = [one for one in wanted if one not in tried.found]
        if new:
            logger.info("%d settings on %s.", len(new), chosen_on)
            measure(new, lambda one, results: tried.add(one, results[task]))
            tried.share()
        return {one: tried.found[one] for one in wanted}

    first = tde_predictors(model)[0]
    sigmoid = first.use_sigmoid_ce or not first.has_background
    choice = search(
        picked, evaluate, metric=metric, max_loss=max_loss, sigmoid=sigmoid, rounds=rounds
    )
    reported: Mapping[Settings, Any] = {}
    remark = ""
    if reported_on is not None:
        reported, remark = _report(model, recipe, reported_on, choice, bootstrap, size)
    if not comm.is_main_process():
        return {}
    content = {
        "chosen_on": chosen_on,
        "calibrate": calibrate,
        "task": task,
        "metric": metric,
        "max_loss": max_loss,
        "chosen": _as_dict(choice.row(COMPOSITION).settings),
        "reported_on": reported_on,
        "bootstrap": bootstrap if reported_on and not remark else 0,
        "remark": remark,
        "tried": len(choice.tried),
        "seconds": round(time.monotonic() - start, 1),
        "rows": _rows(choice, reported),
        "curves": {m.name: list(choice.curve(m.name).items()) for m in choice.methods},
    }
    found = as_json(content)
    write_text(folder / "posthoc.json", json.dumps(found, indent=1) + "\n")
    write_text(folder / "posthoc.md", format_posthoc(found) + "\n")
    _draw(found, folder / "posthoc.png")
    _save(recipe, model, choice.row(COMPOSITION).settings, found, folder)
    return found


def _measure(
    model: nn.Module, recipe, dataset: str, size: int
) -> Callable[[Sequence[Settings], Add], None]:
    """What evaluates settings on the held-out images and hands over each result."""
    first = recipe.evaluator(dataset, save=False)
    if isinstance(model, ImageClassifier):
        return _image_measure(model, recipe, dataset, first)
    kept = KeptBranches(model, recipe.test_loader(dataset), budget=size // 2)
    most = _at_once(model, dataset, size // 2, _BOX_BYTES)

    def measure(wanted: Sequence[Settings], add: Add) -> None:
        for start in range(0, len(wanted), most):
            part = wanted[start : start + most]
            sweep_alpha(
                model,
                kept,
                part,
                lambda: _fresh(first, recipe, dataset),
                boxes_only=part,
                on_result=lambda found: add(*list(found.items())[-1]),
            )

    return measure


def _image_measure(
    model: ImageClassifier,
    recipe,
    dataset: str,
    evaluator: DatasetEvaluator,
    done: Callable[[Settings, DatasetEvaluator], None] | None = None,
) -> Callable[[Sequence[Settings], Add], None]:
    passes: list[ImagePass] = []

    def measure(wanted: Sequence[Settings], add: Add) -> None:
        if not passes:
            passes.append(ImagePass(model, recipe.test_loader(dataset)))
        for one in wanted:
            results = passes[0].evaluate(one, evaluator)
            if results:
                if done is not None:
                    done(one, evaluator)
                add(one, results)

    return measure


def _report(
    model: nn.Module, recipe, dataset: str, choice: Choice, bootstrap: int, size: int
) -> tuple[Mapping[Settings, Any], str]:
    """Metrics and intervals of the table's rows, with masks; or why there are no intervals."""
    key = key_of(recipe, model, dataset, bootstrap=bootstrap, paired=True)
    reported = Tried(Path(recipe.output_dir) / "posthoc_reported.json", key)
    rows = dict.fromkeys(row.settings for row in choice.rows)
    wanted = [one for one in rows if one not in reported.found]
    first = recipe.evaluator(dataset, save=False)
    paired, intervals = PairedIntervals(first, bootstrap), {}
    if paired.remark:
        logger.warning("%s", paired.remark)
    if not wanted:
        return reported.found, paired.remark
    logger.info("%d settings on %s.", len(wanted), dataset)
    # As trained, which all others are compared with, comes first, also where it is known.
    wanted = list(dict.fromkeys([choice.rows[0].settings, *wanted]))

    def done(one: Settings, evaluator: DatasetEvaluator) -> None:
        intervals[one] = paired.of(evaluator)

    def add(one: Settings, results: Any) -> None:
        reported.add(one, {"metrics": results, **intervals[one]})

    if isinstance(model, ImageClassifier):
        _image_measure(model, recipe, dataset, first, done)(wanted, add)
    else:
        most = _at_once(model, dataset, size, _MASK_BYTES)
        for start in range(0, len(wanted), most):
            sweep_alpha(
                model,
                recipe.test_loader(dataset),
                wanted[start : start + most],
                lambda: _fresh(first, recipe, dataset),
                on_result=lambda found: add(*list(found.items())[-1]),
                on_evaluated=done,
            )
    reported.share()
    return reported.found, paired.remark


def _at_once(model: nn.Module, dataset: str, size: int, each: int) -> int:
    """Settings whose detections fit into ``size`` bytes of each process."""
    images = len(DatasetCatalog.get(dataset)) / comm.get_world_size()
    detections = images * tde_predictors(model)[-1].test_topk_per_image
    return max(1, int(size / max(1, detections * each)))


def _fresh(first: DatasetEvaluator, recipe, dataset: str) -> DatasetEvaluator:
    if isinstance(first, LVISEvaluator):
        return first.fresh_copy()  # the annotations are in memory once
    return recipe.evaluator(dataset, save=False)


def _as_dict(settings: Settings) -> dict[str, Any]:
    return {"words": describe(settings), **dataclasses.asdict(settings)}


def _rows(choice: Choice, reported: Mapping[Settings, Any]) -> list[dict[str, Any]]:
    rows = []
    for row in choice.rows:
        one = {"method": row.method, "strength": row.strength, "settings": _as_dict(row.settings)}
        one.update(last=row.last, calibration=dict(row.metrics))
        rows.append({**one, **reported.get(row.settings, {})})
    return rows


def _draw(found: Mapping[str, Any], path: Path) -> None:
    x, y = axes_of(found)
    curves = {
        name: [(metrics.get(x), metrics.get(y)) for _, metrics in points]
        for name, points in found["curves"].items()
    }
    last = found["rows"][-1]["calibration"]
    figure = plot_method_curves(
        curves,
        chosen=(last.get(x), last.get(y)),
        words=found["chosen"]["words"] or "as trained",
        axes=(x, y),
        title=f"Every method on {found['chosen_on']} (%)",
    )
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=150)


def _save(recipe, model: nn.Module, best: Settings, found: Mapping[str, Any], folder: Path) -> None:
    """Config and checkpoint with the choice, which say how it was made."""
    share = "" if not found["calibrate"] else f", {in_words(found['calibrate'])}"
    words = found["chosen"]["words"] or "nothing"
    task, metric, chosen_on = (found[name] for name in ("task", "metric", "chosen_on"))
    for predictor in tde_predictors(model):
        predictor.posthoc = best
        predictor.calibrated_alpha = predictor.alpha
        predictor.chosen = f"{words} by {task}/{metric} on {chosen_on}{share}"
    remember_classes(model, chosen_on)
    checkpoint = folder / "model_posthoc.pth"
    how = ("chosen_on", "calibrate", "task", "metric", "max_loss", "chosen", "reported_on")
    save_checkpoint(model, checkpoint, posthoc={name: found[name] for name in how})
    chosen = recipe.clone()
    chosen.set_posthoc(best)
    chosen.weights = str(checkpoint)
    chosen.save(folder / "config_posthoc.yaml")
