"""What a classifier said of a test set: the result file of classification."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import atomic_path
from ..data.frequency import CLASSIFICATION_BOUNDS
from .errors import complain
from .top1 import Top1Result, check_probabilities, top1_of_predictions

__all__ = ["Predictions"]

# Above that many numbers, half precision: ImageNet-LT's take 100 MB, CIFAR-100's 4.
_MOST_SINGLE = 1 << 24


@dataclass
class Predictions:
    """Probabilities of N images over C classes, and what is needed to evaluate them.

    Attributes:
        image_ids: (N,) int64, unique.
        labels: (N,) int64, [0, C).
        probabilities: (N, C) floating, [0, 1].
        counts: (C,) int64, training images of each class.
        classes: C names.
        bounds: fewest and most training images of a medium class.
        predictions: (N,) int64; by default the most probable class. Kept apart, since half
            precision may make two probabilities equal.
        confidence: (N,) floating, its probability.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    counts: np.ndarray
    classes: Sequence[str]
    bounds: tuple[int, int] = CLASSIFICATION_BOUNDS
    predictions: np.ndarray | None = None
    confidence: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check what an evaluation relies on.

        Raises:
            ValueError: shapes that do not fit, or numbers that are not probabilities.
        """
        n, c = len(self.image_ids), len(self.counts)
        if not n or self.probabilities.shape != (n, c) or len(self.classes) != c:
            raise ValueError(
                f"probabilities of shape {self.probabilities.shape} for {n} images and {c} classes "
                f"with {len(self.classes)} names: evaluate with the class list of the training"
            )
        check_probabilities(self.probabilities, self.image_ids)
        if self.predictions is None:
            self.predictions = self.probabilities.argmax(1)
            self.confidence = self.probabilities.max(1)

    @classmethod
    def gather(cls, parts: Sequence[tuple[np.ndarray, ...]], **options: Any) -> Predictions:
        """Put the parts of several batches or processes together.

        Samplers give some processes an image twice so that all have equally many: each image
        counts once.

        Args:
            parts: image ids (n,), labels (n,) and probabilities (n, C), at least one part.
            options: the other attributes.

        Returns:
            In ascending order of image id.

        Raises:
            ValueError: images of one id have different labels.
        """
        ids, labels, probabilities = (np.concatenate(columns) for columns in zip(*parts))
        unique, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        complain(
            ids[labels != labels[first][inverse]].tolist(),
            "images share their id with one of another class",
            "give each image an id of its own",
        )
        return cls(unique, labels[first], probabilities[first], **options)

    def evaluate(self, *, bootstrap: int = 0, seed: int = 0) -> Top1Result:
        """See :func:`lvis_tde.evaluation.top1.evaluate_top1`."""
        assert self.predictions is not None and self.confidence is not None
        return top1_of_predictions(
            self.predictions,
            self.confidence,
            self.labels,
            self.counts,
            bounds=self.bounds,
            bootstrap=bootstrap,
            seed=seed,
            image_ids=self.image_ids,
            classes=self.classes,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.npz`` file, whole or not at all.

        Args:
            path: ends with ``.npz``.
        """
        single = self.probabilities.size <= _MOST_SINGLE
        content: dict[str, Any] = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        content["probabilities"] = self.probabilities.astype(np.float32 if single else np.float16)
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, **content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Read what :meth:`save` wrote.

        Args:
            path: of a ``.npz`` file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it lacks an array, or holds something else.
        """
        with np.load(Path(path), allow_pickle=False) as file:
            needed = [field.name for field in fields(cls)][:5]
            complain(
                [name for name in needed if name not in file],
                f"arrays are missing in {path}",
                f"a result file of classification holds {', '.join(needed)}",
            )
            content: dict[str, Any] = {f.name: file[f.name] for f in fields(cls) if f.name in file}
        content["classes"] = content["classes"].tolist()
        if "bounds" in content:
            content["bounds"] = tuple(content["bounds"].tolist())
        return cls(**content)
