"""What is in a generated set: which classes, which objects in which image, which annotations.

Why it is so: :mod:`lvis_tde.data.synthetic`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .long_tailed import frequency_group
from .rendering import BASE_HUES, SHAPES, VARIANTS, Appearance, draw_scene, polygon_area

__all__ = ["MAX_CLASSES", "SPLITS", "VERSION", "write_set"]

SPLITS = ("train", "calib", "val")
# Raise it with every change of what is generated: sets of another version are not reused.
VERSION = 2
_MAX_FAMILIES = len(SHAPES) * len(BASE_HUES)
MAX_CLASSES = _MAX_FAMILIES * len(VARIANTS)


def _choose_classes(rng: np.random.Generator, count: int) -> list[Appearance]:
    """Appearances by rank of frequency: one of each family first, then others of the families."""
    families = [(shape, hue) for shape in SHAPES for hue in BASE_HUES]
    # A third of the classes lead a family, as long as that leaves members enough for the rest.
    num_families = min(_MAX_FAMILIES, -(-count // 3))
    heads, others = [], []
    for index in rng.permutation(len(families))[:num_families]:
        members = [Appearance(*families[int(index)], variant) for variant in VARIANTS]
        heads.append(members.pop(rng.integers(len(members))))
        others += members
    return heads + [others[i] for i in rng.permutation(len(others))[: count - num_families]]


def _apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers >= 1 that sum to ``total`` and follow ``weights`` (largest remainders)."""
    share = weights / weights.sum() * (total - len(weights))
    counts = np.floor(share).astype(np.int64)
    # A stable sort makes ties go to the more frequent rank on every platform.
    order = np.argsort(counts - share, kind="stable")
    counts[order[: total - len(weights) - counts.sum()]] += 1
    return counts + 1


def _deal(rng: np.random.Generator, weights: np.ndarray, num_images: int, low: int, high: int):
    """Class ranks of the objects of each image; how often each rank occurs is exact, not drawn."""
    sizes = rng.integers(low, high + 1, size=num_images)
    counts = _apportion(weights, int(sizes.sum()))
    ranks = rng.permutation(np.repeat(np.arange(len(weights)), counts))
    return np.split(ranks, np.cumsum(sizes)[:-1])


def write_set(folder: Path, parameters: dict[str, Any]) -> None:
    """Draw all images of a set and write its files.

    Args:
        folder: where; made here.
        parameters: the arguments of :func:`~lvis_tde.data.synthetic.make_synthetic_lvis`, checked.
    """
    seed, low_high = parameters["seed"], parameters["objects_per_image"]
    looks = _choose_classes(np.random.default_rng([seed, len(SPLITS)]), parameters["num_classes"])
    # Ids follow the alphabet, as in LVIS, so that they tell nothing about frequency.
    names = sorted(look.name for look in looks)
    category_ids = np.array([names.index(look.name) + 1 for look in looks])
    zipf = (1 + np.arange(len(looks)) + parameters["zipf_shift"]) ** -parameters["zipf_exponent"]

    contents, first_image = {}, 1
    for index, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, index])
        weights = zipf if split == "train" else np.ones(len(looks))
        scenes = _deal(rng, weights, parameters[f"num_{split}"], *low_high)
        (folder / split).mkdir(parents=True)
        images = []
        annotations: list[dict[str, Any]] = []
        for offset, ranks in enumerate(scenes):
            image_id = first_image + offset
            scene = draw_scene(
                [seed, index, offset], [looks[r] for r in ranks], parameters["image_size"]
            )
            # Full chroma resolution: hue is what tells some classes apart.
            Image.fromarray(scene.image).save(
                folder / split / f"{image_id:012d}.jpg", quality=92, subsampling=0
            )
            image, labels = _annotate(rng, category_ids[ranks], parameters)
            images.append(_image_record(image_id, split, parameters["image_size"], **image))
            for position in labels:
                category_id = int(category_ids[ranks[position]])
                record = _annotation_record(scene.polygons[position], image_id, category_id)
                annotations.append({"id": len(annotations) + 1, **record})
        contents[split] = images, annotations
        first_image += len(images)

    categories = _categories(looks, category_ids, contents["train"][1])
    (folder / "annotations").mkdir()
    for split, (images, annotations) in contents.items():
        data = {
            "info": {
                "description": f"Synthetic long-tailed set in LVIS format, {split} split",
                "version": f"{VERSION}",
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
            "annotations": annotations,
        }
        with open(folder / "annotations" / f"{split}.json", "w", encoding="utf-8") as file:
            json.dump(data, file, separators=(",", ":"))
    with open(folder / "parameters.json", "w", encoding="utf-8") as file:
        json.dump(parameters, file, indent=2)


def _annotate(rng: np.random.Generator, categories: np.ndarray, parameters: dict[str, Any]):
    """Federated annotation of an image: negatives, incomplete classes, annotated objects."""
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


def _image_record(image_id: int, split: str, size: int, **federated: list[int]) -> dict[str, Any]:
    return {
        "id": image_id,
        "height": size,
        "width": size,
        # Detectron2 finds the file by the last two parts; .invalid is a domain that never exists.
        "coco_url": f"http://synthetic.invalid/{split}/{image_id:012d}.jpg",
        "flickr_url": "",
        "license": 1,
        "date_captured": "2020-01-01 00:00:00",
        **federated,
    }


def _annotation_record(
    polygons: Sequence[np.ndarray], image_id: int, category_id: int
) -> dict[str, Any]:
    corners = np.concatenate(polygons)
    low, high = corners.min(0), corners.max(0)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": [p.ravel().tolist() for p in polygons],
        "area": round(sum(map(polygon_area, polygons)), 2),
        "bbox": [*low.tolist(), *(high - low).tolist()],
    }


def _categories(looks, category_ids, train_annotations) -> list[dict[str, Any]]:
    images: dict[int, set] = {int(c): set() for c in category_ids}
    instances = dict.fromkeys(images, 0)
    for annotation in train_annotations:
        images[annotation["category_id"]].add(annotation["image_id"])
        instances[annotation["category_id"]] += 1
    records = []
    for look, category_id in sorted(zip(looks, category_ids.tolist()), key=lambda pair: pair[1]):
        words = look.name.replace("_", " ")
        records.append(
            {
                "id": category_id,
                "name": look.name,
                "synset": f"{look.name}.n.01",
                "synonyms": [look.name],
                "def": f"a {words}, drawn by a random generator",
                "frequency": frequency_group(len(images[category_id])),
                "image_count": len(images[category_id]),
                "instance_count": instances[category_id],
            }
        )
    return records
