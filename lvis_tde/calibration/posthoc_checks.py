"""What can be known of a sweep over post-hoc methods before it runs."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from detectron2.data import MetadataCatalog
from torch import nn

from ..data.classification.names import register_by_name
from ..modeling.image_classifier import ImageClassifier
from ..posthoc.margins import check_strength
from .hold_out import check_amount
from .image_sweep import TASK
from .methods import CLASS_MEANS, Method, methods_of
from .settings import settings, tde_predictors
from .sweep_checks import check_calibrate, check_defined, check_metric, least_images

__all__ = ["check_sizes", "chosen_metric", "pick_methods", "posthoc_checks", "task_of", "two_sets"]

logger = logging.getLogger(__name__)


def task_of(model: nn.Module) -> str:
    """What a choice is made by: boxes, since masks take long, or the class of an image."""
    return TASK if isinstance(model, ImageClassifier) else "bbox"


def chosen_metric(
    model: nn.Module, dataset: str, metric: str | None, max_loss: Mapping[str, float]
) -> str:
    """The metric to maximize, "AP" or, where something bounds what it may cost, "APr".

    Of a classifier "balanced" or "few". It and those of ``max_loss`` are checked.

    Raises:
        ValueError: the evaluation would not give one of them, or a bound is negative.
    """
    task = task_of(model)
    if metric is None:
        names = ("balanced", "few") if task == TASK else ("AP", "APr")
        metric = names[1 if max_loss else 0]
    for name in (metric, *max_loss):
        check_metric(f"{task}/{name}", model, dataset)
    for name, most in max_loss.items():
        if not 0 <= most < math.inf:
            raise ValueError(f"max_loss has {name}={most}: a loss is at least 0, in points.")
    return metric


def check_sizes(memory: float, bootstrap: int, rounds: int) -> None:
    """
    Raises:
        ValueError: one of them is negative, or no memory.
    """
    if not memory > 0 or bootstrap < 0 or rounds < 0:
        raise ValueError(
            f"memory={memory} must be above 0, bootstrap={bootstrap} and rounds={rounds} not "
            "negative."
        )


def two_sets(recipe, calibrate: float | None, report: bool = True) -> tuple[str, str | None]:
    """The set to choose on, or to cut a part of, and the one to report on, if any.

    Raises:
        ValueError: there is none to choose on, there are several of either, or both are the same.
    """
    chosen_on = recipe.calibration_sets if calibrate is None else recipe.train_sets
    if calibrate is not None:
        check_amount(calibrate)
    if len(chosen_on) != 1:
        raise ValueError(
            f"A sweep chooses on one set, got {chosen_on}: name images that the model was not "
            "trained on with --choose-on or --calib-data, or take training images with "
            "--calibrate 8."
        )
    reported_on = recipe.test_sets if report else ()
    if len(reported_on) > 1:
        raise ValueError(f"A sweep reports on one set, got {reported_on}: name it by --report-on.")
    for name in (*chosen_on, *reported_on):
        register_by_name(name)
    files = [MetadataCatalog.get(n).get("json_file", n) for n in (*chosen_on, *reported_on)]
    if reported_on and files[0] == files[1]:
        raise ValueError(
            f"{chosen_on[0]} is to choose on and to report on: the figures would be those of the "
            "best of many. Report on other images (--report-on), or on none (--no-report)."
        )
    return chosen_on[0], next(iter(reported_on), None)


def pick_methods(
    model: nn.Module,
    names: Sequence[str] | None = None,
    grid: Mapping[str, Sequence[float]] | None = None,
) -> tuple[Method, ...]:
    """Methods by name, with other strengths where ``grid`` has them.

    Without names, those whose statistics the model lacks are left out, with a warning.

    Raises:
        ValueError: an unknown name, a strength out of its range, or a named method lacks what it
            needs.
    """
    known, found = _known(model, names, grid), []
    for name in names or [method.name for method in methods_of(model)]:
        method = known[name]
        if grid and name in grid:
            values = sorted({check_strength(name, value) for value in grid[name]} - {0.0})
            if not values:
                raise ValueError(f"the strengths of {name} are {list(grid[name])}: none above 0.")
            method = dataclasses.replace(method, strengths=tuple(values))
        try:
            _check_usable(model, method)
        except ValueError as error:
            if names:
                raise
            logger.warning("%s is left out: %s", name, error)
            continue
        found.append(method)
    return tuple(found)


def _known(model: nn.Module, names, grid) -> dict[str, Method]:
    # Who names the classes' means is told what they need.
    known = {method.name: method for method in (*methods_of(model), CLASS_MEANS)}
    for name in (*(names or ()), *(grid or {})):
        if name not in known:
            raise ValueError(f"{name!r} is no method for this model: {', '.join(known)}.")
    for name in grid or ():
        if names and name not in names:
            raise ValueError(
                f"--grid has strengths of {name}, which --methods {','.join(names)} leaves out: "
                "name it there, too."
            )
    return known


def _check_usable(model: nn.Module, method: Method) -> None:
    with settings(model, posthoc=method.settings(method.strengths[0])) as predictors:
        if method.group == "mean" and not all(p.feature_mean.mean.any() for p in predictors):
            raise ValueError(
                f"{method.name} needs the mean of the features, which is zero here: "
                "tools/estimate_feature_mean.py measures it."
            )


def posthoc_checks(
    recipe,
    model: Callable[[], nn.Module],
    *,
    metric: str | None,
    max_loss: Mapping[str, float],
    calibrate: float | None,
    report: bool,
    methods: Sequence[str] | None,
    grid: Mapping[str, Sequence[float]] | None,
    memory: float,
    bootstrap: int,
    rounds: int,
) -> Iterator[tuple[str, Callable[[], str]]]:
    """The checks of :func:`~lvis_tde.calibration.posthoc_sweep.run_posthoc_sweep`, for a start.

    Args:
        recipe: a :class:`~lvis_tde.engine.Recipe`.
        model: gives its model, perhaps without numbers.
        others: as ``run_posthoc_sweep`` takes them.
    """

    def sets() -> str:
        check_sizes(memory, bootstrap, rounds)
        chosen_on, reported_on = two_sets(recipe, calibrate, report)
        tde_predictors(model())
        check_calibrate(model(), calibrate)
        return f"chosen on {chosen_on}, reported on {reported_on or 'nothing'}"

    def measured() -> str:
        chosen_on, reported_on = two_sets(recipe, calibrate, report)
        name = chosen_metric(model(), chosen_on, metric, max_loss)
        _known(model(), methods, grid)
        for one in (name, *max_loss):
            check_defined(one, chosen_on, least_images=least_images(calibrate))
        return name

    yield "sets", sets
    yield "metric", measured
