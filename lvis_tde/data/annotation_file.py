"""Annotation files in LVIS or COCO format: read, with a clear message for each fault."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["EXHAUSTIVE", "FEDERATED", "read_annotation_file"]

# What LVIS's images have beyond COCO's: classes known to be absent, classes annotated in part.
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
# Key of a file in which every class was looked for in every image, so that no image needs to list
# the classes that it is known not to show.
EXHAUSTIVE = "exhaustive"


def read_annotation_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check an annotation file.

    Args:
        path: of a file in LVIS or COCO format.

    Returns:
        Its content.

    Raises:
        ValueError: it is none, or not consistent; the message names the first fault.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"annotation file {str(path)!r} does not exist")
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a JSON file: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise ValueError(f"{str(path)!r} has no list {key!r}: expected LVIS or COCO format")
        _check_records(data[key], f"{str(path)!r}, {key}")
    if not data["categories"]:
        raise ValueError(f"{str(path)!r} has no categories")
    image_ids = {image["id"] for image in data["images"]}
    category_ids = {category["id"] for category in data["categories"]}
    for annotation in data["annotations"]:
        for key, known in (("image_id", image_ids), ("category_id", category_ids)):
            if annotation.get(key) not in known:
                value = annotation.get(key)
                raise ValueError(
                    f"{str(path)!r}: annotation {annotation['id']} has {key}={value!r}, "
                    "which the file does not list"
                )
        if len(annotation.get("bbox", ())) != 4:
            box = annotation.get("bbox")
            raise ValueError(
                f"{str(path)!r}: annotation {annotation['id']} has bbox={box!r}, "
                "expected [x, y, width, height]"
            )
    for image in data["images"]:
        missing = [key for key in ("height", "width") if key not in image]
        if "file_name" not in image and "coco_url" not in image:
            missing.append("file_name")
        if missing:
            raise ValueError(f"{str(path)!r}: image {image['id']} lacks {missing}")
    federated = [image["id"] for image in data["images"] if FEDERATED[0] in image]
    if federated and len(federated) != len(data["images"]):
        missing = next(i["id"] for i in data["images"] if FEDERATED[0] not in i)
        raise ValueError(
            f"{str(path)!r}: image {missing} has no neg_category_ids while others have: "
            "give it to all images (federated annotation) or to none (exhaustive annotation)"
        )
    return data


def _check_records(records: Sequence[dict[str, Any]], where: str) -> None:
    seen = set()
    for record in records:
        if "id" not in record:
            raise ValueError(f"{where}: a record has no id: {str(record)[:200]}")
        if record["id"] in seen:
            raise ValueError(f"{where}: id {record['id']!r} occurs twice")
        seen.add(record["id"])
