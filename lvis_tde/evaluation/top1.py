"""Top-1 accuracy under a long-tailed training set: by group, by class, under shifted priors.

N test images, C classes, ``counts`` the C classes' training images. Group accuracies are means over
the classes of a group, as in the protocol of ImageNet-LT (Liu et al., CVPR 2019), so they do not
depend on how many test images each class has. Needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.frequency import CLASSIFICATION_BOUNDS, frequency_group
from .errors import complain
from .resampling import percentiles, resamples, wilson
from .shifts import SHIFTS, class_shares, shifted_prior

__all__ = [
    "Top1Result",
    "evaluate_top1",
    "top1_of_predictions",
]

BINS = 15
GROUP_METRICS = {"many": "f", "medium": "c", "few": "r"}
METRICS = ("top1", *GROUP_METRICS, "balanced", "ece")


@dataclass
class Top1Result:
    """Result of :func:`evaluate_top1`.

    Attributes:
        metrics: ``top1`` (over images), ``many``, ``medium``, ``few`` and ``balanced`` (each a mean
            over classes), ``ece`` (expected calibration error, Guo et al. 2017, 15 bins of equal
            width); in percent, NaN for a group without test images.
        shifted: accuracy in percent on test sets with the priors of :data:`SHIFTS`.
        intervals: 95 % interval of each metric and each shifted accuracy; empty without bootstrap.
        per_class: one dict per class, in their order: ``id``, ``name``, ``frequency`` ("r" few, "c"
            medium, "f" many), ``image_count`` (training images), ``accuracy`` (percent, NaN without
            test images), ``images`` (test images) and ``predicted`` (images taken for this class);
            after a bootstrap also ``interval``, that of the accuracy
            (:func:`~lvis_tde.evaluation.resampling.wilson`).
        reliability: (15, 3) float64: images, mean confidence and accuracy (0..1) of each bin of
            confidence; NaN where a bin is empty.
        image_ids: (N,) int64.
        labels: (N,) int64.
        predictions: (N,) int64.
        confidence: (N,) float64, probability of the predicted class.
        bounds: of the groups.
    """

    metrics: dict[str, float]
    shifted: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_class: list[dict[str, Any]]
    reliability: np.ndarray
    image_ids: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray
    bounds: tuple[int, int]

    @property
    def correct(self) -> np.ndarray:
        """(N,) float64, 1 where the prediction is the label."""
        return (self.predictions == self.labels).astype(np.float64)


def evaluate_top1(
    probabilities: np.ndarray,
    labels: np.ndarray,
    counts: Sequence[int] | np.ndarray,
    *,
    bounds: tuple[int, int] = CLASSIFICATION_BOUNDS,
    bootstrap: int = 0,
    seed: int = 0,
    image_ids: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
) -> Top1Result:
    """Evaluate the probabilities of N images.

    Args:
        probabilities: (N, C) floating, [0, 1]. The highest is the prediction, the first of equals.
        labels: (N,) integer, [0, C).
        counts: (C,) training images of each class, >= 0.
        bounds: fewest and most training images of a medium class.
        bootstrap: number of resamples; 0 gives no intervals.
        seed: of the resamples.
        image_ids: (N,) integer, unique; by default the positions.
        classes: C names; by default the positions.

    Returns:
        Metrics in percent, intervals and a table by class.

    Raises:
        ValueError: no images, shapes that do not fit, labels out of range, numbers that are not
            probabilities (NaN among them), bounds in the wrong order.
    """
    probabilities, ids = np.asarray(probabilities), image_ids
    if probabilities.ndim != 2 or not all(probabilities.shape):
        raise ValueError(f"probabilities must be (N, C), not empty, got {probabilities.shape}")
    ids = np.arange(len(probabilities)) if ids is None else np.asarray(ids)
    check_probabilities(probabilities, ids)
    if len(counts) != probabilities.shape[1]:
        raise ValueError(
            f"probabilities of {probabilities.shape[1]} classes, but training images of "
            f"{len(counts)}: evaluate with the class list that the model was trained with"
        )
    predictions = probabilities.argmax(1)
    return top1_of_predictions(
        predictions,
        probabilities[np.arange(len(predictions)), predictions],
        labels,
        counts,
        bounds=bounds,
        bootstrap=bootstrap,
        seed=seed,
        image_ids=ids,
        classes=classes,
    )


def check_probabilities(probabilities: np.ndarray, image_ids: np.ndarray) -> None:
    """Raise for rows that are not probabilities.

    Args:
        probabilities: (N, C) floating.
        image_ids: (N,), for the message.

    Raises:
        ValueError: names the first image and how many there are.
    """
    highest = probabilities.max(1)  # NaN where a row has one
    complain(
        image_ids[np.isnan(highest)].tolist(),
        "images with NaN probabilities",
        "the model's weights or its input are not finite",
    )
    wrong = (highest > 1 + 1e-3) | (probabilities.min(1) < -1e-3)
    complain(
        image_ids[wrong].tolist(),
        "images with numbers outside [0, 1] for probabilities",
        "pass the softmax of the logits",
    )


def check_classes(classes: np.ndarray, number: int, what: str) -> None:
    """
    Raises:
        ValueError: some of these, labels or predictions, are none of so many classes.
    """
    complain(
        sorted({*classes[(classes < 0) | (classes >= number)].tolist()}),
        f"{what} that are none of the {number} classes",
        "evaluate with the class list that the model was trained with",
    )


def top1_of_predictions(
    predictions: np.ndarray,
    confidence: np.ndarray,
    labels: np.ndarray,
    counts: Sequence[int] | np.ndarray,
    *,
    bounds: tuple[int, int] = CLASSIFICATION_BOUNDS,
    bootstrap: int = 0,
    seed: int = 0,
    image_ids: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
) -> Top1Result:
    """As :func:`evaluate_top1`, from what it keeps of the probabilities.

    Args:
        predictions: (N,) integer, [0, C).
        confidence: (N,) floating, [0, 1].
        labels: see :func:`evaluate_top1`, likewise the others.
    """
    counts, labels = np.asarray(counts), np.asarray(labels).astype(np.int64)
    predictions = np.asarray(predictions).astype(np.int64)
    confidence = np.asarray(confidence).astype(np.float64)
    ids = np.arange(len(labels)) if image_ids is None else np.asarray(image_ids)
    names = [str(i) for i in range(len(counts))] if classes is None else list(classes)
    shapes = [a.shape for a in (predictions, confidence, labels, ids)]
    if len(set(shapes)) != 1 or labels.ndim != 1 or not len(labels):
        raise ValueError(f"images' predictions, confidence, labels, ids have shapes {shapes}")
    if len(names) != len(counts):
        raise ValueError(f"{len(names)} names for {len(counts)} classes")
    if not 0 <= bounds[0] <= bounds[1] + 1:
        raise ValueError(f"bounds must be (fewest, most) images of a medium class, got {bounds}")
    check_classes(labels, len(counts), "labels")
    check_classes(predictions, len(counts), "predictions")
    if bootstrap < 0:
        raise ValueError(f"bootstrap={bootstrap} must be a number of resamples, 0 for none")
    sizes = np.bincount(labels, minlength=len(counts))
    frequencies = [frequency_group(int(n), (bounds[0] - 1, bounds[1])) for n in counts]
    table = class_weights(sizes, counts, frequencies)
    correct = (predictions == labels).astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)

    def figures(images: np.ndarray) -> np.ndarray:
        right = np.bincount(labels[images], correct[images], len(counts))
        gaps = np.bincount(bins[images], (correct - confidence)[images], BINS)
        return 100 * np.append(table @ right, np.abs(gaps).sum() / len(images))

    keys = [*METRICS[:-1], *SHIFTS, METRICS[-1]]
    values = dict(zip(keys, figures(np.arange(len(labels))).tolist()))
    intervals: dict[str, tuple[float, float]] = {}
    if bootstrap:
        draws = np.array([figures(images) for images in resamples(labels, bootstrap, seed)])
        intervals = dict(zip(keys, percentiles(draws)))
    right, taken = (
        np.bincount(a, w, len(counts)) for a, w in ((labels, correct), (predictions, None))
    )
    accuracy = np.divide(100 * right, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
    per_class = [
        {
            "id": i,
            "name": names[i],
            "frequency": frequencies[i],
            "image_count": int(counts[i]),
            "accuracy": float(accuracy[i]),
            "images": int(sizes[i]),
            "predicted": int(taken[i]),
            **({"interval": wilson(float(right[i]), int(sizes[i]))} if bootstrap else {}),
        }
        for i in range(len(counts))
    ]
    held = np.bincount(bins, minlength=BINS).astype(np.float64)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, v, BINS) / held for v in (confidence, correct)]
    return Top1Result(
        metrics={key: values[key] for key in METRICS},
        shifted={key: values[key] for key in SHIFTS},
        intervals=intervals,
        per_class=per_class,
        reliability=np.stack([held, *means], axis=1),
        image_ids=ids,
        labels=labels,
        predictions=predictions,
        confidence=confidence,
        bounds=bounds,
    )


def class_weights(sizes: np.ndarray, counts: np.ndarray, frequencies: Sequence[str]) -> np.ndarray:
    """What one right image of each class adds to each accuracy.

    Args:
        sizes: (C,) test images.
        counts: (C,) training images.
        frequencies: C letters out of r, c, f.

    Returns:
        (K, C) float64: ``top1``, the groups, ``balanced``, then the shifted sets.
    """
    groups = [np.array([f == group for f in frequencies]) for group in GROUP_METRICS.values()]
    priors = [sizes, *groups, np.ones(len(sizes))]
    priors += [shifted_prior(counts, ratio) for ratio in SHIFTS.values()]
    return np.array([class_shares(sizes, prior.astype(np.float64)) for prior in priors])
