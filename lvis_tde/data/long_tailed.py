"""Any LVIS- or COCO-format file as a long-tailed data set with rare, common and frequent classes.

LVIS's evaluation needs more than COCO files have: a frequency group per class, and per image the
classes known to be absent (``neg_category_ids``) and those not completely annotated
(``not_exhaustive_category_ids``). What is missing is derived here and written, with what the
evaluation reads, into a copy; the original file is never changed. A copy of a file in which every
class was looked for everywhere says so (``"exhaustive": true``) instead of listing the absences.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_utils
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from iopath.common.file_io import file_lock

from .annotation_file import FEDERATED, read_annotation_file
from .completion import (
    check_bounds,
    check_same_categories,
    complete,
    complete_categories,
    is_complete,
    without_unusable,
)
from .files import write_text

__all__ = ["register_long_tailed"]

logger = logging.getLogger(__name__)


# Part of the name of a completed copy: raise it when its content changes.
_COPY_VERSION = 4

# Images that are looked for when a file is registered.
_SAMPLE = 32


def _tail(image: dict[str, Any], parts: int) -> str | None:
    return "/".join(image["coco_url"].split("/")[-parts:]) if "coco_url" in image else None


# Where an image may lie below the folder of the images, in the order in which it is tried.
_PLACES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "file_name": lambda image: image.get("file_name"),
    "the last two parts of coco_url": functools.partial(_tail, parts=2),
    "the last part of coco_url": functools.partial(_tail, parts=1),
}


def register_long_tailed(
    name: str,
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    train_json: str | os.PathLike | None = None,
    bounds: tuple[int, int] | None = None,
    cache_dir: str | os.PathLike | None = None,
    missing_images: str = "warn",
) -> None:
    """Register a file in LVIS or COCO format, such that AP_r, AP_c and AP_f exist for it.

    The metadata holds ``thing_classes``, ``thing_dataset_id_to_contiguous_id``,
    ``class_image_count`` (as Detectron2 main has it for LVIS), ``class_frequency`` ("r", "c" or
    "f" per class), ``json_file``, ``image_root`` and ``evaluator_type`` "lvis". ``json_file`` is
    the given file where it has all that LVIS's evaluation needs, else a completed copy in
    ``cache_dir``:

    * ``frequency``, ``image_count`` and ``instance_count`` of the classes, see ``train_json`` and
      ``bounds``;
    * without ``neg_category_ids`` the file is taken as exhaustively annotated, as COCO is: every
      class without annotation in an image is a negative of it. The copy is marked so, for
      :mod:`lvis_tde.evaluation`; :func:`~lvis_tde.evaluation.ground_truth.with_negatives` lists
      them for other programs. Regions annotated as a crowd are left out, and the class is listed
      as not exhaustively annotated in that image;
    * ``area``, and annotation ids from 1, since the ``lvis`` package takes a match with id 0 for
      no match.

    Category ids may start at 0 and have gaps. Masks may be polygons or RLEs. Objects whose box
    has no width or height, whose polygons have not three points, or that are not finite are left
    out, with a warning. Registering the same files under the same name again changes nothing.

    For checks before a start the metadata also has ``annotated``, the number of annotations that
    training can use, and ``without_mask`` and ``with_rle``, the id of the first one that has no
    mask, or an RLE; None if there is none.

    Args:
        name: name of the data set.
        json_file: annotations in LVIS or COCO format.
        image_root: folder of the images. Of ``file_name``, the last two parts of ``coco_url`` and
            its last part the first is taken under which images are found; it is logged.
        train_json: the file whose counts define the groups and whose categories define the class
            indices. Give it for every set but train: counts of a val set would define other
            groups.
        bounds: most images of a rare and of a common class; default: ``frequency`` in the file, or
            LVIS's (10, 100).
        cache_dir: folder for the completed copy, default ``~/.cache/lvis_tde``.
        missing_images: what to do if no image is found: "warn", "raise", or "note", which only
            leaves the message in the metadata, as ``images_not_found``; "" there if some are.

    Raises:
        FileNotFoundError: no image is found, under "raise"; lists what was tried.
        ValueError: if the file is not consistent, if its categories are not those of
            ``train_json``, or if ``name`` is taken by another set.
    """
    json_file, root = Path(json_file), os.path.join(os.fspath(image_root), "")
    check_bounds(bounds)
    source = {
        "json_file": os.path.realpath(json_file),
        "train_json": os.path.realpath(train_json) if train_json else "",
        "bounds": list(bounds) if bounds else [],
    }
    if name in DatasetCatalog.list():
        _check_is_same(name, source, root)
        return

    given = read_annotation_file(json_file)
    data = train = without_unusable(given, str(json_file))
    if train_json is not None:
        train = without_unusable(read_annotation_file(train_json))
    categories = complete_categories(train, bounds)
    check_same_categories(data, categories, str(json_file), str(train_json))
    place, images_not_found = _place_of_images(data["images"], root, str(json_file))
    if images_not_found and missing_images == "raise":
        raise FileNotFoundError(images_not_found)
    if images_not_found and missing_images == "warn":
        logger.warning("%s", images_not_found)
    evaluated = json_file
    if data is not given or not is_complete(data, categories):
        evaluated = _completed_copy(data, categories, json_file, train_json, source, cache_dir)

    id_map = {category["id"]: index for index, category in enumerate(categories)}
    DatasetCatalog.register(name, functools.partial(_load, str(json_file), root, id_map, place))
    MetadataCatalog.get(name).set(
        json_file=str(evaluated),
        image_root=root,
        evaluator_type="lvis",
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id=id_map,
        class_image_count=[{k: c[k] for k in ("id", "image_count")} for c in categories],
        class_frequency=[category["frequency"] for category in categories],
        source=source,
        images_not_found=images_not_found,
        **_for_checks(data),
    )


def _check_is_same(name: str, source: dict[str, Any], root: str) -> None:
    known = MetadataCatalog.get(name)
    given = {**source, "image_root": os.path.realpath(root)}
    there = {**known.get("source", {}), "image_root": os.path.realpath(known.get("image_root", ""))}
    other = [key for key in given if given[key] != there.get(key)]
    if other:
        raise ValueError(
            f"a data set {name!r} is registered already with {other[0]} "
            f"{there.get(other[0])!r}, not {given[other[0]]!r}: choose another name"
        )


def _for_checks(data: dict[str, Any]) -> dict[str, Any]:
    """What the metadata say of the annotations that training takes."""
    taken = [a for a in data["annotations"] if not a.get("iscrowd")]
    masks = ((a["id"], a.get("segmentation")) for a in taken)
    kinds = {"without_mask": None, "with_rle": None}
    for number, mask in masks:
        kind = "without_mask" if not mask else "with_rle" if isinstance(mask, dict) else ""
        if kind and kinds[kind] is None:
            kinds[kind] = number
    return {"annotated": len(taken), **kinds}


def _place_of_images(
    images: Sequence[dict[str, Any]], root: str, json_file: str
) -> tuple[str, str]:
    """The first of ``_PLACES`` under which the most of a sample of the images are there.

    Returns:
        Its name; and words on what was tried if none is there, else "".
    """
    sample = images[:: max(1, len(images) // _SAMPLE)]
    found = {}
    for name, place in _PLACES.items():
        paths = [os.path.join(root, path) for path in map(place, sample) if path]
        found[name] = sum(map(os.path.isfile, paths))
    best = max(found, key=found.__getitem__)
    if found[best]:
        example = os.path.join(root, _PLACES[best](sample[0]) or "")
        logger.info("Images of %s: by %s, such as %s.", json_file, best, example)
        return best, ""
    usual = "the last two parts of coco_url"
    if not all("coco_url" in image and FEDERATED[0] in image for image in images):
        usual = "file_name" if all("file_name" in image for image in images) else usual
    message = ""
    if sample:
        tried = [os.path.join(root, path) for p in _PLACES.values() if (path := p(sample[0]))]
        message = (
            f"No image of {json_file} was found. Of image {sample[0]['id']!r} these were tried: "
            f"{', '.join(dict.fromkeys(tried))}. Give the folder that file_name or coco_url "
            "continue."
        )
    return usual, message


def _load(json_file: str, image_root: str, id_map: dict[int, int], place: str) -> list[dict]:
    """Records in Detectron2's format, as its loaders of COCO and LVIS give them."""
    data = without_unusable(read_annotation_file(json_file))
    objects: dict[Any, list[dict]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        objects[annotation["image_id"]].append(_object(annotation, id_map))
    records = []
    for image in sorted(data["images"], key=lambda one: one["id"]):
        path = _PLACES[place](image) or next(filter(None, (p(image) for p in _PLACES.values())))
        record = {
            "file_name": os.path.join(image_root, path),
            "height": int(image["height"]),
            "width": int(image["width"]),
            "image_id": image["id"],
            "annotations": objects[image["id"]],
        }
        record.update((key, image[key]) for key in FEDERATED if key in image)
        records.append(record)
    return records


def _object(annotation: dict[str, Any], id_map: dict[int, int]) -> dict[str, Any]:
    keys = ("iscrowd", "bbox", "keypoints")
    record = {key: annotation[key] for key in keys if annotation.get(key) is not None}
    record.update(category_id=id_map[annotation["category_id"]], bbox_mode=BoxMode.XYWH_ABS)
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and mask:
        if isinstance(mask["counts"], list):
            mask = mask_utils.frPyObjects(mask, *mask["size"])
    if mask:
        record["segmentation"] = mask
    return record


def _completed_copy(data, categories, json_file: Path, train_json, source, cache_dir) -> Path:
    folder = Path(cache_dir if cache_dir is not None else "~/.cache/lvis_tde").expanduser()
    # The name changes with everything the content depends on, so an existing copy is up to date.
    key = [_COPY_VERSION, source]
    for path in filter(None, (json_file, train_json)):
        stat = os.stat(path)
        key.append([os.path.realpath(path), stat.st_size, stat.st_mtime_ns])
    digest = hashlib.sha256(json.dumps(key).encode("utf-8")).hexdigest()[:16]
    target = folder / f"{json_file.stem}-{digest}.json"
    # The first process of a machine writes it, the others wait for it.
    with contextlib.nullcontext() if target.is_file() else file_lock(str(target)):
        if not target.is_file():
            write_text(target, json.dumps(complete(data, categories), separators=(",", ":")))
            logger.info("Wrote %s, %s completed for LVIS's evaluation", target, json_file)
    return target
