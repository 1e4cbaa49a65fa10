"""Names that carry their parameters, and registration with Detectron2.

``cifar100_lt_100_seed0_train``: CIFAR-100 cut to an imbalance of 100 by seed 0, the training part.
The names are ``{cifar10,cifar100,digits,emoji}_lt[_RATIO][_step][_seedSEED]_PART``, with RATIO 100
and SEED 0 where there is none; ``{imagenet,places}_lt_PART``, whose official lists leave nothing to
choose; and ``inat2018_PART``.

======  =======================================================================================
train   the training set of the protocol
fit     ``train`` without ``calib``; all of it where ``calib`` has images of its own
calib   for choosing epochs and strengths: of digits, emoji, ImageNet-LT and Places-LT as many
        images of each class that are in no other part, else a tenth of each class of ``train``
test    for the result; of iNaturalist it is called ``val``
======  =======================================================================================
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from .sets import ClassificationSet
from .sources import BOUNDS, load_source
from .subsets import choose_subset, read_subset, split_subset, write_subset

__all__ = ["register_by_name", "register_classification"]

logger = logging.getLogger(__name__)

_STEM = re.compile(
    r"(?P<kind>cifar10|cifar100|digits|emoji)_lt"
    r"(?:_(?P<ratio>\d+(?:\.\d+)?))?(?P<step>_step)?(?:_seed(?P<seed>\d+))?"
    r"|(?P<listed>imagenet|places)_lt|(?P<inat>inat2018)"
)
_OURS = re.compile(r"((cifar10|cifar100|digits|emoji|imagenet|places)_lt|inat2018)(_|$)")
_PARTS = ("train", "fit", "calib", "test")


def register_by_name(name: str, root: str | os.PathLike | None = None) -> None:
    """Registers a set, and its other parts, by a name that carries its parameters.

    The names are those of :mod:`lvis_tde.data.classification.names`; others are left alone, and so
    is a set that is registered already, unless it is from another root. The images are read, or of
    sets of files the lists.

    Which training images a set that is cut keeps is read from ``<root>/subsets/<stem>.json``, the
    name without its part; if there is no such file it is drawn from the seed and written there.

    Args:
        name: of the set.
        root: folder of the data; default: ``DETECTRON2_DATASETS``, or "datasets".

    Raises:
        FileNotFoundError: naming the path that is missing, where it comes from and the command.
        ValueError: if a name begins like one of these and is none, a file is damaged, or the ratio
            leaves no image of a class.
    """
    if not _OURS.match(name):
        return
    folder = Path(root if root is not None else os.environ.get("DETECTRON2_DATASETS", "datasets"))
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("root") in (None, str(folder)):
            return
    stem, _, part = name.rpartition("_")
    found = _STEM.fullmatch(stem)
    last = "val" if found and found["inat"] else "test"
    if found is None or part not in (*_PARTS[:3], last):
        raise ValueError(
            f"{name!r} is no set: the names are {{cifar10,cifar100,digits,emoji}}_lt[_RATIO][_step]"
            "[_seedSEED]_PART and {imagenet,places}_lt_PART with PART one of "
            f"{', '.join(_PARTS)}, and inat2018_{{train,fit,calib,val}}"
        )
    parts, bounds = _load_parts(stem, found, folder)
    counts = parts["train"].class_counts()
    for part, images in parts.items():
        register_classification(
            f"{stem}_{last if part == 'test' else part}",
            images,
            counts=counts,
            bounds=bounds,
            train_set=f"{stem}_train",
            root=str(folder),
        )


def register_classification(
    name: str,
    images: ClassificationSet,
    *,
    counts: Sequence[int] | np.ndarray,
    bounds: tuple[int, int] = BOUNDS,
    train_set: str | None = None,
    **metadata: Any,
) -> None:
    """Registers a set with what the evaluation and the losses ask of its metadata.

    That is ``thing_classes``, ``class_image_count`` (of the training set), ``evaluator_type``
    "classification", ``bounds`` and ``train_set``. A set of this name is replaced.

    Args:
        name: of the set.
        images: the set.
        counts: (C,) training images of each class.
        bounds: few has fewer training images than the first, many more than the second.
        train_set: name of the training set; default: this one.
        metadata: what else is to be known of it.
    """
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    DatasetCatalog.register(name, lambda: images)
    MetadataCatalog.get(name).set(
        thing_classes=images.classes,
        class_image_count=[{"id": i, "image_count": int(n)} for i, n in enumerate(counts)],
        evaluator_type="classification",
        bounds=tuple(bounds),
        train_set=train_set or name,
        **metadata,
    )


def _load_parts(
    stem: str, found: re.Match, root: Path
) -> tuple[dict[str, ClassificationSet], tuple[int, int]]:
    kind = found["kind"] or found["listed"] or found["inat"]
    ratio, seed = float(found["ratio"] or 100), int(found["seed"] or 0)
    profile = "step" if found["step"] else "exp"
    variant = f"{profile}{ratio:g}_seed{seed}" if kind == "emoji" else ""
    source = load_source(kind, root, variant)
    train, num_classes = source.train, len(source.train.classes)
    if found["kind"] in (None, "emoji"):  # as long-tailed as it is to be
        chosen = [np.flatnonzero(train.labels == label) for label in range(num_classes)]
    else:
        path = root / "subsets" / f"{stem}.json"
        if path.is_file():
            chosen = read_subset(path, train.labels, train.classes)
        else:
            chosen = choose_subset(train.labels, num_classes, ratio, profile, seed)
            _try_to_write(path, chosen, train)
    parts = {"train": train.part(np.sort(np.concatenate(chosen))), "test": source.test}
    if source.calib is not None:
        return {**parts, "fit": parts["train"], "calib": source.calib}, source.bounds
    fit, calib = split_subset(chosen)
    return {**parts, "fit": train.part(fit), "calib": train.part(calib)}, source.bounds


def _try_to_write(path: Path, chosen: list[np.ndarray], train: ClassificationSet) -> None:
    try:
        write_subset(path, chosen, train.classes, len(train))
    except OSError as error:  # data that others look after
        logger.warning("The subset is not written down: %s", error)
