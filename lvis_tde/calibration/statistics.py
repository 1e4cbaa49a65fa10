"""What the annotations of a training set say of its classes, as post-hoc steps need it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from torch import nn

from ..data.classes import class_info
from ..data.classification.names import register_by_name
from ..data.classification.sets import ClassificationSet
from ..modeling.statistics import class_hash
from ..modeling.strengths import Strengths
from ..posthoc import fractal_dimension
from .settings import tde_predictors

__all__ = [
    "check_class_list",
    "gather_class_statistics",
    "prepare_statistics",
    "remember_classes",
]

logger = logging.getLogger(__name__)


def gather_class_statistics(model: nn.Module, datasets: str | Sequence[str]) -> None:
    """Fills the statistics of a model's predictors from the annotations of its training set.

    Images and instances of each class, the fractal dimension of where its boxes lie and the number
    of images; and the names of the classes, by which :func:`check_class_list` knows them. Regions
    annotated as a crowd are left out. How often images are sampled in training plays no part.

    Args:
        model: with TDE predictors; changed.
        datasets: registered names of the training sets.

    Raises:
        ValueError: if the model has no TDE predictor, or a data set other classes than the model.
    """
    predictors = tde_predictors(model)
    datasets = [datasets] if isinstance(datasets, str) else list(datasets)
    num_classes, names = predictors[0].num_classes, None
    sets: list[Sequence[dict[str, Any]]] = []
    for dataset in datasets:
        register_by_name(dataset)
        sets.append(DatasetCatalog.get(dataset))
        names = MetadataCatalog.get(dataset).get("thing_classes") or names
        if names is not None and len(names) != num_classes:
            raise ValueError(
                f"Dataset {dataset!r} has {len(names)} classes, the model {num_classes}: gather "
                "the statistics from the set that it was trained on."
            )
    if all(isinstance(one, ClassificationSet) for one in sets):
        found = _count_labels(sets, num_classes)
    else:
        found = _count([record for one in sets for record in one], num_classes)
    num_images = sum(map(len, sets))
    groups = class_info(datasets[0], num_classes).frequency if names else None
    for predictor in predictors:
        predictor.statistics.set_annotations(
            **found, num_images=num_images, names=names, groups=groups
        )
    logger.info(
        "%d images, %d instances: %d of %d classes are in none.",
        num_images,
        int(found["instances"].sum()),
        int((found["images"] == 0).sum()),
        num_classes,
    )


def _count_labels(sets: Sequence[Any], num_classes: int) -> dict[str, torch.Tensor]:
    """As :func:`_count`, of images of one class each, which have no boxes."""
    labels = np.concatenate([one.labels for one in sets])
    counts = torch.from_numpy(np.bincount(labels, minlength=num_classes))
    return {"images": counts, "instances": counts, "dimension": torch.zeros(num_classes)}


def _count(records: Sequence[dict[str, Any]], num_classes: int) -> dict[str, torch.Tensor]:
    """Images, instances and fractal dimension, (C,) each, of dicts in Detectron2's format."""
    images = torch.zeros(num_classes, dtype=torch.int64)
    classes, centers = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 2).double()]
    for record in records:
        objects = [one for one in record.get("annotations", ()) if not one.get("iscrowd", 0)]
        if not objects:
            continue
        labels = torch.tensor([one["category_id"] for one in objects])
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"{record.get('file_name', 'An image')} has an object of class "
                f"{int(labels.max())}, and the model {num_classes} classes."
            )
        images[labels.unique()] += 1
        classes.append(labels)
        centers.append(_centers(objects, record["width"], record["height"]))
    labels = torch.cat(classes)
    return {
        "images": images,
        "instances": labels.bincount(minlength=num_classes),
        "dimension": fractal_dimension(torch.cat(centers), labels, num_classes),
    }


def _centers(objects: Sequence[dict[str, Any]], width: int, height: int) -> torch.Tensor:
    """(N, 2) in [0, 1], those of boxes outside the image on its border."""
    boxes = np.asarray([one["bbox"] for one in objects], dtype=np.float64)
    modes = np.asarray([one["bbox_mode"] for one in objects])
    for mode in np.unique(modes):
        rows = modes == mode
        boxes[rows] = BoxMode.convert(boxes[rows], BoxMode(mode), BoxMode.XYXY_ABS)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 / (width, height)
    return torch.from_numpy(centers.clip(0, 1))


