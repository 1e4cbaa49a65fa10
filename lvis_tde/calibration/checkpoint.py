"""From trained weights to a checkpoint with feature mean and class statistics, and its config."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Sequence

from detectron2.utils import comm
from torch import nn

from ..checkpointer import load_weights, save_checkpoint
from ..modeling.inference_mode import named_dtype, optimize_for_inference
from .class_means import check_number, estimate_from_few
from .estimate import MAX_BATCHES, MeanEstimate, angle_between, estimate_feature_mean
from .settings import tde_predictors
from .statistics import check_class_list, gather_class_statistics

__all__ = ["check_named", "load_all", "load_trained", "run_estimate", "save_checkpoint"]

logger = logging.getLogger(__name__)


def check_named(recipe) -> None:
    """
    Raises:
        ValueError: if the recipe names no weights, and they may not be missing.
    """
    if not recipe.weights and not recipe.partial_weights:
        raise ValueError(
            f"{recipe.keys['weights']} is empty: name the checkpoint of a trained model. "
            "(--allow-partial-weights takes random weights.)"
        )


def load_all(
    model: nn.Module, weights: str, *, partial: bool = False, lazily: bool = False
) -> tuple[list[str], list[str]]:
    """Loads weights, which must be all of a model unless ``partial`` is set.

    Args:
        model, weights, lazily: see :func:`~lvis_tde.checkpointer.load_weights`.
        partial: what is missing is told and stays as it was.

    Returns:
        see :func:`~lvis_tde.checkpointer.load_weights`.

    Raises:
        FileNotFoundError, ValueError: see there; or something is missing.
    """
    if not weights:
        logger.warning("There are no weights: the model is random.")
        return sorted(name for name, _ in model.named_parameters()), []
    missing, other = load_weights(model, weights, lazily=lazily)
    if missing:
        total = sum(1 for _ in model.parameters())
        text = (
            f"it lacks {len(missing)} of its {total} parameters, or has another shape of them: "
            f"{missing[0]}, ..."
        )
        if not partial:
            raise ValueError(
                f"{weights} is no checkpoint of this model: {text} Is it the config that it was "
                "trained with? (--allow-partial-weights leaves them random.)"
            )
        logger.warning("%s is used in part: %s They stay random.", weights, text)
    return missing, other


def load_trained(recipe, datasets: Sequence[str] | None = None) -> nn.Module:
    """Builds the model of a recipe and loads its ``weights``.

    They must be all of it, unless the recipe has ``partial_weights``.

    Args:
        recipe: a :class:`~lvis_tde.engine.Recipe`.
        datasets: what it will be run on, whose classes must be those of its statistics, if it has
            any; default: the recipe's test sets.

    Returns:
        nn.Module: in eval mode, and optimized for inference if the recipe is ``fast``; its
        running means and statistics are zero where the checkpoint has
        none.

    Raises:
        ValueError: if there are no weights, they lack a parameter or it has another shape, or
            their statistics are of other classes than those of ``datasets``.
    """
    check_named(recipe)
    model = recipe.build_model().eval()
    load_all(model, recipe.weights, partial=recipe.partial_weights)
    for name in recipe.test_sets if datasets is None else datasets:
        check_class_list(model, name)
    if recipe.fast:
        optimize_for_inference(model, named_dtype(recipe.inference_dtype))
        logger.info("Optimized for inference, %s.", recipe.inference_dtype or "float32")
    return model


def run_estimate(
    recipe,
    *,
    num_heads: int = 1,
    max_batches: int | None = None,
    tolerance: float = 2.0,
    class_means: bool = False,
    images_per_class: int | None = None,
) -> MeanEstimate:
    """Puts TDE on a trained model: estimates the mean, writes a checkpoint and a config for it.

    The statistics of the classes that the steps of ``MODEL.POSTHOC`` need are gathered with it.

    Its ``output_dir`` gets ``model_tde.pth`` and ``config_tde.yaml``, which names it.

    Args:
        recipe: a :class:`~lvis_tde.engine.Recipe` with the ``weights`` of a trained model: a
            softmax model, or one with TDE heads, whose mean is then estimated anew.
        num_heads: K for a softmax model; others keep theirs.
        max_batches: most batches; default: 500, and for ``class_means`` as many as hold all
            training images once, if that is more.
        tolerance, class_means: see :func:`estimate_feature_mean`.
        images_per_class: take the means of the classes from so many images of each, in a pass of
            their own, see :func:`estimate_from_few`; then ``class_means`` says nothing.

    Returns:
        MeanEstimate: what was found.

    Raises:
        ValueError: see :func:`load_trained`, :func:`estimate_feature_mean`,
            :func:`estimate_from_few` and ``Recipe.put_tde_on_softmax``.
    """
    if images_per_class is not None:
        check_number(images_per_class)
    recipe = recipe.clone()
    recipe.fast = False  # what is measured here stays in the checkpoint
    recipe.put_tde_on_softmax(num_heads)
    model = load_trained(recipe, ())  # statistics of other classes are replaced
    for predictor in tde_predictors(model):
        predictor.calibrated_alpha, predictor.chosen = None, ""  # for another mean
    before = [predictor.feature_mean.mean.clone() for predictor in tde_predictors(model)]
    heads = tde_predictors(model)[0].cls_score.num_heads
    # Before the pass, which is to see all classes that training images have.
    gather_class_statistics(model, recipe.train_sets)
    class_means = class_means and images_per_class is None
    if max_batches is None:
        num_images = int(tde_predictors(model)[0].statistics.num_images)
        once = math.ceil(num_images / recipe.batch_size) if class_means else 0
        max_batches = max(MAX_BATCHES, once)
    found = estimate_feature_mean(
        model,
        recipe.train_loader(),
        max_batches=max_batches,
        tolerance=tolerance,
        class_means=class_means,
    )
    logger.info(
        "%s after %d batches: %s foreground regions, halves %.2f degrees apart (tolerance %g).",
        "Converged" if found.converged else "Stopped",
        found.num_batches,
        " / ".join(map(str, found.num_foreground)),
        found.angle,
        tolerance,
    )
    if images_per_class is not None:
        missing = estimate_from_few(model, recipe, images_per_class)
        found = dataclasses.replace(found, num_without_mean=missing)
    if any(found.num_without_mean):
        logger.warning(
            "%d classes have no mean: no training region of theirs was seen. With more batches "
            "(--max-batches) or images of them they may get one; the step of CLASS_MEANS leaves "
            "them alone.",
            max(found.num_without_mean),
        )
    if any(found.num_left_out):
        logger.warning("%s regions had features that are not finite.", found.num_left_out)
    for old, new in zip(before, found.means):
        if old.any():
            apart = angle_between(old, new, heads).tolist()
            logger.info("The checkpoint's own mean is %s degrees away, by head.", apart)
    if comm.is_main_process():
        checkpoint = os.path.join(recipe.output_dir, "model_tde.pth")
        save_checkpoint(
            model,
            checkpoint,
            feature_mean={"angle": found.angle, "num_foreground": found.num_foreground},
        )
        recipe.weights = checkpoint
        config = os.path.join(recipe.output_dir, "config_tde.yaml")
        recipe.save(config)
        logger.info(
            "Wrote %s and %s. Choose strengths next: tools/sweep_posthoc.py.", checkpoint, config
        )
    comm.synchronize()
    return found
