"""What is in a long-tailed set: figures from its annotation file alone."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lvis_tde.data.frequency import frequency_group

__all__ = ["LVIS_V1", "families", "groups", "image_counts", "percent", "set_statistics"]

# Images and boxes of LVIS v1's training file, as https://www.lvisdataset.org/dataset has them.
LVIS_V1 = {"images": 100_170, "boxes": 1_270_141}
# COCO's bounds of small and large objects, in square pixels.
COCO_AREAS = (32**2, 96**2)
# A box that ends so near the border is taken as cut off by it, in pixels.
BORDER = 1.0
# Part of a box that other boxes of the image must share for it to count as overlapped.
OVERLAP = 0.1


def percent(part: float, whole: float) -> float | None:
    """``part`` of ``whole`` in percent, None of nothing."""
    return 100 * part / whole if whole else None


def image_counts(data: Mapping[str, Any]) -> dict[Any, int]:
    """Category id to the number of images that show it, counted in the annotations."""
    images = defaultdict(set)
    for annotation in data["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
    return {category["id"]: len(images[category["id"]]) for category in data["categories"]}


def groups(data: Mapping[str, Any]) -> dict[Any, str]:
    """Category id to "r", "c" or "f": as the file has it, else by the images of the file."""
    counts = image_counts(data)
    return {c["id"]: c.get("frequency") or frequency_group(counts[c["id"]])
            for c in data["categories"]}  # fmt: skip


def families(data: Mapping[str, Any]) -> dict[Any, str]:
    """Category id to its family, where its definition names one, as those of glyph sets do."""
    found = {c["id"]: re.search(r"of the family (\w+)$", c.get("def", ""))
             for c in data["categories"]}  # fmt: skip
    return {key: match[1] for key, match in found.items() if match}


def set_statistics(data: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Figures of a set.

    Args:
        data: content of an annotation file in LVIS or COCO format.

    Returns:
        Titles of tables to tables: name of a figure to its value, None where the file cannot tell.
        Shares are in percent.
    """
    labels, frequency = data["annotations"], groups(data)
    pairs = Counter((a["image_id"], a["category_id"]) for a in labels)
    classes: dict[Any, list[Any]] = {image["id"]: [] for image in data["images"]}
    for image, category in pairs:
        classes[image].append(category)
    objects = Counter(a["image_id"] for a in labels)
    return {
        "Classes": _classes(data, frequency),
        "Images": {
            "images": len(data["images"]),
            "boxes": len(labels),
            **_spread("boxes per image", [objects[i] for i in classes]),
            **_spread("classes per image", [len(c) for c in classes.values()]),
            "boxes per class and image, mean": _mean(pairs.values()),
            "of them with several, %": percent(sum(n > 1 for n in pairs.values()), len(pairs)),
            **_federated(data["images"], len(pairs)),
        },
        "Boxes": _boxes(data),
        "Together in an image": _together(classes.values(), frequency),
    }


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.mean(values) if values else None


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    tenths = np.percentile(values, (10, 50, 90)).tolist() if len(values) else [None] * 3
    return {
        f"{name}, mean": _mean(values),
        **{f"{name}, {which}": v for which, v in zip(("10 %", "median", "90 %"), tenths)},
    }


def _classes(data, frequency) -> dict[str, float | None]:
    counts = Counter(frequency.values())
    images = image_counts(data)
    return {
        "classes": len(frequency),
        **{
            f"{name}, %": percent(counts[group], len(frequency))
            for group, name in (("r", "rare"), ("c", "common"), ("f", "frequent"))
        },
        "images of the most frequent class": max(images.values(), default=None),
        "images of the median class": statistics.median(images.values()) if images else None,
        "images of the rarest class": min(images.values(), default=None),
        "families": len(set(families(data).values())) or None,
    }


def _federated(images: Sequence[Mapping[str, Any]], pairs: int) -> dict[str, float | None]:
    listed = {
        key: [len(image[key]) for image in images if key in image]
        for key in ("neg_category_ids", "not_exhaustive_category_ids")
    }
    incomplete = listed["not_exhaustive_category_ids"]
    return {
        "classes listed as absent per image, mean": _mean(listed["neg_category_ids"]),
        "classes not annotated exhaustively, % of class and image": (
            percent(sum(incomplete), pairs) if incomplete else None
        ),
    }


def _boxes(data) -> dict[str, float | None]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    boxes = np.array([a["bbox"] for a in data["annotations"]], dtype=np.float64).reshape(-1, 4)
    if not len(boxes):
        return {}
    frames = np.array([sizes[a["image_id"]] for a in data["annotations"]], dtype=np.float64)
    areas = np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in data["annotations"]])
    relative = np.sqrt(boxes[:, 2] * boxes[:, 3] / frames.prod(1))
    small, large = areas < COCO_AREAS[0], areas >= COCO_AREAS[1]
    cut = (boxes[:, :2] <= BORDER) | (boxes[:, :2] + boxes[:, 2:] >= frames - BORDER)
    low, middle, high = np.percentile(relative, (10, 50, 90)).tolist()
    return {
        "sqrt(box area / image area), 10 %": low,
        "sqrt(box area / image area), median": middle,
        "sqrt(box area / image area), 90 %": high,
        "small (area below 32 x 32 px), %": 100 * float(small.mean()),
        "medium, %": 100 * float((~small & ~large).mean()),
        "large (area from 96 x 96 px), %": 100 * float(large.mean()),
        f"box ends within {BORDER:g} px of the border, %": 100 * float(cut.any(1).mean()),
        f"other boxes cover {OVERLAP:.0%} of the box, %": 100 * _overlapped(data, boxes),
    }


def _overlapped(data, boxes: np.ndarray) -> float:
    """Share of boxes of which one other box of the image covers a tenth or more."""
    rows = defaultdict(list)
    for row, annotation in enumerate(data["annotations"]):
        rows[annotation["image_id"]].append(row)
    number = 0
    for some in rows.values():
        corners = np.concatenate([boxes[some, :2], boxes[some, :2] + boxes[some, 2:]], axis=1)
        low = np.maximum(corners[:, None, :2], corners[None, :, :2])
        high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
        shared = np.clip(high - low, 0, None).prod(2)
        own = np.maximum(shared.diagonal().copy(), 1e-9)
        np.fill_diagonal(shared, 0)
        number += int((shared.max(1) >= OVERLAP * own).sum())
    return number / len(boxes)


def _together(contents: Iterable[Sequence[Any]], frequency) -> dict[str, float | None]:
    """Of the images of the classes of a group, how many show a class of another group."""
    names = {"r": "rare", "c": "common", "f": "frequent"}
    seen, beside = Counter(), Counter()
    for classes in contents:
        here = Counter(frequency[c] for c in classes)
        for group, number in here.items():
            seen[group] += number
            for other in names:
                if here[other] - (other == group) > 0:
                    beside[group, other] += number
    return {
        f"images of a {names[group]} class that also show a {names[other]} one, %": percent(
            beside[group, other], seen[group]
        )
        for group in names
        for other in names
        if other != group
    }
