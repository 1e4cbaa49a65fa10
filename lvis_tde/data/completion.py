"""What LVIS's evaluation needs and COCO files lack: frequency groups, lists of classes, areas."""

from __future__ import annotations

import collections
import logging
from typing import Any

import pycocotools.mask as mask_utils

from .annotation_file import EXHAUSTIVE, FEDERATED
from .frequency import LVIS_BOUNDS, frequency_group
from .masks import LARGEST, usable_polygons, with_integers

__all__ = [
    "as_lvis_counts",
    "check_bounds",
    "check_same_categories",
    "complete",
    "complete_categories",
    "is_complete",
    "without_unusable",
]

logger = logging.getLogger(__name__)

# Objects that are larger LVIS's evaluation does not count, in any of its ranges of areas.
_LARGEST_AREA = 1e10


def check_bounds(bounds: tuple[int, int] | None) -> None:
    """
    Raises:
        ValueError: if bounds of rare and common classes are given and out of order.
    """
    if bounds is not None and not 0 <= bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be 0 <= rare < common, got {tuple(bounds)}")


def without_unusable(data: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Leaves out what neither training nor evaluation can use.

    These are objects whose box has no width or height or is not finite, or that have polygons and
    none of them of three finite points. An image that has one is marked as not completely annotated
    for its class, so that finding it is no mistake. A mask or a box that covers no pixel stays, as
    in Detectron2's loaders, and numbers of RLEs become integers.

    Args:
        data: content of a consistent file; it stays as it is.
        where: the file, for a warning that says how many and names the first; "" for none.

    Returns:
        The same object if there is nothing to leave out, else a copy.
    """
    kept, lost, cut = [], [], False
    for annotation in data["annotations"]:
        mask = annotation.get("segmentation")
        polygons = usable_polygons(mask) if mask and isinstance(mask, list) else with_integers(mask)
        fault = _fault(annotation["bbox"]) or ("" if polygons or not mask else "no usable polygon")
        if fault:
            lost.append((annotation, fault))
        elif polygons is not mask and (isinstance(mask, dict) or len(polygons) < len(mask)):
            kept.append({**annotation, "segmentation": polygons})
            cut = True
        else:
            kept.append(annotation)
    if lost and where:
        logger.warning(
            "%s: %d of %d annotations are left out, because their boxes or polygons are empty or "
            "not finite; the first is annotation %r, which has %s.",
            where,
            len(lost),
            len(data["annotations"]),
            lost[0][0]["id"],
            lost[0][1],
        )
    if not (lost or cut):
        return data
    excused = collections.defaultdict(set)
    for annotation, _ in lost:
        excused[annotation["image_id"]].add(annotation["category_id"])
    images = [
        (
            {**i, FEDERATED[1]: [*i.get(FEDERATED[1], ()), *excused[i["id"]]]}
            if i["id"] in excused
            else i
        )
        for i in data["images"]
    ]
    return {**data, "images": images, "annotations": kept}


def _fault(box: list[float]) -> str:
    x, y, width, height = box
    if 0 < width <= LARGEST and 0 < height <= LARGEST and -LARGEST <= x <= LARGEST:
        return "" if -LARGEST <= y <= LARGEST else f"bbox={box}"
    return f"bbox={box}"


def complete_categories(
    data: dict[str, Any], bounds: tuple[int, int] | None = None
) -> list[dict[str, Any]]:
    """Categories by ascending id, each with a name, counts and a frequency.

    Args:
        data: content of the file whose images are counted, where its categories have no counts.
        bounds: most images of a rare and of a common class; default: ``frequency`` in the file, or
            LVIS's (10, 100).

    Returns:
        Copies.
    """
    images: dict[Any, set[Any]] = collections.defaultdict(set)
    instances: collections.Counter[Any] = collections.Counter()
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


def check_same_categories(
    data: dict[str, Any], categories: list[dict[str, Any]], where: str, train: str
) -> None:
    """
    Raises:
        ValueError: if a category of ``data``, the file ``where``, is not that of the file
            ``train``, whose completed ones are given.
    """
    names = {category["id"]: category["name"] for category in categories}
    for category in data["categories"]:
        here, there = category.get("name", str(category["id"])), names.get(category["id"])
        if here != there:
            raise ValueError(
                f"category {category['id']} is {here!r} in {where!r} but {there!r} in "
                f"train_json {train!r}: both files must use the same ids"
            )


def is_complete(data: dict[str, Any], categories: list[dict[str, Any]]) -> bool:
    """Whether LVIS's evaluation can take a file as it is."""
    lists = (FEDERATED[1],) if data.get(EXHAUSTIVE) is True else FEDERATED
    return (
        all(key in image for image in data["images"] for key in lists)
        and as_lvis_counts(data["annotations"])
        and sorted(data["categories"], key=lambda c: c["id"]) == categories
    )


def as_lvis_counts(annotations: list[dict[str, Any]]) -> bool:
    """Whether ``lvis``, which does not know crowds, counts all of these objects as they are."""
    return all(_has_area(a) and a["id"] != 0 and not a.get("iscrowd") for a in annotations)


def _has_area(annotation: dict[str, Any]) -> bool:
    # Any other area would leave the object out without a word.
    area = annotation.get("area")
    return area is not None and 0 <= area <= _LARGEST_AREA


def complete(data: dict[str, Any], categories: list[dict[str, Any]]) -> dict[str, Any]:
    """What LVIS's evaluation needs of a file, see :mod:`lvis_tde.data.long_tailed`.

    Args:
        data: content of a consistent file, from :func:`without_unusable`; it stays as it is.
        categories: from :func:`complete_categories`.

    Returns:
        Content of another file.
    """
    excused = collections.defaultdict(set)
    for annotation in data["annotations"]:
        if annotation.get("iscrowd"):
            excused[annotation["image_id"]].add(annotation["category_id"])
    keep = ("id", "width", "height", "file_name", "coco_url", FEDERATED[0])
    images = []
    for image in data["images"]:
        incomplete = set(image.get(FEDERATED[1], ())) | excused[image["id"]]
        kept = {key: image[key] for key in keep if key in image}
        known = [category["id"] for category in categories if category["id"] in incomplete]
        images.append({**kept, FEDERATED[1]: known})
    sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in data["images"]}
    # lvis takes a match with id 0 for no match.
    numbers = [a["id"] for a in data["annotations"] if not isinstance(a["id"], str)]
    first_id = max(0, 1 - min(numbers, default=1))
    annotations = []
    for annotation in data["annotations"]:
        if annotation.get("iscrowd"):
            continue
        fields = ("image_id", "category_id", "bbox", "segmentation", "ignore")
        record = {key: annotation[key] for key in fields if key in annotation}
        record["id"] = annotation["id"] + first_id if numbers else annotation["id"]
        record["area"] = annotation.get("area")
        if not _has_area(annotation):
            area = _area(record, *sizes[annotation["image_id"]])
            record["area"] = min(area, _LARGEST_AREA)
        annotations.append(record)
    described = data["info"] if isinstance(data.get("info"), dict) else {}
    return {
        "info": {"description": "Completed for LVIS's evaluation by lvis_tde", **described},
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
