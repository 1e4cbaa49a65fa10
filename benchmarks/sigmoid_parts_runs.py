"""Trained models and what one pass over the images gives of each, kept in a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.utils.env import seed_all_rng

from lvis_tde.calibration.checkpoint import load_trained
from lvis_tde.calibration.estimate import estimate_feature_mean
from lvis_tde.calibration.replay import box_branch_only
from lvis_tde.calibration.settings import tde_predictors
from lvis_tde.calibration.statistics import gather_class_statistics
from lvis_tde.config import use_tde_on_softmax
from lvis_tde.data.files import atomic_path
from lvis_tde.data.generated import KINDS
from lvis_tde.engine import Trainer, YacsRecipe, load_config
from lvis_tde.modeling.intercept import intercepted

__all__ = ["FINAL", "FORMAT", "SPLITS", "Run", "open_model", "pass_over", "stored_columns"]

SPLITS = ("calib", "val")
FINAL = "model_final.pth"
# For the means: training batches at most, and how many degrees apart those of their halves may be.
MEAN_BATCHES = 500
TOLERANCE = 2.0
FORMAT = 3  # of what is kept: files of another one are not looked at


@dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes:
        folder: with ``config.yaml`` and checkpoints.
        kind: of its set, a key of ``KINDS``.
        seed: of the set and of the training.
        names: split to registered data set.
        sigmoid: whether it classifies with sigmoids.
    """

    folder: Path
    kind: str
    seed: int
    names: Mapping[str, str]
    sigmoid: bool

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def stem(self) -> str:
        """For names of files."""
        return f"{self.kind}_seed{self.seed}_{self.name}"

    @classmethod
    def open(cls, folder: Path, datasets: str) -> Run:
        """
        Raises:
            ValueError: if it was not trained on a generated set under ``datasets``.
        """
        cfg = load_config(str(folder / "config.yaml"))
        for kind, how in KINDS.items():
            names = how.register(datasets, seed=cfg.SEED)
            if names["train"] in cfg.DATASETS.TRAIN:
                for name in names.values():
                    DatasetCatalog.get(name)
                sigmoid = bool(cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE", False))
                return cls(folder, kind, cfg.SEED, names, sigmoid)
        raise ValueError(
            f"{folder} was trained on {cfg.DATASETS.TRAIN}, which is none of the generated sets "
            f"{', '.join(KINDS)} of seed {cfg.SEED} under {datasets}: name their folder."
        )


def stored_columns(
    run: Run, cache: Path, images: int, weights: str = FINAL
) -> dict[str, dict[str, Any]]:
    """What :class:`Regions` hold of both held-out splits, from the file if there is one.

    The means are estimated from training batches, as the command does it; a cosine classifier's
    own mean stays.

    Args:
        run: the model.
        cache: folder of the files.
        images: of a split, at most; the first ones.
        weights: name of the checkpoint in the run's folder.
    """
    path = cache / f"{run.stem}_{Path(weights).stem}_{images}_{FORMAT}.pt"
    checkpoint = run.folder / weights
    if not path.exists() or path.stat().st_mtime < checkpoint.stat().st_mtime:
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            torch.save(_regions(run, checkpoint, images), partial)
    return torch.load(path, weights_only=False)


def _regions(run: Run, weights: Path, images: int) -> dict[str, dict[str, Any]]:
    cfg, model, shared = open_model(run, weights)
    return {
        split: {
            **shared,
            **pass_over(
                cfg,
                model,
                run.names[split],
                range(min(images, len(DatasetCatalog.get(run.names[split])))),
            ),
        }
        for split in SPLITS
    }


def open_model(run: Run, weights: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The config, the model with TDE and its mean, and what all its regions share."""
    for name in ("lvis_tde", "detectron2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cfg = load_config(str(run.folder / "config.yaml"), ["MODEL.WEIGHTS", str(weights)])
    use_tde_on_softmax(cfg)
    model = load_trained(YacsRecipe(cfg))
    (predictor,) = tde_predictors(model)
    tracked = predictor.feature_mean.mean.clone()
    gather_class_statistics(model, cfg.DATASETS.TRAIN)
    seed_all_rng(cfg.SEED)
    estimate_feature_mean(
        model,
        Trainer.build_train_loader(cfg),
        max_batches=MEAN_BATCHES,
        tolerance=TOLERANCE,
        class_means=True,
    )
    if cfg.MODEL.TDE.NORM != "none" and tracked.any():
        predictor.feature_mean.mean.copy_(tracked)
    return (
        cfg,
        model,
        {
            "mean": predictor.feature_mean.mean.clone(),
            "means": predictor.statistics.class_means.clone(),
            "center": predictor.statistics.center.clone(),
            "similarity": float(predictor.statistics.similarity),
            "weight": predictor.cls_score.weight.detach().clone(),
            "bias": None if predictor.cls_score.bias is None else predictor.cls_score.bias.detach(),
            "nms": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "limit": cfg.TEST.DETECTIONS_PER_IMAGE,
        },
    )


@torch.no_grad()
def pass_over(
    cfg,
    model,
    dataset: str,
    numbers: Sequence[int],
    change: Callable[[list[dict]], list[dict]] = lambda batch: batch,
) -> dict[str, Any]:
    """What the box predictor is given and gives, on some images of a set.

    Args:
        cfg, model: see :func:`open_model`.
        dataset: registered name.
        numbers: of its images, in its order.
        change: what is done to a batch before the model sees it.
    """
    (predictor,) = tde_predictors(model)
    parts, images = [], []

    def record(inference, predictions, proposals):
        boxes = torch.cat(list(predictor.predict_boxes(predictions, proposals)))
        assert boxes.shape[1] == 4, "boxes must be class-agnostic"
        parts.append((predictions[0].clone(), predictions[2].clone(), boxes.clone()))
        images.extend({"number": len(p), "size": p.image_size} for p in proposals)
        return inference(predictions, proposals)

    inputs = []
    with intercepted(predictor, "inference", record), box_branch_only(model):
        for batch in build_detection_test_loader(cfg, dataset, sampler=numbers):
            model(change(batch))
            inputs += [{key: one[key] for key in ("image_id", "height", "width")} for one in batch]
    logits, features, boxes = (torch.cat(column) for column in zip(*parts))
    cosine, pull = predictor.cls_score.effect_terms(features, predictor.feature_mean.mean)
    return {
        "logits": logits,
        "features": features,
        "boxes": boxes,
        "cosine": cosine,
        "pull": pull,
        "images": [{**image, **one} for image, one in zip(images, inputs)],
    }
