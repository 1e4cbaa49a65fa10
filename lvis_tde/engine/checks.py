"""What can be checked before anything is built: data sets and weights are there and fit."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

__all__ = ["check_dataset", "check_inputs", "check_weights"]


def check_dataset(name: str, num_classes: int, key: str = "MODEL.ROI_HEADS.NUM_CLASSES") -> None:
    """Fails if a dataset's files are not there or it has not the classes of the config's ``key``.

    Raises:
        FileNotFoundError: naming the missing path and where to read about it.
        ValueError: if the dataset has another number of classes than the model.
    """
    if name not in DatasetCatalog.list():
        raise FileNotFoundError(
            f"Dataset {name!r} is not registered. Builtin LVIS names are lvis_v1_train and "
            "lvis_v1_val; for your own data see datasets/README.md."
        )
    metadata = MetadataCatalog.get(name)
    paths = [metadata.get("json_file"), metadata.get("image_root")]
    if name.startswith("lvis_v"):  # its image_root is COCO's folder, one level higher
        folders = ["val2017"] if "val" in name else ["train2017"]
        if name.startswith("lvis_v1_val"):
            folders.append("train2017")
        paths += [os.path.join(paths[1], folder) for folder in folders]
    for path in paths:
        if path is not None and not os.path.exists(path):
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


def check_weights(path: str, key: str = "MODEL.WEIGHTS") -> None:
    """Fails if the local checkpoint that the config names under ``key`` is not there.

    Raises:
        FileNotFoundError: naming the path and what to do.
    """
    if path and "://" not in path and not os.path.isfile(path):
        raise FileNotFoundError(
            f"{key} names {path}, which does not exist. Give the path of a checkpoint, "
            f'or {key} "" to train from scratch (see datasets/README.md).'
        )


def check_inputs(cfg: CfgNode, *, training: bool = True, testing: bool = True) -> None:
    """Fails before anything is built if a dataset or weight file is not there.

    Raises:
        FileNotFoundError: naming the missing path and where to read about it.
        ValueError: if a dataset has another number of classes than the model.
    """
    names = tuple(cfg.DATASETS.TRAIN) if training else ()
    names += tuple(cfg.DATASETS.TEST) if testing else ()
    for name in names:
        check_dataset(name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    check_weights(cfg.MODEL.WEIGHTS)
