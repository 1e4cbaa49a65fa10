"""Annotation files of any kind made fit for an evaluation: COCO's have no groups and no lists."""

from __future__ import annotations

import operator
import os
from typing import Any

from ..data.annotation_file import EXHAUSTIVE, FEDERATED, read_annotation_file
from ..data.completion import (
    as_lvis_counts,
    check_bounds,
    check_same_categories,
    complete,
    complete_categories,
    without_unusable,
)
from .ground_truth import read_annotations
from .result import FREQUENCIES

__all__ = ["load_truth"]


def load_truth(
    annotations: str | os.PathLike[str],
    train: str | os.PathLike[str] | None = None,
    bounds: tuple[int, int] | None = None,
) -> tuple[dict[str, Any], str]:
    """Read annotations in LVIS or COCO format for :func:`lvis_tde.evaluation.evaluate_lvis`.

    A file in COCO's format counts as exhaustively annotated: a class without object in an image is
    absent from it. The groups of its classes are those of the training set, where it is given. In
    either format a crowd is no object to be found, and an area that is not given is the object's.

    Args:
        annotations: path of the file, or the name of a registered data set.
        train: file of the training set, whose numbers of images make the groups.
        bounds: most images of a rare and of a common class; default: ``frequency`` in the file, or
            LVIS's (10, 100).

    Returns:
        The content, and a remark; "" unless the groups are those of the numbers of images in this
        very file, for want of others.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: a file is not consistent, or the two have other categories.
    """
    check_bounds(bounds)
    data = read_annotations(annotations)
    federated = data.get(EXHAUSTIVE) is True or any(FEDERATED[0] in i for i in data["images"])
    grouped = all(c.get("frequency") in FREQUENCIES for c in data["categories"])
    plain = as_lvis_counts(data["annotations"])
    if federated and grouped and plain and train is None and bounds is None:
        return data, ""
    if os.path.exists(annotations):
        data = read_annotation_file(annotations)
    here = without_unusable(data, os.fspath(annotations))
    source = here if train is None else without_unusable(read_annotation_file(train))
    categories = complete_categories(source, bounds)
    check_same_categories(here, categories, os.fspath(annotations), str(train))
    # Other bounds make groups of numbers of images, whatever the file's own groups are.
    counted = all("image_count" in c for c in data["categories"])
    known = train is not None or counted or (grouped and bounds is None)
    remark = (
        f"{os.fspath(annotations)} does not say how many training images show each class, so which "
        "are rare is not known: give --train-annotations TRAIN.json for APr, APc and APf."
    )
    content = complete(here, categories)
    if train is None and known:
        # The groups are the file's own, but how many images it has of a class itself is no count
        # of training images.
        own = sorted(data["categories"], key=operator.itemgetter("id"))
        for category, given in zip(content["categories"], own):
            for key in {"image_count", "instance_count"} - given.keys():
                del category[key]
    return content, "" if known else remark
