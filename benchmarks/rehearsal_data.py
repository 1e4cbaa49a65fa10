"""Annotations, images and detections of LVIS v1's size, for the rehearsal.

Images of each class, images and annotations are as many as LVIS v1 has; which image shows what,
outlines and pixels are random. All outlines are out of a pool, whose text is made once, so that a
gigabyte is written in seconds. Images are hard links to a few JPEG files of 640 x 480 pixels.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from PIL import Image

__all__ = ["SIZES", "Pool", "Split", "write_detections", "write_set"]

# Of LVIS v1: images, annotations; how many of val's images lie in COCO's val2017; COCO's files.
SIZES = {"train": (100_170, 1_270_141), "val": (19_809, 244_707)}
_VAL_IN_VAL, _FILES = 4_809, {"train2017": 118_287, "val2017": 5_000}
_LONG, _SHORT, _POINTS, _PICTURES = 640, 480, 45, 32


class Pool:
    """Objects as text, for landscape and for portrait images.

    Args:
        number: objects of each orientation.
        seed: of all that is random.

    Attributes:
        annotations: per orientation, the end of an annotation from its box on.
        detections: per orientation, likewise, of a detection that has the object nearly right.
    """

    def __init__(self, number: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.number = number
        self.annotations: list[list[str]] = [[], []]
        self.detections: list[list[str]] = [[], []]
        angle = np.linspace(0, 2 * math.pi, _POINTS, endpoint=False)
        for portrait in (False, True):
            width, height = (_SHORT, _LONG) if portrait else (_LONG, _SHORT)
            size = np.exp(rng.uniform(math.log(8), math.log(250), number))
            aspect = np.exp(rng.normal(0, 0.35, number))
            center = rng.uniform(0, (width, height), (number, 2))
            for side, ratio, middle in zip(size, aspect, center):
                waves = sum(
                    rng.normal(0, 0.1) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5)
                )
                outline = np.stack([np.cos(angle) * ratio, np.sin(angle) / ratio], axis=1)
                outline *= (1 + waves)[:, None] * side / 2
                points = _inside(middle + outline, width, height)
                shifted = points + rng.normal(0, 0.05, 2) * side
                self.annotations[portrait].append(_annotation(points))
                self.detections[portrait].append(
                    _detection(_inside(shifted, width, height), width, height)
                )


def _inside(points: np.ndarray, width: int, height: int) -> np.ndarray:
    points = points.clip(0, (width, height))
    low, high = points.min(axis=0), points.max(axis=0)
    # What was cut down to nothing at the border becomes a strip of four pixels.
    low = np.minimum(low, np.array([width, height]) - 4)
    scale = np.maximum(high - low, 4) / np.maximum(high - low, 1e-6)
    return (low + (points - points.min(axis=0)) * scale).clip(0, (width, height))


def _annotation(points: np.ndarray) -> str:
    points = points.round(2)
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    low, side = points.min(axis=0), np.ptp(points, axis=0).clip(0.01)
    content = {
        "bbox": [*low.tolist(), *side.round(2).tolist()],
        "area": round(float(max(area, 1.0)), 2),
        "segmentation": [points.ravel().tolist()],
    }
    return json.dumps(content)[1:]


def _detection(points: np.ndarray, width: int, height: int) -> str:
    rle = mask_utils.merge(mask_utils.frPyObjects([points.ravel().tolist()], height, width))
    if mask_utils.area(rle) == 0:
        box = np.concatenate([points.min(axis=0), np.ptp(points, axis=0) + 1])
        rle = mask_utils.merge(mask_utils.frPyObjects(box[None], height, width))
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    box = np.concatenate([points.min(axis=0), np.ptp(points, axis=0)]).round(2).tolist()
    return json.dumps({"bbox": box, "segmentation": segmentation})[1:]


class Split:
    """Which image shows what.

    Args:
        name: "train" or "val".
        share: of LVIS's images; every class keeps at least one training image.
        pool: of objects.
        seed: of all that is random.

    Attributes:
        portrait: (I,) bool.
        images: (A,) int64 of each annotation, ascending.
        classes: (A,) int64, from 0.
        objects: (A,) int64, position in the pool.
    """

    def __init__(self, name: str, share: float, pool: Pool, seed: int) -> None:
        rng = np.random.default_rng((seed, len(name)))
        self.name = name
        self.number = max(4, round(SIZES[name][0] * share))
        counts = class_counts() * self.number / SIZES["train"][0]
        if name == "val":
            counts = rng.poisson(counts)
        pairs = np.clip(np.round(counts), name == "train", self.number).astype(np.int64)
        images = np.concatenate([rng.choice(self.number, n, replace=False) for n in pairs])
        classes = np.repeat(np.arange(len(pairs)), pairs)
        # Objects of one class in an image, 3.5 on average in LVIS.
        mean = SIZES[name][1] / (class_counts().sum() * SIZES[name][0] / SIZES["train"][0])
        several = rng.geometric(1 / mean, len(images))
        order = np.argsort(np.repeat(images, several), kind="stable")
        self.images = np.repeat(images, several)[order]
        self.classes = np.repeat(classes, several)[order]
        self.objects = rng.integers(0, pool.number, len(order))
        self.portrait = rng.random(self.number) < 0.3
        self.image_counts = pairs

    def folder(self, image: int) -> str:
        """COCO's folder of an image."""
        in_val = self.name == "val" and image < self.number * _VAL_IN_VAL / SIZES["val"][0]
        return "val2017" if in_val else "train2017"

    def identity(self, image: int) -> int:
        """Its id, another one in each split."""
        return image + 1 + (SIZES["train"][0] if self.name == "val" else 0)

    def entries(self, seed: int) -> Iterator[dict[str, Any]]:
        """Its images in LVIS format."""
        rng = np.random.default_rng((seed, 7))
        ends = np.searchsorted(self.images, np.arange(self.number + 1))
        for image, portrait in enumerate(self.portrait.tolist()):
            shown = set(self.classes[ends[image] : ends[image + 1]].tolist())
            absent = rng.integers(0, len(LVIS_CATEGORIES), 8).tolist()
            number, folder = self.identity(image), self.folder(image)
            yield {
                "id": number,
                "width": _SHORT if portrait else _LONG,
                "height": _LONG if portrait else _SHORT,
                "license": 3,
                "coco_url": f"http://images.cocodataset.org/{folder}/{number:012}.jpg",
                "neg_category_ids": sorted({i + 1 for i in absent if i not in shown}),
                "not_exhaustive_category_ids": [i + 1 for i in shown if rng.random() < 0.1],
            }


