"""A classification set: labels, and images in memory or in files."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

__all__ = ["ClassificationSet"]


class ClassificationSet(Sequence[dict]):
    """Images of one class each. ``DatasetCatalog.get`` gives it; its items are dicts.

    A dict has "image_id", "class" and either "image", (H, W, 3) uint8 RGB, or "file_name".

    Attributes:
        labels: (N,) int64 in [0, C).
        classes: C names.
        images: (N, H, W, 3) uint8 RGB, or None.
        files: N paths, or None.
        image_ids: (N,) int64, the places of the images in the set that this one is a part of.
    """

    def __init__(
        self,
        labels: np.ndarray | Sequence[int],
        classes: Sequence[str],
        *,
        images: np.ndarray | None = None,
        files: Sequence[str] | None = None,
        image_ids: np.ndarray | Sequence[int] | None = None,
    ):
        """
        Args:
            labels, classes, images, files: see the attributes; one of ``images`` and ``files``.
            image_ids: default: 0 to N - 1.

        Raises:
            ValueError: if a label is no class, or there are not as many images as labels.
        """
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = list(classes)
        self.images = images
        self.files = None if files is None else list(files)
        number = len(self.labels)
        self.image_ids = np.arange(number) if image_ids is None else np.asarray(image_ids, np.int64)
        wrong = self.labels[(self.labels < 0) | (self.labels >= len(self.classes))]
        if len(wrong):
            raise ValueError(f"label {wrong[0]} is none of the {len(self.classes)} classes")
        if (images is None) == (files is None):
            raise ValueError("a set has images in memory or files, and not both")
        for name, found in {"images": images, "files": files, "image_ids": self.image_ids}.items():
            if found is not None and len(found) != number:
                raise ValueError(f"{len(found)} {name} for {number} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.part(np.arange(len(self))[index])
        index = range(len(self))[operator.index(index)]
        item = {"image_id": int(self.image_ids[index]), "class": int(self.labels[index])}
        if self.files is not None:
            return {**item, "file_name": self.files[index]}
        assert self.images is not None
        return {**item, "image": self.images[index]}

    def __iter__(self) -> Iterator[dict]:
        return map(self.__getitem__, range(len(self)))

    def __repr__(self) -> str:
        where = "files" if self.images is None else "x".join(map(str, self.images.shape[1:3]))
        return f"ClassificationSet({len(self)} images, {len(self.classes)} classes, {where})"

    def part(self, indices: np.ndarray) -> ClassificationSet:
        """The images at ``indices``, (M,) int64, in that order; they keep their ids."""
        return ClassificationSet(
            self.labels[indices],
            self.classes,
            images=None if self.images is None else self.images[indices],
            files=None if self.files is None else [self.files[i] for i in indices.tolist()],
            image_ids=self.image_ids[indices],
        )

    def class_counts(self) -> np.ndarray:
        """Images of each class, (C,) int64."""
        return np.bincount(self.labels, minlength=len(self.classes))
