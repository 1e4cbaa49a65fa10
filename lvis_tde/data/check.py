"""What is there and what is missing of a data set under ``DETECTRON2_DATASETS``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class DatasetSpec(NamedTuple):
    """The files of a data set, by paths relative to the root.

    ``annotations`` gives the number of images per JSON file and ``image_folders`` the number of
    files per folder; None where any number is right.
    """

    annotations: Mapping[str, int | None]
    num_categories: int
    image_folders: Mapping[str, int | None]


class Finding(NamedTuple):
    """One checked file or folder: whether it is as it should be, and what was found."""

    ok: bool
    path: Path
    message: str


_COCO_2017 = {"coco/train2017": 118287, "coco/val2017": 5000}
DATASETS: dict[str, DatasetSpec] = {
    "lvis_v1": DatasetSpec(
        {"lvis/lvis_v1_train.json": 100170, "lvis/lvis_v1_val.json": 19809}, 1203, _COCO_2017
    ),
    "lvis_v0.5": DatasetSpec(
        {"lvis/lvis_v0.5_train.json": None, "lvis/lvis_v0.5_val.json": None}, 1230, _COCO_2017
    ),
}


def check_dataset(
    root: str | os.PathLike, spec: DatasetSpec, *, read_json: bool = True
) -> list[Finding]:
    """Check the folders and annotation files of a data set.

    Args:
        root: folder that ``DETECTRON2_DATASETS`` names.
        spec: what to expect, such as ``DATASETS["lvis_v1"]``.
        read_json: read the annotation files, which takes a minute and two GB of memory for LVIS v1;
            otherwise only see that they exist.

    Returns:
        A finding per image folder and annotation file. The set is complete if all are ok.
    """
    root = Path(root)
    findings, files = [], {}
    for relative, expected in spec.image_folders.items():
        folder = root / relative
        if not folder.is_dir():
            findings.append(Finding(False, folder, "missing folder"))
            continue
        files[folder.name] = {name for name in os.listdir(folder) if name.endswith(".jpg")}
        found = len(files[folder.name])
        ok = expected is None or found == expected
        findings.append(Finding(ok, folder, f"{found} images" + _instead(ok, expected)))
    for relative, expected in spec.annotations.items():
        path = root / relative
        if not path.is_file():
            findings.append(Finding(False, path, "missing file"))
        elif not read_json:
            size = path.stat().st_size
            findings.append(Finding(size > 0, path, f"{size / 1e6:.1f} MB, not read"))
        else:
            findings.append(_check_json(path, expected, spec.num_categories, files))
    return findings


def _instead(ok: bool, expected: int | None) -> str:
    return "" if ok else f" instead of {expected}"


def _without_annotation(record: dict[str, Any]) -> dict[str, Any] | None:
    # As objects all the outlines of LVIS v1 take 5 GB, and here they are only counted.
    return None if "segmentation" in record else record


def _check_json(
    path: Path, num_images: int | None, num_categories: int, files: Mapping[str, set[str]]
) -> Finding:
    try:
        with open(path, encoding="utf-8-sig") as file:
            data: Any = json.load(file, object_hook=_without_annotation)
        images = [image["coco_url"].split("/")[-2:] for image in data["images"]]
        categories = [category["frequency"] for category in data["categories"]]
        annotations = len(data["annotations"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"not a complete LVIS file ({type(error).__name__}: {error}): download it again"
        return Finding(False, path, message)
    images_ok = num_images is None or len(images) == num_images
    categories_ok = len(categories) == num_categories
    absent = [f"{folder}/{name}" for folder, name in images if name not in files.get(folder, ())]
    message = (
        f"{len(images)} images{_instead(images_ok, num_images)}, "
        f"{len(categories)} categories{_instead(categories_ok, num_categories)}, "
        f"{annotations} annotations"
    )
    if absent:
        message += f"; {len(absent)} of its images are not on disk, such as {absent[0]}"
    return Finding(images_ok and categories_ok and not absent, path, message)
