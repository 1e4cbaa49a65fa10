"""Choosing on images: the network of a classifier runs once for all settings.

Its features and logits are small, so they are kept, and each setting is one pass over them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator, inference_context

from ..layers.functional import check_alpha
from ..modeling.image_classifier import ImageClassifier
from ..posthoc import Settings
from .alpha import Strength
from .family import Choice, search
from .methods import FACTUAL, Method, methods_of
from .settings import describe, settings

__all__ = ["SHOWN", "TASK", "ImagePass", "choose_for_images", "sweep_images"]

logger = logging.getLogger(__name__)

TASK = "classification"
SHOWN = ("top1", "many", "medium", "few", "balanced")


class ImagePass:
    """What a classifier computed of a set before its post-hoc settings.

    Attributes:
        model: its own settings are the same after each call.
    """

    def __init__(self, model: ImageClassifier, loader: Iterable[dict[str, Any]]):
        """Runs the network.

        Args:
            model: trained; its mode is restored.
            loader: this process's images.
        """
        self.model = model
        self._batches: list[tuple[dict[str, Any], Any]] = []
        with inference_context(model), torch.no_grad():
            for batch in loader:
                known = {name: value for name, value in batch.items() if name != "image"}
                self._batches.append((known, model.predictor(model.features(batch))))

    @torch.no_grad()
    def evaluate(self, strength: Strength | None, evaluator: DatasetEvaluator) -> dict:
        """What the evaluator returns for one setting.

        Args:
            strength: alpha, or :class:`~lvis_tde.posthoc.Settings`; None for the model's own.
            evaluator: all processes have one.

        Raises:
            ValueError: if a strength is out of its range, or needs what the model does not have.
        """
        evaluator.reset()
        with settings(self.model, **_options(strength)) as (predictor,):
            for batch, predictions in self._batches:
                probabilities = predictor.predict_probs(predictions)
                evaluator.process(batch, {"probabilities": probabilities})
        return evaluator.evaluate() or {}


def _options(strength: Strength | None) -> dict[str, Any]:
    if strength is None:
        return {}
    if isinstance(strength, Settings):
        return {"posthoc": strength}
    return {"alpha": check_alpha(strength)}  # type: ignore[arg-type]


def sweep_images(
    model: ImageClassifier,
    loader: Iterable[dict[str, Any]],
    alphas: Sequence[Strength],
    make_evaluator: Callable[[], DatasetEvaluator],
    *,
    on_result: Callable[[dict[Strength, dict]], None] | None = None,
) -> dict[Strength, dict]:
    """Evaluates a classifier for several alphas, or settings, in one pass over the images.

    Args:
        model, loader: see :class:`ImagePass`.
        alphas: values >= 0, or :class:`~lvis_tde.posthoc.Settings`.
        make_evaluator: called once for each.
        on_result: called after each evaluation, with all results so far.

    Returns:
        dict: alpha to what its evaluator returned; empty dicts but on the first process.

    Raises:
        ValueError: before the first image, see :meth:`ImagePass.evaluate`.
    """
    for alpha in alphas:
        with settings(model, **_options(alpha)):
            pass
    done, results = ImagePass(model, loader), {}
    for alpha in alphas:
        results[alpha] = done.evaluate(alpha, make_evaluator())
        if on_result is not None and results[alpha]:
            on_result(results)
    return results


def choose_for_images(
    images: ImagePass,
    make_evaluator: Callable[[], DatasetEvaluator],
    *,
    methods: Sequence[Method] | None = None,
    metric: str = "balanced",
    rounds: int = 4,
    most: int = 10,
) -> Choice:
    """:func:`~lvis_tde.calibration.family.search` by accuracy on held-out images, in one process.

    Args:
        images: held-out images under the trained model.
        make_evaluator: makes a
            :class:`~lvis_tde.evaluation.classification_evaluator.ClassificationEvaluator`.
        methods: default: :func:`~lvis_tde.calibration.methods.methods_of`.
        metric: to maximize, such as "top1"; "balanced" is the mean over classes.
        rounds, most: see there.

    Returns:
        Choice: rows of all methods.

    Raises:
        ValueError: see there; also if a setting needs what the model does not have.
    """

    def evaluate(tried: Sequence[Settings]) -> dict[Settings, Mapping[str, float]]:
        return {one: images.evaluate(one, make_evaluator())[TASK] for one in tried}

    choice = search(
        methods_of(images.model) if methods is None else methods,
        evaluate,
        metric=metric,
        sigmoid=True,  # as of those, there is no background to exempt
        rounds=rounds,
        most=most,
    )
    for row in choice.rows:
        logger.info(
            "%-18s %-40s %s",
            row.method,
            describe(row.settings) or FACTUAL,
            "  ".join(f"{name} {row.metrics[name]:5.2f}" for name in SHOWN if name in row.metrics),
        )
    return choice
