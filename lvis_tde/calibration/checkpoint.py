"""From trained weights to a checkpoint with feature mean and class statistics, and its config."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from ..data.files import atomic_path
from .estimate import MeanEstimate, angle_between, estimate_feature_mean
from .settings import tde_predictors
from .statistics import check_class_list, gather_class_statistics

__all__ = ["load_trained", "run_estimate", "save_checkpoint"]

logger = logging.getLogger(__name__)


def save_checkpoint(model: nn.Module, path: str | os.PathLike, **extra) -> None:
    """Writes a checkpoint that Detectron2 loads, under its final name only when it is complete.

    Args:
        model: its weights are stored under "model".
        path: the file to write.
        **extra: further entries.
    """
    with atomic_path(path) as partial:
        torch.save({"model": model.state_dict(), **extra}, partial)


def load_trained(recipe, datasets: Sequence[str] | None = None) -> nn.Module:
    """Builds the model of a recipe and loads its ``weights``, which must be all of it.

    Args:
        recipe: a :class:`~lvis_tde.engine.Recipe`.
        datasets: what it will be run on, whose classes must be those of its statistics, if it has
            any; default: the recipe's test sets.

    Returns:
        nn.Module: in eval mode; its running means and statistics are zero where the checkpoint has
        none.

    Raises:
        ValueError: if there are no weights, they lack a parameter or it has another shape, or
            their statistics are of other classes than those of ``datasets``.
    """
    weights = recipe.weights
    if not weights:
        key = recipe.keys["weights"]
        raise ValueError(f"{key} is empty: name the checkpoint of a trained model.")
    model = recipe.build_model().eval()
    parameters = {name for name, _ in model.named_parameters()}
    missing: list[str] = []

    def record(_, incompatible_keys):
        missing.extend(parameters.intersection(incompatible_keys.missing_keys))

    handle = model.register_load_state_dict_post_hook(record)
    DetectionCheckpointer(model).load(weights)
    handle.remove()
    if missing:
        raise ValueError(
            f"{weights} is no checkpoint of this model: it lacks {len(missing)} of its "
            f"{len(parameters)} parameters, or has another shape of them: {sorted(missing)[0]}, "
            "... Is it the config that it was trained with?"
        )
    for name in recipe.test_sets if datasets is None else datasets:
        check_class_list(model, name)
    return model


def run_estimate(
    recipe,
    *,
    num_heads: int = 1,
    max_batches: int = 500,
    tolerance: float = 2.0,
) -> MeanEstimate:
    """Puts TDE on a trained model: estimates the mean, writes a checkpoint and a config for it.

    The statistics of the classes that the steps of ``MODEL.POSTHOC`` need are gathered with it.

    Its ``output_dir`` gets ``model_tde.pth`` and ``config_tde.yaml``, which names it.

    Args:
        recipe: a :class:`~lvis_tde.engine.Recipe` with the ``weights`` of a trained model: a
            softmax model, or one with TDE heads, whose mean is then estimated anew.
        num_heads: K for a softmax model; others keep theirs.
        max_batches, tolerance: see :func:`estimate_feature_mean`.

    Returns:
        MeanEstimate: what was found.

    Raises:
        ValueError: see :func:`load_trained`, :func:`estimate_feature_mean` and
            ``Recipe.put_tde_on_softmax``.
    """
    recipe = recipe.clone()
    recipe.put_tde_on_softmax(num_heads)
    model = load_trained(recipe, ())  # statistics of other classes are replaced
    before = [predictor.feature_mean.mean.clone() for predictor in tde_predictors(model)]
    heads = tde_predictors(model)[0].cls_score.num_heads
    found = estimate_feature_mean(
        model, recipe.train_loader(), max_batches=max_batches, tolerance=tolerance
    )
    logger.info(
        "%s after %d batches: %s foreground regions, halves %.2f degrees apart (tolerance %g).",
        "Converged" if found.converged else "Stopped",
        found.num_batches,
        " / ".join(map(str, found.num_foreground)),
        found.angle,
        tolerance,
    )
    gather_class_statistics(model, recipe.train_sets)
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
        logger.info("Wrote %s and %s. Choose alpha next: tools/sweep_alpha.py.", checkpoint, config)
    comm.synchronize()
    return found
