"""Test sets whose prior is not uniform, after LADE (Hong et al., CVPR 2021).

Classes stand in the order of their training images. Under *forward* r the most frequent class is r
times as likely in the test set as the rarest one, with a geometric series between them, as in
training; under *backward* r it is the other way round. LADE cuts the test set: the class of rank k
keeps ``int(n * r^(-k/(C-1)))`` of its n images. The accuracies here weight each class's accuracy by
its share instead: that is what the accuracy of a random cut is on average, but without the luck of
the draw and without rounding; it uses every image, and holds for test sets that are not balanced,
too. :func:`shifted_images` makes the cut where images are needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["SHIFTS", "prior_aware_top1", "shifted_images", "shifted_prior"]

_RATIOS = (50, 25, 10, 5, 2)
SHIFTS: dict[str, float] = {
    **{f"forward{r}": float(r) for r in _RATIOS},
    "uniform": 1.0,
    **{f"backward{r}": 1 / r for r in _RATIOS[::-1]},
}
"""Name of a shifted test set to the share of the most frequent class over that of the rarest."""


def shifted_prior(counts: Sequence[int] | np.ndarray, ratio: float) -> np.ndarray:
    """Shares of the classes in a shifted test set.

    Args:
        counts: (C,) training images of each class; of equals the first is the more frequent one.
        ratio: share of the most frequent class over that of the rarest, > 0; below 1: backward.

    Returns:
        (C,) float64, sums to 1.

    Raises:
        ValueError: the ratio is not positive.
    """
    if not ratio > 0:
        raise ValueError(f"ratio must be positive, got {ratio}: 50 is forward, 1 / 50 backward")
    rank = np.empty(len(counts))
    rank[np.argsort(-np.asarray(counts), kind="stable")] = np.arange(len(counts))
    shares = float(ratio) ** (-rank / max(len(counts) - 1, 1))
    return shares / shares.sum()


def shifted_images(
    labels: np.ndarray,
    counts: Sequence[int] | np.ndarray,
    ratio: float,
    seed: int | None = None,
) -> np.ndarray:
    """LADE's cut: some images of each class.

    Args:
        labels: (N,) integer, [0, C).
        counts: see :func:`shifted_prior`, as is ``ratio``.
        ratio: share of the most frequent class over that of the rarest.
        seed: draws the images; None takes the first ones of each class, as LADE does.

    Returns:
        Positions in ``labels``, ascending. With n images in the smallest class, a class keeps
        ``int(n * share / highest share)`` and at least one.
    """
    labels = np.asarray(labels)
    sizes = np.bincount(labels, minlength=len(counts))
    shares = shifted_prior(counts, ratio)
    # A hair more, so that a whole number is not cut to the one below it.
    wanted = (sizes[sizes > 0].min() * shares / shares.max() + 1e-9).astype(int)
    order = np.arange(len(labels))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(labels))
    kept = [order[labels[order] == i][: max(n, 1)] for i, n in enumerate(wanted.tolist())]
    return np.sort(np.concatenate(kept))


def prior_aware_top1(
    probabilities: np.ndarray,
    labels: np.ndarray,
    counts: Sequence[int] | np.ndarray,
    assumed: Sequence[float] | np.ndarray,
) -> dict[str, float]:
    """Accuracies on the shifted test sets of a model that is told each one's prior.

    Its probabilities are multiplied by the test set's shares over those that it assumes: PC softmax
    (Hong et al.) for a softmax model, which assumes the training set's.

    Args:
        probabilities: (N, C) floating, [0, 1].
        labels: (N,) integer, [0, C).
        counts: (C,) training images of each class.
        assumed: (C,) positive, any scale: ``counts`` for a softmax as trained, ones for a model
            that was made fair.

    Returns:
        Name as in :data:`SHIFTS` to percent.

    Raises:
        ValueError: an assumed share is not positive.
    """
    assumed = np.asarray(assumed, dtype=np.float64)
    if not (assumed > 0).all():
        raise ValueError(f"assumed must be positive, got {assumed.min()}: leave such classes out")
    sizes = np.bincount(labels, minlength=len(counts))
    found = {}
    for name, ratio in SHIFTS.items():
        prior = shifted_prior(counts, ratio)
        correct = (probabilities * (prior / assumed)).argmax(1) == labels
        right = np.bincount(labels, correct, len(counts))
        found[name] = 100 * float(class_shares(sizes, prior) @ right)
    return found


def class_shares(sizes: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """What one right image of each class adds to the accuracy under a prior.

    Args:
        sizes: (C,) test images.
        prior: (C,) float64, >= 0, any scale; classes without test images count for nothing.

    Returns:
        (C,) float64; NaN if no class with a positive share has test images.
    """
    prior = np.where(sizes > 0, prior, 0.0)
    if not prior.any():
        return np.full(len(sizes), np.nan)
    return prior / prior.sum() / np.maximum(sizes, 1)
