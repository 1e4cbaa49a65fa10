"""What every experiment does with one detector: train, measure, choose on images, evaluate."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.utils.env import seed_all_rng

from ..calibration.alpha import sweep_alpha
from ..calibration.checkpoint import load_trained
from ..calibration.class_means import estimate_from_few
from ..calibration.estimate import angle_between, estimate_feature_mean
from ..calibration.family import METRICS, Choice, choose
from ..calibration.settings import tde_predictors
from ..calibration.statistics import gather_class_statistics
from ..config import use_tde_on_softmax
from ..engine import Trainer, YacsRecipe
from ..evaluation import LVISEvaluator
from ..posthoc import Settings

__all__ = ["WEIGHTS", "chosen", "evaluated", "measured", "shown_metrics", "trained"]

logger = logging.getLogger(__name__)

WEIGHTS = "model_final.pth"


def trained(cfg: CfgNode) -> torch.nn.Module:
    """The trained model with TDE on it; training is resumed if it was interrupted.

    Args:
        cfg: of the training; changed to one that has TDE.
    """
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, WEIGHTS)
    use_tde_on_softmax(cfg)
    return load_trained(YacsRecipe(cfg))


def measured(
    cfg: CfgNode,
    model: torch.nn.Module,
    num_batches: int | None,
    images_per_class: int | None = None,
) -> dict[str, Any]:
    """Gathers the statistics and means of the classes, and the mean where training tracked none.

    Args:
        cfg: of the training.
        model: of :func:`trained`; changed.
        num_batches: training batches for the means and for the statistics of the logits; None for
            as many as hold all training images once.
        images_per_class: for the means of the classes, in place of those batches, see
            :func:`~lvis_tde.calibration.class_means.estimate_from_few`.

    Returns:
        How sure the estimate of the mean is, and how far from the tracked one.
    """
    predictors = tde_predictors(model)  # several in a cascade
    tracked = [one.feature_mean.mean.clone() for one in predictors]
    seed_all_rng(cfg.SEED)
    loader = Trainer.build_train_loader(cfg)
    if num_batches is None:
        num_images = sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TRAIN)
        num_batches = max(2, math.ceil(num_images / cfg.SOLVER.IMS_PER_BATCH))
    gather_class_statistics(model, cfg.DATASETS.TRAIN)
    found = estimate_feature_mean(
        model,
        loader,
        max_batches=num_batches,
        tolerance=0,
        class_means=images_per_class is None,
    )
    missing = found.num_without_mean
    if images_per_class is not None:
        missing = estimate_from_few(model, YacsRecipe(cfg), images_per_class)
    estimate: dict[str, Any] = {
        "batches": found.num_batches,
        "foreground": sum(found.num_foreground),
        "degrees_between_halves": round(found.angle, 2),
        "classes_without_mean": max(missing),
    }
    for predictor, before, mean in zip(predictors, tracked, found.means):
        if before.any():
            apart = angle_between(before, mean, predictor.cls_score.num_heads)
            estimate.setdefault("degrees_to_tracked", []).extend(
                round(a, 2) for a in apart.tolist()
            )
            predictor.feature_mean.mean.copy_(before)
    logger.info("Means estimated: %s", estimate)
    return estimate


def chosen(cfg: CfgNode, model: torch.nn.Module, dataset: str, **options: Any) -> Choice:
    """The best strength of each method by box AP.

    Args:
        cfg: of the model.
        model: of :func:`measured`.
        dataset: registered name of the images to choose on.
        **options: of :func:`~lvis_tde.calibration.family.choose`.
    """
    logger.info("Choosing strengths by box AP on the calibration split.")
    most = cfg.TEST.DETECTIONS_PER_IMAGE
    return choose(
        model,
        build_detection_test_loader(cfg, dataset),
        lambda: LVISEvaluator(dataset, max_dets_per_image=most),
        **options,
    )


def evaluated(
    cfg: CfgNode,
    model: torch.nn.Module,
    dataset: str,
    masks: Sequence[Settings],
    boxes: Sequence[Settings],
    evaluator: LVISEvaluator,
    on_evaluated: Callable[..., None] | None = None,
) -> dict[Settings, dict]:
    """Evaluates settings in one pass over the images.

    Args:
        cfg, model, dataset: see :func:`chosen`.
        masks: whose boxes and masks are evaluated.
        boxes: others, boxes alone; what is among ``masks`` is not evaluated twice.
        evaluator: of the set.
        on_evaluated: see :func:`~lvis_tde.calibration.alpha.sweep_alpha`.
    """
    loader = build_detection_test_loader(cfg, dataset)
    settings = list(dict.fromkeys([*masks, *boxes]))
    rest = set(boxes).difference(masks)
    return sweep_alpha(
        model, loader, settings, lambda: evaluator, boxes_only=rest, on_evaluated=on_evaluated
    )


def shown_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """AP, APr, APc and APf, rounded for results in JSON."""
    return {name: round(float(metrics[name]), 4) for name in METRICS}