def class_counts() -> np.ndarray:
    """Training images of each class of LVIS v1, by category id, (1203,) int64.

    The numbers are Detectron2's (``lvis_v1_category_image_count.py``). A release without that file
    knows the group of each class only; the classes of a group get its numbers by falling size.
    """
    try:
        from detectron2.data.datasets.lvis_v1_category_image_count import (
            LVIS_CATEGORY_IMAGE_COUNT,
        )
    except ImportError:
        text = resources.files("lvis_tde.data.generation").joinpath("lvis_v1_image_counts.txt")
        counts = sorted(map(int, text.read_text("utf-8").split()), reverse=True)
        groups = [category["frequency"] for category in sorted(LVIS_CATEGORIES, key=_id)]
        order = sorted(range(len(groups)), key=lambda i: "fcr".index(groups[i]))
        out = np.zeros(len(groups), dtype=np.int64)
        out[order] = counts
        return out
    return np.array([c["image_count"] for c in sorted(LVIS_CATEGORY_IMAGE_COUNT, key=_id)])


def _id(category: dict[str, Any]) -> int:
    return category["id"]


def write_set(root: Path, share: float, seed: int) -> tuple[Pool, Split]:
    """Write images and annotation files where Detectron2 looks for LVIS v1.

    Args:
        root: of the data sets.
        share: of LVIS's images.
        seed: of all that is random.

    Returns:
        The pool of objects, and the split val.
    """
    pool = Pool(max(64, round(4096 * min(1, 10 * share))), seed)
    splits = [Split(name, share, pool, seed) for name in SIZES]
    train = splits[0].image_counts
    categories = [
        {
            "id": c["id"],
            "name": c["name"],
            "synset": c["synset"],
            "synonyms": c["synonyms"],
            "def": c["def"],
            "frequency": c["frequency"],
            "image_count": int(train[c["id"] - 1]),
            "instance_count": int((splits[0].classes == c["id"] - 1).sum()),
        }
        for c in sorted(LVIS_CATEGORIES, key=_id)
    ]
    (root / "lvis").mkdir(parents=True)
    for split in splits:
        with open(root / "lvis" / f"lvis_v1_{split.name}.json", "w", encoding="utf-8") as file:
            file.write('{"info": {"description": "as large as LVIS v1"}, "licenses": [], ')
            file.write(f'"categories": {json.dumps(categories)}, "images": ')
            file.write(json.dumps(list(split.entries(seed))))
            file.write(', "annotations": [')
            file.writelines(_annotations(split, pool))
            file.write("]}")
    _write_images(root / "coco", splits, share, seed)
    return pool, splits[1]