def check_class_list(model: nn.Module, dataset: str) -> None:
    """Refuses statistics that were gathered for other classes than those of a data set.

    Args:
        model: whose TDE predictors, if it has any, are looked at. Statistics without names of
            classes are taken as they are.
        dataset: registered name; one without ``thing_classes`` says nothing.

    Raises:
        ValueError: naming the first class that differs.
    """
    names = MetadataCatalog.get(dataset).get("thing_classes")
    predictors = [m for m in model.modules() if isinstance(m, Strengths)]
    if not names or not predictors:
        return
    known = predictors[0].statistics.classes.tolist()
    if not any(known) or len(known) != len(names):
        return
    for index, (number, name) in enumerate(zip(known, names)):
        if number != class_hash(name):
            raise ValueError(
                f"Class {index} of {dataset!r} is {name!r}, but the checkpoint's statistics are "
                "those of another class there: its class list is that of another data set. Use "
                "the data set that the model was trained on, or gather the statistics for this "
                "one with tools/estimate_feature_mean.py."
            )


def remember_classes(model: nn.Module, dataset: str) -> None:
    """Puts the names and groups of a data set's classes into a model whose checkpoint has none.

    Args:
        model: whose TDE predictors are changed, if it has any.
        dataset: registered name; one without ``thing_classes``, or with another number of classes,
            says nothing.
    """
    names = MetadataCatalog.get(dataset).get("thing_classes")
    for predictor in (m for m in model.modules() if isinstance(m, Strengths)):
        known = predictor.statistics
        if names and len(names) == known.num_classes and known.class_names is None:
            known.set_classes(names, class_info(dataset, len(names)).frequency)


def prepare_statistics(
    model: nn.Module, datasets: Sequence[str], *, measured: bool, resumed: bool = False
) -> None:
    """Sees to it before a training that the model can predict at its end.

    What a checkpoint knows of other classes, and of another training's images, is forgotten, the
    names of the classes are remembered and what the settings need of the annotations is gathered.

    Args:
        model: to be trained; one without TDE predictors is left alone.
        datasets: registered names of the training sets.
        measured: the statistics of the logits are measured before the first evaluation.
        resumed: the checkpoint is of this very training, so what it knows is of the same images.

    Raises:
        ValueError: if a setting needs the statistics of the logits, and they will not be measured,
            or the means of the classes.
    """
    predictors = [m for m in model.modules() if isinstance(m, Strengths)]
    if not predictors:
        return
    try:
        for dataset in datasets:
            check_class_list(model, dataset)
    except ValueError as error:
        logger.warning("%s They are forgotten.", error)
        for predictor in predictors:
            predictor.statistics.forget()
    for dataset in datasets[:1]:
        remember_classes(model, dataset)
    used = [one.posthoc for one in predictors]
    if not measured and any(one.logn > 0 for one in used):
        raise ValueError(
            f"logn={max(one.logn for one in used):g} (MODEL.POSTHOC.LOGN) needs the statistics of "
            "the trained model's logits. MODEL.TDE.PRECISE_MEAN measures them at the end of "
            "training, so set it, and TEST.EVAL_PERIOD to 0 (train.precise_mean and "
            "train.eval_period in a LazyConfig), or train with LOGN 0 and put it on the trained "
            "model."
        )
    if any(one.class_means > 0 for one in used):
        raise ValueError(
            f"class_means={max(one.class_means for one in used):g} (MODEL.POSTHOC.CLASS_MEANS) "
            "needs the mean features of each class under the trained weights, which no training "
            "measures. Train with CLASS_MEANS 0 and put it on the trained model: "
            "tools/estimate_feature_mean.py --class-means."
        )
    if not predictors[0].has_background:
        # Of images they are counted in no time, and whatever is chosen later finds them.
        gather_class_statistics(model, datasets)
        return
    needed = any(one.logit_adjustment > 0 or one.norcal > 0 or one.fracal > 0 for one in used)
    if needed and not (resumed and all(one.statistics.num_images > 0 for one in predictors)):
        gather_class_statistics(model, datasets)
    elif not (needed or resumed):
        # Of another training's images, be its classes the same.
        for predictor in predictors:
            predictor.statistics.forget_annotations()
