"""Which training images a long-tailed set keeps: fixed by a seed, and by a file to share.

Of class ``i`` the first ``n_i`` images of a shuffled list are kept. The list follows from the seed,
the class and the number of its images, so a set of larger imbalance is a part of one of smaller
imbalance. The shuffle is that of ``numpy.random.RandomState``, whose numbers are the same in every
release of NumPy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..emoji_lt import long_tailed_counts
from ..files import write_text

__all__ = ["CALIB_FRACTION", "choose_subset", "read_subset", "split_subset", "write_subset"]

# Share of every class that "calib" holds where it is carved from training images.
CALIB_FRACTION = 0.1


def choose_subset(
    labels: np.ndarray, num_classes: int, ratio: float, profile: str = "exp", seed: int = 0
) -> list[np.ndarray]:
    """The images of each class that a long-tailed set keeps.

    Class ``i`` keeps what :func:`~lvis_tde.data.emoji_lt.long_tailed_counts` says for a most
    frequent class of ``N / C`` images (CIFAR-LT), or all that it has if those are fewer.

    Args:
        labels: (N,) int64 in [0, C).
        num_classes: C.
        ratio: images of the most frequent class over those of the rarest, at least 1.
        profile: "exp" or "step".
        seed: >= 0; another seed, other images.

    Returns:
        C arrays of indices into ``labels``, each in its shuffled order.

    Raises:
        ValueError: if an argument is out of range, or nothing is left of the rarest class.
    """
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    counts = long_tailed_counts(len(labels) // num_classes, num_classes, ratio, profile)
    chosen = []
    for label, count in enumerate(counts.tolist()):
        images = np.flatnonzero(labels == label)
        order = np.random.RandomState([seed, label]).permutation(len(images))
        chosen.append(images[order[:count]])
    return chosen


def split_subset(chosen: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Parts "fit" and "calib" of a training set, such that neither lacks a class of two images.

    Args:
        chosen: indices of each class, see :func:`choose_subset`. "calib" gets the last
            ``CALIB_FRACTION`` of each, at least one; a class of one image is left to "fit".

    Returns:
        Indices of the two, ascending.
    """
    fit, calib = [], []
    for images in chosen:
        held = min(max(1, round(CALIB_FRACTION * len(images))), max(0, len(images) - 1))
        fit.append(images[: len(images) - held])
        calib.append(images[len(images) - held :])
    return np.sort(np.concatenate(fit)), np.sort(np.concatenate(calib))


def write_subset(
    path: str | os.PathLike, chosen: Sequence[np.ndarray], classes: Sequence[str], num_images: int
) -> None:
    """Writes a subset down: a JSON file with the places of the images of each class.

    Args:
        path: of the file.
        chosen: C arrays of indices, see :func:`choose_subset`.
        classes: C names.
        num_images: of the set that they were chosen from.
    """
    lines = [
        json.dumps({"class": name, "images": images.tolist()}, separators=(",", ":"))
        for name, images in zip(classes, chosen)
    ]
    inner = ",\n".join(lines)
    write_text(path, f'{{"num_images": {num_images}, "classes": [\n{inner}\n]}}\n')


def read_subset(
    path: str | os.PathLike, labels: np.ndarray, classes: Sequence[str]
) -> list[np.ndarray]:
    """Reads what :func:`write_subset` wrote, here or elsewhere.

    Args:
        path: of the file.
        labels: (N,) int64, of the set that the images were chosen from.
        classes: its C names.

    Returns:
        C arrays of indices into ``labels``.

    Raises:
        ValueError: if the file is damaged, or is not of this set.
    """
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
        names = [one["class"] for one in content["classes"]]
        chosen = [np.asarray(one["images"], np.int64).reshape(-1) for one in content["classes"]]
        num_images = content["num_images"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is no subset ({type(error).__name__}: {error}): delete it, and it is "
            "drawn again from the seed"
        ) from error
    fits = names == list(classes) and num_images == len(labels)
    for label, images in enumerate(chosen if fits else ()):
        known = (images >= 0) & (images < len(labels))
        fits = fits and bool(known.all()) and bool((labels[images] == label).all())
        fits = fits and len(np.unique(images)) == len(images)
    if not fits:
        raise ValueError(
            f"{str(path)!r} is a subset of another set ({num_images} images, {len(names)} classes) "
            f"than the one at hand ({len(labels)} images, {len(classes)} classes): delete it, and "
            "it is drawn again from the seed"
        )
    return chosen
