"""Sets of image files: the official lists of ImageNet-LT and Places-LT, and iNaturalist's JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from .sets import ClassificationSet

__all__ = ["read_inat", "read_list"]


def read_list(
    path: str | os.PathLike, image_root: str | os.PathLike, classes: Sequence[str] | None = None
) -> ClassificationSet:
    """A list file with a path and a label in every line, such as ``ImageNet_LT_train.txt``.

    Args:
        path: of the list.
        image_root: folder that its paths are relative to.
        classes: C names; default: the folder of each label's images, without the first part of
            their path ("train/n01440764/x.JPEG": "n01440764").

    Returns:
        The images in the order of the list.

    Raises:
        ValueError: if the list is empty, or naming the line that is no path and label.
    """
    files, labels, names = [], [], {}
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            file, _, label = line.strip().rpartition(" ")
            if not file or not label.isdigit():
                raise ValueError(f"{path}:{number}: {line.strip()!r} is not a path and a label")
            files.append(os.path.join(image_root, file))
            labels.append(int(label))
            names[int(label)] = "/".join(Path(file).parts[1:-1])
    if not labels:
        raise ValueError(f"{str(path)!r} lists no image: download it again")
    if classes is None:
        classes = [names.get(label) or str(label) for label in range(max(labels) + 1)]
    return ClassificationSet(labels, classes, files=files)


def read_inat(path: str | os.PathLike, image_root: str | os.PathLike) -> ClassificationSet:
    """An annotation file of iNaturalist, such as ``train2018.json``.

    Args:
        path: of the file.
        image_root: folder that its paths are relative to.

    Returns:
        The images in the order of the file; a class is called as its category is, or by its id
        where the file hides the names, as that of 2018 does.

    Raises:
        ValueError: if the file is damaged or an image has not one class.
    """
    try:
        data = json.loads(Path(path).read_text("utf-8-sig"))
        order = {
            c["id"]: i for i, c in enumerate(sorted(data["categories"], key=lambda c: c["id"]))
        }
        names = {c["id"]: str(c.get("name") or c["id"]) for c in data["categories"]}
        category = {a["image_id"]: a["category_id"] for a in data["annotations"]}
        files = [os.path.join(image_root, image["file_name"]) for image in data["images"]]
        labels = [order[category[image["id"]]] for image in data["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a complete file of iNaturalist ({type(error).__name__}: "
            f"{error}): download it again"
        ) from error
    if len(category) != len(data["annotations"]):
        raise ValueError(f"{str(path)!r} gives an image several classes")
    return ClassificationSet(labels, [names[key] for key in order], files=files)
