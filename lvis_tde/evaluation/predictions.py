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
from .top1 import Top1Result, check_classes, check_probabilities, top1_of_predictions

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
        predictions: (N,) int64, [0, C); by default the most probable class. Kept apart, since half
            precision may make two probabilities equal.
        confidence: (N,) floating; by default the probability of the prediction.
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
        fits = self.probabilities.shape == (n, c) and len(self.classes) == c
        if not n or not fits or len(self.labels) != n:
            raise ValueError(
                f"probabilities of shape {self.probabilities.shape} for {n} images with "
                f"{len(self.labels)} labels and {c} classes with {len(self.classes)} names: "
                "evaluate with the class list of the training"
            )
        check_probabilities(self.probabilities, self.image_ids)
        if self.predictions is None:
            self.predictions, self.confidence = self.probabilities.argmax(1), None
        check_classes(self.predictions, c, "predictions")
        if self.confidence is None:
            self.confidence = self.probabilities[np.arange(n), self.predictions]

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
            ValueError: it is damaged, lacks an array, or holds something else.
        """
        needed = [field.name for field in fields(cls)][:5]
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                content: dict[str, Any] = {
                    f.name: file[f.name] for f in fields(cls) if f.name in file
                }
        except OSError:
            raise
        except Exception as error:  # whatever the bytes of a damaged archive lead to
            raise ValueError(
                f"{os.fspath(path)!r} is damaged, or no result file of classification: {error!r}"
            ) from error
        complain(
            [name for name in needed if name not in content],
            f"arrays are missing in {path}",
            f"a result file of classification holds {', '.join(needed)}",
        )
        content["classes"] = content["classes"].tolist()
        if "bounds" in content:
            content["bounds"] = tuple(content["bounds"].tolist())
        try:
            return cls(**content)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r}: {error}") from error
