"""Choosing among the methods of :mod:`lvis_tde.posthoc`: the best strength of each, and of a few
together, on held-out images.

One pass over the images serves all methods and strengths, since all of them enter after the box
head; what the box head gave is kept for the search for compositions around the best method. Which
images these are is the caller's business: not those whose figures are to be reported.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from detectron2.evaluation import DatasetEvaluator
from torch import nn

from ..posthoc import Settings
from .alpha import sweep_alpha
from .methods import FACTUAL, Method, methods_of
from .replay import KeptBranches
from .settings import describe, tde_predictors

__all__ = ["COMPOSITION", "METRICS", "Choice", "Row", "choose", "search"]

logger = logging.getLogger(__name__)

COMPOSITION = "composition"
METRICS = ("AP", "APr", "APc", "APf")


@dataclass(frozen=True)
class Row:
    """What was chosen for a method.

    Attributes:
        method: its name, :data:`FACTUAL` or :data:`COMPOSITION`.
        strength: 0 if nothing was better than the factual probabilities; None of a composition.
        settings: what that is.
        metrics: :data:`METRICS` on the held-out images, in percent.
        last: the strength is the last of several that were tried, so a larger one may be better.
    """

    method: str
    strength: float | None
    settings: Settings
    metrics: Mapping[str, float]
    last: bool = False


@dataclass(frozen=True)
class Choice:
    """What :func:`search` found.

    Attributes:
        rows: the factual probabilities, each method, and the best composition.
        tried: all settings and their metrics, in the order of trial.
        methods: that were tried.
    """

    rows: tuple[Row, ...]
    tried: Mapping[Settings, Mapping[str, float]]
    methods: tuple[Method, ...]

    def row(self, method: str) -> Row:
        """The row of a method, by its name."""
        return next(row for row in self.rows if row.method == method)

    def curve(self, method: str) -> dict[float, Mapping[str, float]]:
        """Metrics of a method over its strengths, 0 among them."""
        (one,) = (m for m in self.methods if m.name == method)
        return {s: self.tried[one.settings(s)] for s in (0.0, *one.strengths)}


@dataclass(frozen=True)
class _Point:
    """Settings as steps of methods: where the search for a composition stands."""

    settings: Settings
    steps: tuple[tuple[Method, float], ...]

    def at(self, index: int, strength: float) -> _Point:
        """One step with another strength."""
        steps = list(self.steps)
        method = steps[index][0]
        steps[index] = method, strength
        return _Point(method.on_top_of(self.settings, strength), tuple(steps))

    def plus(self, method: Method, strength: float) -> _Point:
        steps = (*self.steps, (method, strength))
        if not self.steps:
            return _Point(method.settings(strength), steps)
        return _Point(method.on_top_of(self.settings, strength), steps)

    def beside(self, by: int) -> list[_Point]:
        """With each step one strength weaker (-1) or stronger (1), where there is such a one."""
        found = []
        for index, (method, strength) in enumerate(self.steps):
            grid = sorted({*method.strengths, *method.added})
            place = grid.index(strength) + by
            if 0 <= place < len(grid):
                found.append(self.at(index, grid[place]))
        return found


def _neighbors(point: _Point, methods: Sequence[Method], sigmoid: bool) -> list[_Point]:
    """Compositions to try from here on, the likeliest first.

    Two corrections need less of each, so one is added to what is there and to a little less of it;
    the weakest strength of each method comes before the next one of any.
    """
    taken = {method.group for method, _ in point.steps}
    free = [(n, m, s) for m in methods if m.group not in taken for n, s in enumerate(m.added)]
    free.sort(key=lambda one: one[0])
    found = [point.plus(method, strength) for _, method, strength in free]
    if len(point.steps) > 1:
        found += [*point.beside(-1), *point.beside(1)]
    found += [one.plus(m, s) for one in point.beside(-1) for _, m, s in free]
    if not sigmoid and point.steps:
        other = "joint" if point.settings.background == "exempt" else "exempt"
        flipped = dataclasses.replace(point.settings, background=other)
        found.insert(0, _Point(flipped, point.steps))
    return found


def search(
    methods: Sequence[Method],
    evaluate: Callable[[Sequence[Settings]], Mapping[Settings, Mapping[str, float]]],
    *,
    metric: str = "AP",
    max_loss: Mapping[str, float] | None = None,
    sigmoid: bool = False,
    rounds: int = 4,
    most: int = 10,
) -> Choice:
    """The best strength of each method, then a coordinate search for the best composition.

    It starts at the best method. Each round tries the neighbors that were not tried yet: another
    method on top, the same with a little less of what is there, the other background (softmax), and
    of a composition each strength one step weaker or stronger. It ends with a round that finds
    nothing better. Of equals the weaker wins, and the one that was tried first.

    Args:
        methods: to choose from, with names of their own.
        evaluate: one pass: distinct settings to the metrics of each, :data:`METRICS` in percent.
        metric: to maximize.
        max_loss: metric to how much of it a choice may cost at most, against the factual
            probabilities, in percent (points).
        sigmoid: the probabilities are sigmoids, which have no background.
        rounds: most rounds for compositions, each one call of ``evaluate``.
        most: settings a round.

    Returns:
        Choice: rows of all methods.

    Raises:
        ValueError: if the metric is undefined (negative or NaN, as without ground truth) for all.
    """
    tried: dict[Settings, Mapping[str, float]] = {}

    def run(candidates: Iterable[Settings]) -> None:
        new = [one for one in dict.fromkeys(candidates) if one not in tried]
        found = evaluate(new) if new else {}
        tried.update({one: found[one] for one in new})

    def value(settings: Settings) -> float:
        metrics, before = tried[settings], tried[Settings()]
        # What is undefined before is undefined after; a millionth is rounding.
        if any(before[k] - metrics[k] > most + 1e-6 for k, most in (max_loss or {}).items()):
            return -math.inf
        return metrics[metric] if metrics[metric] >= 0 else -math.inf

    run([Settings(), *(m.settings(s) for m in methods for s in m.tried)])
    if not any(value(one) >= 0 for one in tried):
        raise ValueError(
            f"{metric} is undefined for all settings: the held-out images show none of the classes "
            "that it is about. Choose another metric or other images."
        )
    rows = [Row(FACTUAL, 0.0, Settings(), tried[Settings()])]
    best = _Point(Settings(), ())
    for method in methods:
        # max takes the first of equals, which is the weakest.
        strength = max(method.tried, key=lambda s, m=method: value(m.settings(s)))  # type: ignore
        settings = method.settings(strength)
        last = strength == method.strengths[-1] and len(method.strengths) > 1
        rows.append(Row(method.name, strength, settings, tried[settings], last))
        if last:
            logger.warning(
                "The best strength of %s, %g, is the largest that was tried.", method.name, strength
            )
        if value(settings) > value(best.settings):
            best = _Point(settings, ((method, strength),))
    for _ in range(rounds):
        points = [p for p in _neighbors(best, methods, sigmoid) if p.settings not in tried]
        points = list({p.settings: p for p in points}.values())[:most]
        run(point.settings for point in points)
        better = max(points, key=lambda p: value(p.settings), default=best)
        if value(better.settings) <= value(best.settings):
            break
        best = better
    rows.append(Row(COMPOSITION, None, best.settings, tried[best.settings]))
    return Choice(tuple(rows), tried, tuple(methods))


def choose(
    model: nn.Module,
    loader: Iterable[list[dict]],
    make_evaluator: Callable[[], DatasetEvaluator],
    *,
    methods: Sequence[Method] | None = None,
    metric: str = "AP",
    rounds: int = 4,
    most: int = 10,
) -> Choice:
    """:func:`search` by the box AP of a detector; masks, which take long, are left out.

    Args:
        model: a ``GeneralizedRCNN`` with a TDE predictor, its mean and the statistics of its
            classes. Its settings are the same afterwards.
        loader: held-out images; gone through once, if what is kept of them fits into 2 GiB.
        make_evaluator: see :func:`~lvis_tde.calibration.alpha.sweep_alpha`; it must report
            ``{"bbox": {metric: percent}}`` with :data:`METRICS`.
        methods: default: :func:`methods_of`.
        metric: of boxes, to maximize.
        rounds, most: see :func:`search`.

    Returns:
        Choice: rows of all methods.

    Raises:
        ValueError: see :func:`search`; also if a setting needs what the model does not have.
    """

    branches = KeptBranches(model, loader)

    def evaluate(settings: Sequence[Settings]) -> dict[Settings, dict[str, float]]:
        found = sweep_alpha(model, branches, settings, make_evaluator, boxes_only=settings)
        return {one: results["bbox"] for one, results in found.items()}

    sigmoid = any(predictor.use_sigmoid_ce for predictor in tde_predictors(model))
    choice = search(
        methods_of(model) if methods is None else methods,
        evaluate,
        metric=metric,
        sigmoid=sigmoid,
        rounds=rounds,
        most=most,
    )
    for row in choice.rows:
        logger.info(
            "%-22s %-44s %s",
            row.method,
            describe(row.settings) or FACTUAL,
            "  ".join(f"{name} {row.metrics[name]:5.2f}" for name in METRICS),
        )
    return choice
