"""Anybody's folder with a folder of images for each class, cut to a ratio or as it is."""

from __future__ import annotations

import os

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from torchvision.datasets import ImageFolder

from .names import register_classification
from .sets import ClassificationSet
from .sources import BOUNDS
from .subsets import choose_subset, split_subset

__all__ = ["register_image_folder"]


def register_image_folder(
    name: str,
    path: str | os.PathLike,
    ratio: float | None = None,
    *,
    profile: str = "exp",
    seed: int = 0,
    part: str | None = None,
    train_set: str | None = None,
    bounds: tuple[int, int] = BOUNDS,
) -> None:
    """Registers a folder in the layout of torchvision's ``ImageFolder``.

    Args:
        name: of the set; one of this name is replaced.
        path: of the folder, which has a folder of images for each class.
        ratio: cut it to this imbalance, see :func:`~.subsets.choose_subset`; None keeps all images.
        profile, seed: of the cut.
        part: "fit" or "calib" of it, see :func:`~.subsets.split_subset`; None for all of it.
        train_set: registered name of the training set, for a test set: its classes and counts
            count. Give it for every set but train.
        bounds: few has fewer training images than the first, many more than the second; those of
            ``train_set`` where it is given.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in a folder of it.
        ValueError: if ``part`` is none, or a class is not in the training set.
    """
    if part not in (None, "fit", "calib"):
        raise ValueError(f"part must be 'fit', 'calib' or None, got {part!r}")
    if not os.path.isdir(path):
        raise FileNotFoundError(
            f"{path} does not exist: give a folder that has a folder of images for each class (see "
            "datasets/README.md)"
        )
    found = ImageFolder(str(path))
    classes = found.classes
    if train_set is not None:
        DatasetCatalog.get(train_set)  # says so if it is not registered
        known = MetadataCatalog.get(train_set)
        classes, bounds = known.thing_classes, known.bounds
    place = {one: index for index, one in enumerate(classes)}
    strangers = [one for one in found.classes if one not in place]
    if strangers:
        raise ValueError(f"{path} has a class {strangers[0]!r} that {train_set!r} has not")
    labels = np.array([place[found.classes[label]] for label in found.targets], np.int64)
    images = ClassificationSet(labels, classes, files=[file for file, _ in found.samples])
    chosen = [np.flatnonzero(labels == label) for label in range(len(classes))]
    if ratio is not None:
        chosen = choose_subset(labels, len(classes), ratio, profile, seed)
    counts = [len(one) for one in chosen]
    if train_set is not None:
        counts = [one["image_count"] for one in known.class_image_count]
    if part is None:
        images = images.part(np.sort(np.concatenate(chosen)))
    else:
        images = images.part(split_subset(chosen)[part == "calib"])
    # Without a "root", which is of sets by name: a folder may be called as one of those is.
    register_classification(
        name, images, counts=counts, bounds=bounds, train_set=train_set, folder=str(path)
    )
