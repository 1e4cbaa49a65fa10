"""What can be checked before anything is built: data sets and weights are there and fit."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from detectron2 import modeling
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from torch import nn

from ..data.classification.names import register_by_name
from .recipes import Recipe

__all__ = ["check_dataset", "check_images", "check_inputs", "check_vit", "check_weights"]

# The image_root of Detectron2's LVIS sets is COCO's folder, one level above the images.
_LVIS_FOLDERS = {
    "lvis_v1_train": ("train2017",),
    "lvis_v1_val": ("val2017", "train2017"),
    "lvis_v1_test_dev": ("test2017",),
    "lvis_v1_test_challenge": ("test2017",),
    "lvis_v0.5_train": ("train2017",),
    "lvis_v0.5_val": ("val2017",),
    "lvis_v0.5_val_rand_100": ("val2017",),
    "lvis_v0.5_test": ("test2017",),
    "lvis_v0.5_train_cocofied": ("train2017",),
    "lvis_v0.5_val_cocofied": ("val2017",),
}


# Of a dataset, images that are opened.
_SAMPLE = 5


def _exists(path: str) -> bool:
    try:
        return PathManager.exists(path)
    except NotImplementedError:
        return True  # such as a URL, which cannot tell without a download


def check_dataset(name: str, num_classes: int, key: str = "MODEL.ROI_HEADS.NUM_CLASSES") -> None:
    """Fails if a dataset's files are not there or it has not the classes of the config's ``key``.

    Args:
        name: of a registered dataset.
        num_classes: of the model.
        key: the config's name for it.

    Raises:
        FileNotFoundError: naming the missing path and where to read about it.
        ValueError: if the dataset has another number of classes than the model.
    """
    register_by_name(name)
    if name not in DatasetCatalog.list():
        raise FileNotFoundError(
            f"Dataset {name!r} is not registered. Builtin LVIS names are lvis_v1_train and "
            "lvis_v1_val; for your own data see datasets/README.md."
        )
    metadata = MetadataCatalog.get(name)
    paths = [metadata.get("json_file"), metadata.get("image_root")]
    paths += [os.path.join(paths[1], folder) for folder in _LVIS_FOLDERS.get(name, ())]
    for path in paths:
        if path is not None and not _exists(path):
            raise FileNotFoundError(
                f"Dataset {name!r} needs {path}, which does not exist. datasets/README.md says "
                "what goes where; DETECTRON2_DATASETS names the root folder (now "
                f"{os.environ.get('DETECTRON2_DATASETS', 'datasets')!r})."
            )
    classes = metadata.get("thing_classes")
    if classes is not None and len(classes) != num_classes:
        raise ValueError(
            f"Dataset {name!r} has {len(classes)} classes, but {key} is {num_classes}: set it to "
            f"{len(classes)}."
        )


def check_images(name: str, records: Sequence[dict[str, Any]], image_format: str = "BGR") -> str:
    """Looks for all images of a dataset, and opens some.

    Args:
        name: of the dataset, for messages.
        records: its dicts in Detectron2's format.
        image_format: to read them in.

    Returns:
        str: what was found.

    Raises:
        FileNotFoundError: images are missing.
        ValueError: one of a sample is no image, or has another size than its record says.
    """
    folders = defaultdict(list)
    if not all("file_name" in record for record in records):
        return "images that are not files are not looked for"
    for record in records:
        folders[os.path.dirname(record["file_name"])].append(record["file_name"])
    if any("://" in folder for folder in folders):
        return "images on a remote storage are not looked for"
    missing = []
    for folder, files in folders.items():
        # One listing is far faster than a look for each of 100,000 files.
        there = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        missing += [file for file in files if os.path.basename(file) not in there]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(records):,} images of {name!r} are missing, the first "
            f"is {missing[0]}. Is the image folder the one that file_name is relative to?"
        )
    for record in records[:: max(1, len(records) // _SAMPLE)][:_SAMPLE]:
        try:
            height, width = read_image(record["file_name"], image_format).shape[:2]
        except Exception as error:
            raise ValueError(
                f"{record['file_name']} is no image that can be read ({error})."
            ) from error
        claimed = (record.get("width", width), record.get("height", height))
        if (width, height) != claimed:
            raise ValueError(
                f"{record['file_name']} is {width} x {height} pixels, but its annotations say "
                f"{claimed[0]} x {claimed[1]}."
            )
    return f"all images there, {min(_SAMPLE, len(records))} opened"


def check_weights(path: str, key: str = "MODEL.WEIGHTS") -> None:
    """Fails if the checkpoint that the config names under ``key`` is not there.

    Args:
        path: as Detectron2's checkpointer takes it: a file, a URL or what else ``PathManager``
            knows, with or without a query such as ``?matching_heuristics=True``. Nothing is
            downloaded.
        key: the config's name for it.

    Raises:
        FileNotFoundError: naming the path and what to do.
    """
    if os.path.isdir(path):
        raise ValueError(f"{key} names {path}, which is a folder: name the checkpoint in it.")
    if path and not any(map(_exists, (path, path.partition("?")[0]))):
        raise FileNotFoundError(
            f"{key} names {path}, which does not exist. Give the path of a checkpoint, "
            f'or {key} "" to train from scratch (see datasets/README.md).'
        )


def check_inputs(
    recipe: Recipe, *, training: bool = True, testing: bool = True, resume: bool = False
) -> None:
    """Fails before anything is built if a dataset or weight file is not there.

    Args:
        recipe: what is to be run.
        training, testing: whether the training and the test sets will be read.
        resume: whether to continue from the last checkpoint in ``output_dir``, if there is one;
            the initial weights are not read then.

    Raises:
        FileNotFoundError: naming the missing path and where to read about it.
        ValueError: if a dataset has another number of classes than the model.
    """
    names = recipe.train_sets if training else ()
    names += (*recipe.calibration_sets, *recipe.test_sets) if testing else ()
    for name in names:
        check_dataset(name, recipe.num_classes, recipe.keys["num_classes"])
    recipe.check(training=training)
    checkpointer = DetectionCheckpointer(nn.Module(), recipe.output_dir)
    if not (resume and checkpointer.has_checkpoint()):
        check_weights(recipe.weights, recipe.keys["weights"])


def check_vit() -> None:
    """Fails if this Detectron2 cannot train a ViTDet model; for the configs of one.

    Raises:
        ValueError: naming what is missing and how to get it.
    """
    if not hasattr(modeling, "SimpleFeaturePyramid"):
        raise ValueError(
            "This config needs detectron2.modeling.ViT and SimpleFeaturePyramid, which the "
            "installed Detectron2 has not: release 0.6 is older than ViTDet. Install Detectron2 "
            "main, timm and shapely (see docs/vitdet.md)."
        )
    missing = [name for name in ("timm", "shapely") if find_spec(name) is None]
    if missing:
        raise ValueError(
            "Detectron2's ViT takes its layers from timm, and cropped polygons need shapely: "
            f"pip install {' '.join(missing)}."
        )
