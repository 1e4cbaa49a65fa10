"""Any LVIS- or COCO-format file as a long-tailed data set with rare, common and frequent classes.

LVIS's evaluation needs more than COCO files have: a frequency group per class, and per image the
classes known to be absent (``neg_category_ids``) and those not completely annotated
(``not_exhaustive_category_ids``). What is missing is derived here and written, with what the
evaluation reads, into a copy; the original file is never changed. A copy of a file in which every
class was looked for everywhere says so (``"exhaustive": true``) instead of listing the absences.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_utils
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.lvis import load_lvis_json
from iopath.common.file_io import file_lock

from .annotation_file import EXHAUSTIVE, FEDERATED, read_annotation_file
from .files import write_text
from .frequency import LVIS_BOUNDS, frequency_group

logger = logging.getLogger(__name__)


# Part of the name of a completed copy: raise it when its content changes.
_COPY_VERSION = 2


def register_long_tailed(
    name: str,
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    train_json: str | os.PathLike | None = None,
    bounds: tuple[int, int] | None = None,
    cache_dir: str | os.PathLike | None = None,
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

    Category ids may start at 0 and have gaps. Registering the same files under the same name again
    changes nothing.

    Args:
        name: name of the data set.
        json_file: annotations in LVIS or COCO format.
        image_root: folder of the images; ``file_name`` is relative to it, or in an LVIS file the
            last two parts of ``coco_url``.
        train_json: the file whose counts define the groups and whose categories define the class
            indices. Give it for every set but train: counts of a val set would define other
            groups.
        bounds: most images of a rare and of a common class; default: ``frequency`` in the file, or
            LVIS's (10, 100).
        cache_dir: folder for the completed copy, default ``~/.cache/lvis_tde``.

    Raises:
        ValueError: if the file is not consistent, if its categories are not those of
            ``train_json``, or if ``name`` is taken by another set.
    """
    json_file, root = Path(json_file), os.path.join(os.fspath(image_root), "")
    if bounds is not None and not 0 <= bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be 0 <= rare < common, got {tuple(bounds)}")
    source = {
        "json_file": str(json_file),
        "train_json": str(train_json) if train_json else "",
        "bounds": list(bounds) if bounds else [],
    }
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name)
        if known.get("source") == source and known.get("image_root") == root:
            return
        raise ValueError(f"a data set {name!r} is registered already: choose another name")

    data = read_annotation_file(json_file)
    train = data if train_json is None else read_annotation_file(train_json)
    categories = _complete_categories(train, bounds)
    _check_same_categories(data, categories, json_file, train_json)
    evaluated = json_file
    if not _is_complete(data, categories):
        evaluated = _completed_copy(data, categories, json_file, train_json, source, cache_dir)

    id_map = {category["id"]: index for index, category in enumerate(categories)}
    from_url = all("coco_url" in image and FEDERATED[0] in image for image in data["images"])
    DatasetCatalog.register(name, functools.partial(_load, str(json_file), root, id_map, from_url))
    MetadataCatalog.get(name).set(
        json_file=str(evaluated),
        image_root=root,
        evaluator_type="lvis",
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id=id_map,
        class_image_count=[{k: c[k] for k in ("id", "image_count")} for c in categories],
        class_frequency=[category["frequency"] for category in categories],
        source=source,
    )


def _load(json_file: str, image_root: str, id_map: dict[int, int], from_url: bool) -> list[dict]:
    # Without a data set name neither loader touches the metadata; LVIS's subtracts 1 from the ids.
    load, shift = (load_lvis_json, 1) if from_url else (load_coco_json, 0)
    records = load(json_file, image_root)
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = id_map[annotation["category_id"] + shift]
    return records


def _complete_categories(
    data: dict[str, Any], bounds: tuple[int, int] | None
) -> list[dict[str, Any]]:
    images: dict[int, set[int]] = collections.defaultdict(set)
    instances: collections.Counter[int] = collections.Counter()
    for annotation in data["annotations"]:
        if not annotation.get("iscrowd"):
            images[annotation["category_id"]].add(annotation["image_id"])
            instances[annotation["category_id"]] += 1
    categories = []
    for category in sorted(data["categories"], key=lambda c: c["id"]):
        category = dict(category)
        category.setdefault("name", str(category["id"]))
        category.setdefault("image_count", len(images[category["id"]]))
        category.setdefault("instance_count", instances[category["id"]])
        if bounds is not None or category.get("frequency") not in ("r", "c", "f"):
            category["frequency"] = frequency_group(
                category["image_count"], LVIS_BOUNDS if bounds is None else bounds
            )
        categories.append(category)
    return categories


def _check_same_categories(data, categories, json_file, train_json) -> None:
    names = {category["id"]: category["name"] for category in categories}
    for category in data["categories"]:
        here, there = category.get("name", str(category["id"])), names.get(category["id"])
        if here != there:
            raise ValueError(
                f"category {category['id']} is {here!r} in {str(json_file)!r} but {there!r} in "
                f"train_json {str(train_json)!r}: both files must use the same ids"
            )


def _is_complete(data: dict[str, Any], categories: list[dict[str, Any]]) -> bool:
    lists = (FEDERATED[1],) if data.get(EXHAUSTIVE) is True else FEDERATED
    return (
        all(key in image for image in data["images"] for key in lists)
        and all("area" in a and a["id"] != 0 and not a.get("iscrowd") for a in data["annotations"])
        and sorted(data["categories"], key=lambda c: c["id"]) == categories
    )


def _complete(data: dict[str, Any], categories: list[dict[str, Any]]) -> dict[str, Any]:
    """What LVIS's evaluation needs of the file."""
    crowded = collections.defaultdict(set)
    for annotation in data["annotations"]:
        if annotation.get("iscrowd"):
            crowded[annotation["image_id"]].add(annotation["category_id"])
    keep = ("id", "width", "height", "file_name", "coco_url", FEDERATED[0])
    images = []
    for image in data["images"]:
        incomplete = set(image.get(FEDERATED[1], ())) | crowded[image["id"]]
        kept = {key: image[key] for key in keep if key in image}
        images.append({**kept, FEDERATED[1]: sorted(incomplete)})
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in data["images"]}
    first_id = 1 - min((a["id"] for a in data["annotations"]), default=1)
    annotations = []
    for annotation in data["annotations"]:
        if annotation.get("iscrowd"):
            continue
        fields = ("image_id", "category_id", "bbox", "segmentation")
        record = {key: annotation[key] for key in fields if key in annotation}
        record["id"] = annotation["id"] + max(0, first_id)
        record["area"] = annotation.get("area")
        if record["area"] is None:
            record["area"] = _area(annotation, *sizes[annotation["image_id"]])
        annotations.append(record)
    info = {"description": "Completed for LVIS's evaluation by lvis_tde", **data.get("info", {})}
    return {
        "info": info,
        EXHAUSTIVE: data.get(EXHAUSTIVE) is True or not any(FEDERATED[0] in i for i in images),
        "licenses": data.get("licenses", []),
        "categories": [{"synonyms": [c["name"]], **c} for c in categories],
        "images": images,
        "annotations": annotations,
    }


def _area(annotation: dict[str, Any], height: int, width: int) -> float:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return float(mask_utils.area(segmentation))
    rles = mask_utils.frPyObjects(segmentation, height, width)
    return float(mask_utils.area(mask_utils.merge(rles) if isinstance(rles, list) else rles))


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
            write_text(target, json.dumps(_complete(data, categories), separators=(",", ":")))
            logger.info("Wrote %s, %s completed for LVIS's evaluation", target, json_file)
    return target