def _annotations(split: Split, pool: Pool) -> Iterator[str]:
    portrait = split.portrait[split.images].tolist()
    columns = split.images.tolist(), split.classes.tolist(), split.objects.tolist(), portrait
    for number, (image, label, chosen, turned) in enumerate(zip(*columns), 1):
        yield (
            f'{", " if number > 1 else ""}{{"id": {number}, "image_id": {split.identity(image)}, '
            f'"category_id": {label + 1}, {pool.annotations[turned][chosen]}'
        )


def _write_images(folder: Path, splits: list[Split], share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures: list[list[Path]] = [[], []]
    (folder / "pictures").mkdir(parents=True)
    for portrait in (False, True):
        size = (_SHORT, _LONG) if portrait else (_LONG, _SHORT)
        for number in range(_PICTURES):
            # As detailed as photographs: about 60 kB each.
            coarse = rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
            path = folder / "pictures" / f"{int(portrait)}_{number}.jpg"
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=85)
            pictures[portrait].append(path)
    left = {name: round(number * share) for name, number in _FILES.items()}
    for name in left:
        (folder / name).mkdir()
    for split in splits:
        for image, portrait in enumerate(split.portrait.tolist()):
            source = pictures[portrait][image % _PICTURES]
            os.link(source, folder / split.folder(image) / f"{split.identity(image):012}.jpg")
            left[split.folder(image)] -= 1
    for name, number in left.items():  # those of COCO that LVIS does not use
        for extra in range(number):
            os.link(pictures[0][extra % _PICTURES], folder / name / f"9{extra:011}.jpg")


def write_detections(path: Path, split: Split, pool: Pool, seed: int, per_image: int = 300) -> None:
    """Write a result file: most objects found, nearly in place, the rest guesses.

    Args:
        path: the file.
        split: val.
        pool: its objects.
        seed: of all that is random.
        per_image: detections of each image.
    """
    rng = np.random.default_rng((seed, 9))
    frequent = np.cumsum(class_counts() / class_counts().sum())
    ends = np.searchsorted(split.images, np.arange(split.number + 1)).tolist()
    separator = "["
    with open(path, "w", encoding="utf-8") as file:
        for image, portrait in enumerate(split.portrait.tolist()):
            span = slice(ends[image], min(ends[image + 1], ends[image] + per_image))
            found = np.flatnonzero(rng.random(span.stop - span.start) < 0.7) + span.start
            rest = per_image - len(found)
            guessed = np.searchsorted(frequent, rng.random(rest)).clip(max=len(frequent) - 1)
            if span.stop > span.start:  # a detector prefers what is in the image
                here = rng.choice(split.classes[span], rest)
                guessed = np.where(rng.random(rest) < 0.3, here, guessed)
            labels = np.concatenate([split.classes[found], guessed]) + 1
            objects = np.concatenate([split.objects[found], rng.integers(0, pool.number, rest)])
            scores = np.concatenate([rng.beta(2, 2, len(found)), rng.beta(1, 20, rest)])
            number, texts = split.identity(image), pool.detections[portrait]
            columns = labels.tolist(), scores.round(6).tolist(), objects.tolist()
            for label, score, chosen in zip(*columns):
                file.write(
                    f'{separator}{{"image_id": {number}, "category_id": {label}, '
                    f'"score": {score}, {texts[chosen]}'
                )
                separator = ", "
        file.write("]" if separator == ", " else "[]")
