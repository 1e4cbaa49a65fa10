"""The records of generated sets in LVIS v1 format: images, annotations, categories, files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..frequency import frequency_group
from .outlines import polygon_area

__all__ = [
    "SPLITS",
    "annotation_record",
    "apportion",
    "federate",
    "image_record",
    "write_annotations",
]

SPLITS = ("train", "calib", "val")
Contents = Mapping[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]


def apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers >= 1 that sum to ``total`` and follow ``weights`` (largest remainders)."""
    share = weights / weights.sum() * (total - len(weights))
    counts = np.floor(share).astype(np.int64)
    # A stable sort makes ties go to the earlier one on every platform.
    order = np.argsort(counts - share, kind="stable")
    counts[order[: total - len(weights) - counts.sum()]] += 1
    return counts + 1


def federate(rng: np.random.Generator, categories: np.ndarray, parameters: Mapping[str, Any]):
    """Federated annotation of an image: negatives, incomplete classes, annotated objects.

    Args:
        rng: source of randomness.
        categories: (N,) category id of each object of the image.
        parameters: ``num_classes``, ``num_negatives`` and ``not_exhaustive_prob``.

    Returns:
        The image's two lists of category ids, and the positions of the objects to annotate.
    """
    absent = np.setdiff1d(np.arange(1, parameters["num_classes"] + 1), categories)
    negatives = rng.permutation(absent)[: parameters["num_negatives"]]
    kept, incomplete = set(range(len(categories))), []
    for category in np.unique(categories):
        positions = np.flatnonzero(categories == category)
        if len(positions) > 1 and rng.random() < parameters["not_exhaustive_prob"]:
            kept.remove(int(rng.choice(positions)))
            incomplete.append(int(category))
    image = {
        "neg_category_ids": sorted(negatives.tolist()),
        "not_exhaustive_category_ids": incomplete,
    }
    return image, sorted(kept)


def image_record(
    image_id: int, split: str, size: tuple[int, int], **federated: list[int]
) -> dict[str, Any]:
    """Record of an image of ``size`` (height, width)."""
    return {
        "id": image_id,
        "height": size[0],
        "width": size[1],
        # Detectron2 finds the file by the last two parts; .invalid is a domain that never exists.
        "coco_url": f"http://synthetic.invalid/{split}/{image_id:012d}.jpg",
        "flickr_url": "",
        "license": 1,
        "date_captured": "2020-01-01 00:00:00",
        **federated,
    }


def annotation_record(
    polygons: Sequence[np.ndarray], image_id: int, category_id: int
) -> dict[str, Any]:
    """Record of an object with the (N, 2) ``polygons`` of its visible parts."""
    corners = np.concatenate(polygons)
    low, high = corners.min(0), corners.max(0)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": [p.ravel().tolist() for p in polygons],
        "area": round(sum(map(polygon_area, polygons)), 2),
        "bbox": [*low.tolist(), *(high - low).tolist()],
    }


def write_annotations(
    folder: Path,
    classes: Sequence[tuple[str, str]],
    contents: Contents,
    *,
    title: str,
    version: str,
    parameters: Mapping[str, Any],
) -> None:
    """Write ``annotations/<split>.json`` and ``parameters.json`` of a set.

    Args:
        folder: of the set.
        classes: name and definition of category 1, 2, ...
        contents: image and annotation records of each split; those of "train" say how frequent a
            category is, in every split, as in LVIS.
        title: beginning of the description.
        version: of what is generated.
        parameters: that the set follows from.
    """
    categories = _categories(classes, contents["train"][1])
    (folder / "annotations").mkdir()
    for split, (images, labels) in contents.items():
        data = {
            "info": {
                "description": f"{title} in LVIS format, {split} split",
                "version": version,
                "year": 2020,
                "contributor": "lvis_tde",
                "url": "",
                "date_created": "2020-01-01",
            },
            "licenses": [
                {
                    "id": 1,
                    "name": "CC0 1.0",
                    "url": "https://creativecommons.org/publicdomain/zero/1.0/",
                }
            ],
            "categories": categories,
            "images": images,
            "annotations": labels,
        }
        with open(folder / "annotations" / f"{split}.json", "w", encoding="utf-8") as file:
            # At once: written piece by piece it takes ten times as long.
            file.write(json.dumps(data, separators=(",", ":")))
    with open(folder / "parameters.json", "w", encoding="utf-8") as file:
        json.dump(parameters, file, indent=2)


def _categories(
    classes: Sequence[tuple[str, str]], train_annotations: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    images: list[set] = [set() for _ in classes]
    instances = [0] * len(classes)
    for annotation in train_annotations:
        images[annotation["category_id"] - 1].add(annotation["image_id"])
        instances[annotation["category_id"] - 1] += 1
    return [
        {
            "id": index + 1,
            "name": name,
            "synset": f"{name}.n.01",
            "synonyms": [name],
            "def": definition,
            "frequency": frequency_group(len(images[index])),
            "image_count": len(images[index]),
            "instance_count": instances[index],
        }
        for index, (name, definition) in enumerate(classes)
    ]
