"""Random annotations and predictions with the proportions of LVIS v1 val.

1203 categories by Zipf's law, about 12 annotations of 4 categories an image (v1 val: 244,707 in
19,809 images), half a dozen verified absences, 300 predictions. Predictions find most objects,
place them imperfectly, confuse some, and otherwise guess. Each image depends on the seed and its
number only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils

HEIGHT, WIDTH, CATEGORIES, DETECTIONS = 480, 640, 1203, 300
_SIDE, _SHAPES, _POINTS = 252, 64, 32
_HEAD = 28
_CELL = _SIDE // _HEAD


class Scenes:
    """Images, annotations and predictions by number.

    Args:
        seed: of all that is random.
        num_categories: by Zipf's law.
    """

    def __init__(self, seed: int, num_categories: int = CATEGORIES) -> None:
        self.seed, self.num_categories = seed, num_categories
        rng = np.random.default_rng(seed)
        weights = 1 / np.arange(1, num_categories + 1)
        self.cumulative = np.cumsum(weights / weights.sum())
        # Rare classes are spread over the ids, as in LVIS, where ids are alphabetical.
        self.ids = rng.permutation(num_categories) + 1
        angle = np.linspace(0, 2 * math.pi, _POINTS, endpoint=False)
        self.polygons, self.bitmaps = [], []
        for _ in range(_SHAPES):
            waves = sum(
                rng.normal(0, 0.12) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 6)
            )
            points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (1 + waves)[:, None]
            points = (points - points.min(axis=0)) / np.ptp(points, axis=0)
            self.polygons.append(points)
            rle = mask_utils.frPyObjects([(points * _SIDE).ravel().tolist()], _SIDE, _SIDE)
            self.bitmaps.append(mask_utils.decode(rle)[:, :, 0].astype(bool))
        # Soft at the edges, as a head gives them: the share of each cell, through a sigmoid.
        cells = np.stack(self.bitmaps).reshape(_SHAPES, _HEAD, _CELL, _HEAD, _CELL)
        share = cells.mean(axis=(2, 4))
        self.soft = (1 / (1 + np.exp(-8 * (share - 0.5)))).astype(np.float32)

    def _categories(self, rng: np.random.Generator, n: int) -> np.ndarray:
        found = np.searchsorted(self.cumulative, rng.random(n))
        return self.ids[found.clip(max=self.num_categories - 1)]

    @staticmethod
    def _boxes(rng: np.random.Generator, n: int) -> np.ndarray:
        # About 41% small, 34% medium and 25% large, as in COCO, whose images LVIS has.
        size = np.exp(rng.uniform(math.log(8), math.log(250), n))
        aspect = np.exp(rng.normal(0, 0.35, n))
        half = np.stack([size * aspect, size / aspect], axis=1) / 2
        center = rng.uniform(0, (WIDTH, HEIGHT), (n, 2))
        return _clip(np.hstack([center - half, center + half]))

    def objects(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is in an image.

        Args:
            number: of the image, from 0.

        Returns:
            Boxes (M, 4), x0 y0 x1 y1; category ids (M,); shapes (M,).
        """
        rng = np.random.default_rng((self.seed, number))
        present = np.unique(self._categories(rng, rng.poisson(3) + 1))
        ids = np.repeat(present, rng.geometric(1 / 3.2, len(present)).clip(max=40))
        return self._boxes(rng, len(ids)), ids, rng.integers(0, _SHAPES, len(ids))

    def annotations(self, num_images: int) -> dict[str, Any]:
        """Content of an annotation file.

        Args:
            num_images: how many images.

        Returns:
            LVIS v1 format, polygons.
        """
        images, annotations = [], []
        image_count = np.zeros(self.num_categories + 1, dtype=int)
        for number in range(num_images):
            boxes, ids, shapes = self.objects(number)
            rng = np.random.default_rng((self.seed, number, 1))
            present = np.unique(ids)
            image_count[present] += 1
            absent = np.setdiff1d(self._categories(rng, 8), present)[:6]
            images.append(
                {
                    "id": number + 1,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "neg_category_ids": absent.tolist(),
                    "not_exhaustive_category_ids": present[rng.random(len(present)) < 0.1].tolist(),
                }
            )
            for box, category, shape in zip(boxes, ids.tolist(), shapes.tolist()):
                side = box[2:] - box[:2]
                points = (self.polygons[shape] * side + box[:2]).round(2)
                x, y = points.T
                area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": category,
                        "segmentation": [points.ravel().tolist()],
                        "area": float(area),
                        "bbox": np.concatenate([box[:2], side]).round(2).tolist(),
                    }
                )
        # A training set of five times the images decides the frequencies.
        train = image_count * 5
        categories = [
            {
                "id": i,
                "name": f"category_{i}",
                "image_count": int(max(train[i], 1)),
                "frequency": "r" if train[i] <= 10 else "c" if train[i] <= 100 else "f",
            }
            for i in range(1, self.num_categories + 1)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def predictions(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What a detector might say of an image.

        Args:
            number: of the image, from 0.

        Returns:
            Boxes (300, 4) float32, x0 y0 x1 y1; scores (300,) float32; contiguous classes (300,)
            int64; shapes (300,).
        """
        boxes, ids, shapes = self.objects(number)
        rng = np.random.default_rng((self.seed, number, 2))
        copies = np.repeat(np.arange(len(ids)), rng.poisson(2.5, len(ids)))[:DETECTIONS]
        rest = DETECTIONS - len(copies)
        side = np.tile(boxes[copies, 2:] - boxes[copies, :2], 2)
        found = boxes[copies] + rng.normal(0, 0.07, side.shape) * side
        right = rng.random(len(copies)) < 0.7
        found_ids = np.where(right, ids[copies], self._categories(rng, len(copies)))
        # A detector prefers what is in the image, and of the rest the frequent.
        guesses = np.where(
            rng.random(rest) < 0.3, rng.choice(ids, rest), self._categories(rng, rest)
        )
        scores = np.concatenate([rng.beta(2, 2, len(copies)), rng.beta(1, 20, rest)])
        return (
            _clip(np.vstack([found, self._boxes(rng, rest)])).astype(np.float32),
            scores.astype(np.float32),
            np.concatenate([found_ids, guesses]) - 1,
            np.concatenate([shapes[copies], rng.integers(0, _SHAPES, rest)]),
        )

    def of_head(self, shapes: np.ndarray) -> np.ndarray:
        """What a mask head predicts of shapes (N,): (N, 28, 28) float32 in [0, 1]."""
        return self.soft[shapes]

    def paint(self, boxes: np.ndarray, shapes: np.ndarray, masks: np.ndarray) -> None:
        """Draw shapes into their boxes.

        Args:
            boxes: (N, 4) float, x0 y0 x1 y1, within the image.
            shapes: (N,) which shape.
            masks: (N, H, W) bool, all False; written to.
        """
        corners = np.hstack([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])]).astype(int)
        for mask, (x0, y0, x1, y1), shape in zip(masks, corners.tolist(), shapes.tolist()):
            rows = ((np.arange(y1 - y0) + 0.5) * _SIDE / (y1 - y0)).astype(int)
            columns = ((np.arange(x1 - x0) + 0.5) * _SIDE / (x1 - x0)).astype(int)
            mask[y0:y1, x0:x1] = self.bitmaps[shape][rows][:, columns]


def _clip(boxes: np.ndarray) -> np.ndarray:
    limit = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    boxes = boxes.clip(0, limit - [4, 4, 0, 0])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 4)
    return boxes
