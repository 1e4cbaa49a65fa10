"""The means of the classes from few training images of each, which need no pass over all of them.

The rare classes are in few images, and frequent ones need no more: 16 images of each class are at
most 15,098 of LVIS's 100,170.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.classification.names import register_by_name
from ..data.classification.sets import ClassificationSet
from ..progress import Progress
from .hold_out import calibration_images
from .regions import labels_of, regions_of_training
from .settings import tde_predictors
from .sums import ClassSums

__all__ = ["check_number", "estimate_class_means", "estimate_from_few", "few_of_each_class"]

logger = logging.getLogger(__name__)


def check_number(images_per_class: int) -> int:
    """
    Raises:
        ValueError: it is no whole number of images, at least one.
    """
    if images_per_class < 1 or images_per_class % 1:
        raise ValueError(f"images_per_class={images_per_class} must be a whole number, at least 1.")
    return images_per_class


def _shown(records: Iterable[dict[str, Any]]) -> list[list[int]]:
    """The classes of the objects of each image, without crowds."""
    return [
        [a["category_id"] for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
        for record in records
    ]


def few_of_each_class(dataset: str, number: int, seed: int = 0) -> str:
    """Registers a part of a training set in which each class has some images.

    Args:
        dataset: registered name, of detection or of classification.
        number: of images of every class, >= 1, or all that it has; an image counts for all classes
            that it shows, so frequent ones have more.
        seed: another seed, other images.

    Returns:
        str: name of the part. Its metadata are those of the whole.

    Raises:
        ValueError: see :func:`check_number`; or the images show nothing.
    """
    check_number(number)
    register_by_name(dataset)
    records = DatasetCatalog.get(dataset)
    images = isinstance(records, ClassificationSet)
    shown = dict(enumerate([[c] for c in records.labels.tolist()] if images else _shown(records)))
    if not any(shown.values()):
        raise ValueError(f"Dataset {dataset!r} has no annotated object to take a mean of.")
    chosen = sorted(calibration_images(shown, number, seed))
    part = records.part(np.array(chosen)) if images else [records[i] for i in chosen]
    name = f"{dataset}_{number}_of_each_class_{seed}"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    DatasetCatalog.register(name, lambda: part)
    known = {k: v for k, v in MetadataCatalog.get(dataset).as_dict().items() if k != "name"}
    MetadataCatalog.get(name).set(**known)
    logger.info(
        "Up to %d images of each class: %d of the %d of %s.",
        number, len(part), len(records), dataset,
    )  # fmt: skip
    return name


@torch.no_grad()
def estimate_class_means(
    model: nn.Module, loader: Iterable[list[dict]], *, num_batches: int
) -> tuple[int, ...]:
    """Sets the means of the classes of a trained model from training batches, and nothing else.

    The regions are those of :func:`~lvis_tde.calibration.estimate.estimate_feature_mean`.

    Args:
        model: with TDE predictors, trained weights and the statistics of its classes.
        loader: training batches with ground truth; every process needs as many.
        num_batches: of each process, >= 1; it goes on, up to a quarter more, until each class was
            seen that the statistics know of.

    Returns:
        For each predictor the number of classes without a mean.

    Raises:
        ValueError: if the model has no TDE predictor, or no batch is asked for.
    """
    if num_batches < 1:
        raise ValueError(f"num_batches={num_batches} must be at least 1.")
    if isinstance(model, DistributedDataParallel):
        model = model.module
    predictors = tde_predictors(model)
    sums = [ClassSums(predictor) for predictor in predictors]

    def added_to(one: ClassSums):
        def losses(_, predictions, truth, *__, **___) -> dict[str, Tensor]:
            one.add(predictions[-1], labels_of(truth))
            return {}

        return losses

    progress = Progress("means", num_batches)
    with regions_of_training(model, list(zip(predictors, map(added_to, sums)))):
        most = num_batches + math.ceil(num_batches / 4)
        for count, batch in enumerate(itertools.islice(loader, most), start=1):
            model(batch)
            progress.step(min(count, num_batches))
            # All are asked, as every process must ask the others.
            if count >= num_batches and not any([one.unseen() for one in sums]):
                break
    for predictor, one in zip(predictors, sums):
        predictor.statistics.set_class_means(*one.means())
    return tuple(int((one.counts() == 0).sum()) for one in sums)


def estimate_from_few(model: nn.Module, recipe, images_per_class: int) -> tuple[int, ...]:
    """:func:`estimate_class_means` from a part of the training images, once through them.

    Args:
        model: see there.
        recipe: a :class:`~lvis_tde.engine.Recipe` with the training sets.
        images_per_class: see :func:`few_of_each_class`.

    Returns, Raises:
        see there.
    """
    recipe = recipe.clone()
    recipe.train_sets = tuple(few_of_each_class(s, images_per_class) for s in recipe.train_sets)
    num_images = sum(len(DatasetCatalog.get(name)) for name in recipe.train_sets)
    num_batches = math.ceil(num_images / recipe.batch_size)
    return estimate_class_means(model, recipe.train_loader(), num_batches=num_batches)
