"""What is there and what is missing of a classification set, found by its own loading code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..check import Finding
from .sets import ClassificationSet
from .sources import load_source

__all__ = ["CLASSIFICATION_SETS", "Expected", "check_classification"]


class Expected(NamedTuple):
    """A set: its kind for :func:`load_source`, its folder, and its numbers; None: any will do."""

    kind: str
    folder: str
    num_classes: int | None
    train: int | None = None
    test: int | None = None
    calib: int | None = None


CLASSIFICATION_SETS = {
    "cifar10": Expected("cifar10", "cifar-10-batches-py", 10, 50000, 10000),
    "cifar100": Expected("cifar100", "cifar-100-python", 100, 50000, 10000),
    "imagenet_lt": Expected("imagenet", "imagenet_lt", 1000, 115846, 50000, 20000),
    "places_lt": Expected("places", "places_lt", 365, 62500, 36500, 7300),
    "inat2018": Expected("inat2018", "inat2018", 8142, 437513, 24426),
    "digits_lt": Expected("digits", "", 10, 1000, 540, 200),
    "emoji_lt": Expected("emoji", "emoji_lt", None),
}


def check_classification(
    root: str | os.PathLike, expected: Expected, *, look_for_images: bool = True
) -> list[Finding]:
    """Check the files of a classification set.

    Args:
        root: folder that ``DETECTRON2_DATASETS`` names.
        expected: what should be there, such as ``CLASSIFICATION_SETS["imagenet_lt"]``.
        look_for_images: of sets of files, see whether each image is on disk.

    Returns:
        A finding for each part, or one for what is missing. The set is complete if all are ok.
    """
    root = Path(root)
    if expected.kind != "emoji":
        return list(_findings(root, expected, "", look_for_images))
    generated = sorted(path.parent.name for path in (root / "emoji_lt").glob("*/classes.json"))
    return [
        finding
        for variant in generated or ["exp100_seed0"]
        for finding in _findings(root, expected, variant, look_for_images)
    ]


def _findings(root: Path, expected: Expected, variant: str, look: bool) -> Iterator[Finding]:
    where = root / expected.folder / variant
    try:
        source = load_source(expected.kind, root, variant)
    except (ImportError, OSError, ValueError) as error:
        yield Finding(False, where, str(error))
        return
    for part in ("train", "test", "calib"):
        images: ClassificationSet | None = getattr(source, part)
        if images is None:
            continue
        counts, number = images.class_counts(), getattr(expected, part)
        ok = number in (None, len(images)) and expected.num_classes in (None, len(counts))
        message = f"{part}: {_said(len(images), number)} images of " + (
            f"{_said(len(counts), expected.num_classes)} classes, {counts.max(initial=0)} to "
            f"{counts.min(initial=counts.max(initial=0))} each"
        )
        absent = [file for file in images.files or () if look and not os.path.isfile(file)]
        if absent:
            message += f"; {len(absent)} are not on disk, the first is {absent[0]}"
        yield Finding(ok and not absent, where, message)


def _said(found: int, expected: int | None) -> str:
    return f"{found}" if expected in (None, found) else f"{found} (instead of {expected})"
