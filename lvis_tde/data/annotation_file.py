"""Annotation files in LVIS or COCO format: read, with a clear message for each fault."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .masks import segmentation_fault, type_fault

__all__ = ["EXHAUSTIVE", "FEDERATED", "check_types", "read_annotation_file"]

# What LVIS's images have beyond COCO's: classes known to be absent, classes annotated in part.
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
# Key of a file in which every class was looked for in every image, so that no image needs to list
# the classes that it is known not to show.
EXHAUSTIVE = "exhaustive"

_KEYS = {"images": "image", "annotations": "annotation", "categories": "category"}
_MOST_SHOWN = 200


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
        with open(path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not a JSON file: {error}") from error
    where = repr(str(path))
    check_types(data, where)
    _check_consistent(data, where)
    return data


def check_types(data: Any, where: str) -> None:
    """Refuse what is not of the format, whatever of the optional keys is there.

    Args:
        data: content of a JSON file.
        where: the file, for the message.

    Raises:
        ValueError: naming the first record and key.
    """
    if not isinstance(data, dict):
        hint = ""
        if isinstance(data, list) and data and isinstance(data[0], dict) and "score" in data[0]:
            hint = " (a list of detections is a result file, which comes after the annotations)"
        raise ValueError(f"{where} has no list 'images': expected LVIS or COCO format{hint}")
    for key, name in _KEYS.items():
        if not isinstance(data.get(key), list):
            raise ValueError(f"{where} has no list {key!r}: expected LVIS or COCO format")
        _check_ids(data[key], f"{where}, {key}")
        for record in data[key]:
            for field, valid, expected in _TYPES[key]:
                if field in record and not valid(record[field]):
                    raise ValueError(
                        f"{where}: {name} {record['id']!r} has {field}={_short(record[field])}, "
                        f"expected {expected}"
                    )
    for annotation in data["annotations"]:
        fault = type_fault(annotation.get("segmentation"))
        if fault:
            raise ValueError(f"{where}: annotation {annotation['id']!r} has {fault}")


def _check_consistent(data: dict[str, Any], where: str) -> None:
    for key in _KEYS:
        seen = set()
        for record in data[key]:
            if record["id"] in seen:
                raise ValueError(f"{where}, {key}: id {record['id']!r} occurs twice")
            seen.add(record["id"])
    if not data["categories"]:
        raise ValueError(f"{where} has no categories")
    images = {image["id"]: image for image in data["images"]}
    category_ids = {category["id"] for category in data["categories"]}
    for image in data["images"]:
        missing = [key for key in ("height", "width") if key not in image]
        if not (image.get("file_name") or image.get("coco_url")):
            missing.append("file_name")
        if missing:
            raise ValueError(f"{where}: image {image['id']!r} lacks {missing}")
    for annotation in data["annotations"]:
        for key, known in (("image_id", images), ("category_id", category_ids)):
            if annotation.get(key) not in known:
                raise ValueError(
                    f"{where}: annotation {annotation['id']!r} has {key}={annotation.get(key)!r}, "
                    "which the file does not list"
                )
        if "bbox" not in annotation:
            raise ValueError(
                f"{where}: annotation {annotation['id']!r} has bbox=None, expected {_BOX}"
            )
        if isinstance(annotation.get("segmentation"), dict) and annotation["segmentation"]:
            image = images[annotation["image_id"]]
            fault = segmentation_fault(annotation["segmentation"], image["height"], image["width"])
            if fault:
                raise ValueError(f"{where}: annotation {annotation['id']!r} has {fault}")
    federated = [image["id"] for image in data["images"] if FEDERATED[0] in image]
    if federated and len(federated) != len(data["images"]):
        missing = next(i["id"] for i in data["images"] if FEDERATED[0] not in i)
        raise ValueError(
            f"{where}: image {missing!r} has no neg_category_ids while others have: "
            "give it to all images (federated annotation) or to none (exhaustive annotation)"
        )


def _check_ids(records: Sequence[Any], where: str) -> None:
    first = None
    for record in records:
        if not isinstance(record, dict) or "id" not in record:
            raise ValueError(f"{where}: a record has no id: {_short(record)}")
        if not _is_id(record["id"]):
            raise ValueError(f"{where}: id {_short(record['id'])} is neither a number nor a word")
        if first is None:
            first = record["id"]
        if isinstance(first, str) != isinstance(record["id"], str):
            raise ValueError(f"{where}: id {record['id']!r} is not of one kind with {first!r}")


def _short(value: Any) -> str:
    return repr(value)[:_MOST_SHOWN]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_id(value: Any) -> bool:
    # Exports of tables hold whole numbers with a point. A NaN is equal to no id, not even itself.
    return type(value) in (int, str) or (type(value) is float and value == value)


def _is_length(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1e6 and value == int(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1e15 and value == int(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_id, value))


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


_BOX = "[x, y, width, height]"
# Of the records of each list: key, whether a value is right, what is expected.
_TYPES: dict[str, list[tuple[str, Callable[[Any], bool], str]]] = {
    "images": [
        ("height", _is_length, "a number of pixels"),
        ("width", _is_length, "a number of pixels"),
        ("file_name", _is_word, "a path"),
        ("coco_url", _is_word, "an address"),
        *((key, _are_ids, "a list of category ids") for key in FEDERATED),
    ],
    "annotations": [
        ("image_id", _is_id, "the id of an image"),
        ("category_id", _is_id, "the id of a category"),
        ("bbox", _is_box, _BOX),
        ("area", lambda value: value is None or _is_number(value), "a number of pixels"),
        ("iscrowd", lambda value: value in (0, 1, None), "0 or 1"),
        ("ignore", lambda value: value in (0, 1), "0 or 1"),
    ],
    "categories": [
        ("name", _is_word, "a word"),
        ("image_count", _is_count, "a number of images"),
    ],
}
