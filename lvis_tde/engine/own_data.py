"""A user's annotation files as the data sets of a recipe."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.long_tailed import register_long_tailed
from .recipes import Recipe

__all__ = ["use_data"]

logger = logging.getLogger(__name__)

_SETS = {"train": "train_sets", "calib": "calibration_sets", "test": "test_sets"}


def use_data(recipe: Recipe, train=None, test=None, bounds=None, calib=None) -> None:
    """Registers a user's files and points a recipe at them: data sets and number of classes.

    Without ``test``, test sets of other classes than those of ``train`` are left out.

    Args:
        recipe: changed.
        train, test: (annotation file, image folder) in LVIS or COCO format, or None to leave the
            recipe's own. The groups of ``test`` are those of ``train`` where both are given.
        bounds: most images of a rare and of a common class; None for LVIS's 10 and 100.
        calib: as ``test``, of images to choose on.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if a file is not consistent, see :func:`register_long_tailed`.
    """
    for flag, pair in (("--train-data", train), ("--test-data", test), ("--calib-data", calib)):
        for path in pair or ():
            if not os.path.exists(path):
                raise FileNotFoundError(f"{path} does not exist (see datasets/README.md).")
        if pair and not (os.path.isfile(pair[0]) and os.path.isdir(pair[1])):
            raise ValueError(
                f"{flag} takes the annotation file, then the folder of the images, got {pair[0]} "
                f"and {pair[1]}: are they swapped?"
            )
    if bounds is not None and not any((train, test, calib)):
        raise ValueError(
            f"--bounds {bounds[0]} {bounds[1]} is of your own annotation files: give --train-data "
            "JSON IMAGES, too."
        )
    given = []
    for part, pair in (("train", train), ("calib", calib), ("test", test)):
        if pair is None:
            continue
        of_train = train if part != "train" else None
        name = _free_name(f"{Path(pair[0]).stem}_{part}", pair, of_train, bounds)
        source = of_train and of_train[0]
        register_long_tailed(name, *pair, train_json=source, bounds=bounds, missing_images="note")
        setattr(recipe, _SETS[part], (name,))
        recipe.num_classes = len(_classes(name))
        given.append(name)
    if test is None and train is not None:
        _leave_out_tests_of_others(recipe, _classes(given[0]))
    if test is not None and train is None:
        logger.warning(
            "No --train-data: the groups rare, common and frequent are those that %s itself "
            "gives or counts, not those of the training set.",
            test[0],
        )


def _free_name(name: str, data, train, bounds) -> str:
    """The name, unless another set has it in this process."""
    if name not in DatasetCatalog.list():
        return name
    source = [*map(os.path.realpath, data), train and os.path.realpath(train[0]), bounds]
    known, there = MetadataCatalog.get(name), MetadataCatalog.get(name).get("source", {})
    other = [there.get("json_file"), os.path.realpath(known.get("image_root", ""))]
    other += [there.get("train_json") or None, there.get("bounds") or None]
    if source == other:
        return name
    return f"{name}_{hashlib.sha256(repr(source).encode('utf-8')).hexdigest()[:8]}"


def _classes(dataset: str) -> Sequence[str]:
    """Empty where the set does not tell."""
    return MetadataCatalog.get(dataset).get("thing_classes") or ()


def _leave_out_tests_of_others(recipe: Recipe, classes: Sequence[str]) -> None:
    kept = tuple(name for name in recipe.test_sets if _classes(name) in ((), classes))
    if kept != recipe.test_sets:
        logger.warning(
            "No --test-data: %s have other classes than --train-data, so evaluation on them is "
            "skipped.",
            ", ".join(name for name in recipe.test_sets if name not in kept),
        )
        recipe.test_sets = kept
