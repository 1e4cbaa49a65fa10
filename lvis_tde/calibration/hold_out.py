"""A part of the training images to choose settings on, with no class left out."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..data.files import write_text

__all__ = ["calibration_images", "check_amount", "hold_out", "in_words"]

logger = logging.getLogger(__name__)


def check_amount(amount: float) -> float:
    """
    Raises:
        ValueError: it is neither a share between 0 and 1 nor a whole number of images.
    """
    if not (0 < amount < 1 or (amount >= 1 and amount % 1 == 0)):
        raise ValueError(
            f"calibrate={amount} must be a share between 0 and 1, or a whole number of images of "
            "each class."
        )
    return amount


def in_words(amount: float) -> str:
    """What ``--calibrate`` takes, such as "0.05 of the training images"."""
    return f"{amount:g} of the training images" + (" of each class" if amount >= 1 else "")


def calibration_images(
    classes_of: Mapping[int, Iterable[int]], amount: float, seed: int = 0, *, rest: bool = False
) -> set[int]:
    """Chooses a part of the images such that no class is left out of it, or of the rest.

    An image's rank is a hash of its id and the seed, so the choice is the same before and after
    training. Beginning with the rarest class, each gets its best ranked images until it has its
    number. A share is of its own images, at least one; a class with a single image is left to
    training, and of any other one image at least is: those that would be its last are passed over,
    even where that leaves a class that they show without a chosen one. So the rare classes, of
    which a plain draw of 5 % would hold hardly any, can be measured. A whole number is of images of
    every class, or all that it has: for models that were trained on all of them, whose rare objects
    hardly count among so many of the frequent classes.

    Args:
        classes_of: image id to the classes that it shows.
        amount: share of the images of every class, in (0, 1); or their number, whole and >= 1.
        seed: another seed, other images.
        rest: every class needs an image beside them, also under a number.

    Returns:
        set: image ids.

    Raises:
        ValueError: if ``amount`` is out of its range, or nothing can be chosen.
    """
    check_amount(amount)
    left_over = 1 if rest or amount < 1 else 0
    images_of = defaultdict(set)
    for image, classes in classes_of.items():
        for one in set(classes):
            images_of[one].add(image)
    rank = {image: hashlib.sha256(f"{seed}/{image}".encode()).digest() for image in classes_of}
    chosen: set[int] = set()
    unchosen = {one: len(images) for one, images in images_of.items()}
    for one, images in sorted(images_of.items(), key=lambda item: (len(item[1]), item[0])):
        wanted = amount if amount >= 1 else max(1, round(amount * len(images)))
        wanted = int(min(wanted, len(images) - left_over))
        for image in sorted(images - chosen, key=rank.__getitem__):
            if len(images) - unchosen[one] >= wanted:
                break
            shown = set(classes_of[image])
            if left_over and any(unchosen[c] == 1 < len(images_of[c]) for c in shown):
                continue
            chosen.add(image)
            for c in shown:
                unchosen[c] -= 1
    if not chosen:
        raise ValueError("No class has two images, so none can be held out for calibration.")
    return chosen


def hold_out(
    dataset: str,
    amount: float,
    folder: str | os.PathLike,
    seed: int = 0,
    *,
    rest: bool = False,
) -> str:
    """Registers a part of a training set as a set to evaluate on.

    Args:
        dataset: registered set whose metadata has ``json_file``.
        amount, seed: see :func:`calibration_images`.
        folder: gets ``calibration.json``, the annotations of the chosen images.
        rest: write ``training.json`` too, those of all other images, to train without the chosen.

    Returns:
        str: name of the new set; its frequency groups are those of the whole.

    Raises:
        ValueError: see :func:`calibration_images`; or the set has no annotation file.
    """
    source = MetadataCatalog.get(dataset)
    if source.get("json_file") is None:
        raise ValueError(f"Dataset {dataset!r} has no json_file in its metadata to evaluate with.")
    with open(source.json_file, encoding="utf-8-sig") as file:
        annotations = json.load(file)
    classes_of: dict[int, list[int]] = {image["id"]: [] for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        classes_of[annotation["image_id"]].append(annotation["category_id"])
    chosen = calibration_images(classes_of, amount, seed, rest=rest)
    path = os.path.join(folder, "calibration.json")
    if comm.is_main_process():
        _write_part(path, annotations, chosen)
        if rest:
            others = set(classes_of) - chosen
            _write_part(os.path.join(folder, "training.json"), annotations, others)
    comm.synchronize()
    total = len(classes_of)
    del annotations, classes_of  # before the whole set is read
    name = f"{dataset}_calibration_{hashlib.sha256(path.encode('utf-8')).hexdigest()[:8]}"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    part: list[dict] = []

    def load() -> list[dict]:
        # The whole of LVIS takes a minute and 6 GB, and every pass over its part asks for it.
        if not part:
            part.extend(r for r in DatasetCatalog.get(dataset) if r["image_id"] in chosen)
        return copy.deepcopy(part)

    DatasetCatalog.register(name, load)
    if not rest:
        load()  # which completes the metadata of some sets, such as the ids of COCO's
    known = {k: v for k, v in source.as_dict().items() if k not in ("name", "json_file")}
    MetadataCatalog.get(name).set(json_file=path, **known)
    logger.info(
        "Calibration on %d of the %d images of %s: %s.",
        len(chosen),
        total,
        dataset,
        in_words(amount),
    )
    return name


def _write_part(path: str, annotations: dict, images: set[int]) -> None:
    part = {
        **annotations,
        "images": [i for i in annotations["images"] if i["id"] in images],
        "annotations": [a for a in annotations["annotations"] if a["image_id"] in images],
    }
    write_text(path, json.dumps(part, separators=(",", ":")))
