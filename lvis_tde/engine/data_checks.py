"""What can be checked of a run's annotations before anything is built."""

from __future__ import annotations

from typing import Any

from detectron2.data import MetadataCatalog

from .recipes import Recipe

__all__ = ["check_annotations", "check_sets"]


def check_sets(recipe: Recipe, training: bool, testing: bool) -> str:
    """Fails if there is nothing to train, or to test, on.

    Args:
        recipe: what is to be run.
        training, testing: whether the training and the test sets will be read. Training does
            without test sets.

    Returns:
        How many there are, in words.

    Raises:
        ValueError: naming the key and the argument that set it.
    """
    # A sweep that reports nothing does with images to choose on.
    tested = (*recipe.test_sets, *recipe.calibration_sets)
    for wanted, names, key, argument in (
        (training, recipe.train_sets, "train_sets", "--train-data"),
        (testing and not training, tested, "test_sets", "--test-data"),
    ):
        if wanted and not any(names):
            raise ValueError(
                f"{recipe.keys[key]} is empty, so there are no data: give {argument} JSON IMAGES, "
                "or name a registered data set."
            )
    return f"{len(recipe.train_sets)} to train on, {len(recipe.test_sets)} to test on"


def check_annotations(recipe: Recipe, name: str, *, training: bool) -> None:
    """Fails if the annotations of a data set do not suit the model.

    Args:
        recipe: what is to be run.
        name: of a set registered with :func:`~lvis_tde.data.long_tailed.register_long_tailed`;
            of others nothing is known.
        training: the set is trained on.

    Raises:
        FileNotFoundError: if none of its images is there; lists what was tried.
        ValueError: if there is no annotation to train on, or none of the masks that the model
            needs, or masks in another form; the message names the first annotation.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("annotated") is None:
        return
    if metadata.images_not_found:
        raise FileNotFoundError(metadata.images_not_found)
    file = metadata.source["json_file"]
    if training and not metadata.annotated:
        raise ValueError(
            f"{file} has no annotation to train on. Is it the right file for --train-data?"
        )
    if not _value(recipe, "masks"):
        return
    first = metadata.without_mask
    if first is not None:
        raise ValueError(
            f"{file}: annotation {first!r} has no segmentation, and the model predicts masks: for "
            f"boxes alone set {_cure(recipe, 'masks')}."
        )
    first = metadata.with_rle
    if training and first is not None and _value(recipe, "mask_format") == "polygon":
        raise ValueError(
            f"{file}: the mask of annotation {first!r} is an RLE, and training expects polygons: "
            f"set {_cure(recipe, 'mask_format')}."
        )


def _value(recipe: Recipe, key: str) -> Any:
    node: Any = recipe.cfg
    for part in recipe.keys[key].split("."):
        node = node.get(part) if node is not None else None
    return node


def _cure(recipe: Recipe, key: str) -> str:
    """An override in the form that the kind of config takes."""
    wanted = {
        "MODEL.MASK_ON": "MODEL.MASK_ON False",
        "INPUT.MASK_FORMAT": "INPUT.MASK_FORMAT bitmask",
        "dataloader.train.mapper.instance_mask_format": (
            "dataloader.train.mapper.instance_mask_format=bitmask"
        ),
    }
    name = recipe.keys[key]
    return wanted.get(name, f"{name}, mask_in_features and mask_pooler to None in the LazyConfig")
