"""What depends on a box alone, once for all detections that share it.

With class-agnostic boxes a region is detected as several classes, each with the same box.
"""

from __future__ import annotations

import torch
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["distinct_boxes", "distinct_rows", "stacked"]


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a matrix, each once, in rising order.

    Args:
        rows: (N, M).

    Returns:
        tuple: int64 (U,), where each distinct row is found first; int64 (N,), which of the U
        distinct rows each row is.
    """
    unique, where = torch.unique(rows, dim=0, return_inverse=True)
    # A trace would keep the length of a range.
    order = torch.ones_like(where).cumsum(0) - 1
    first = torch.zeros_like(unique[:, 0], dtype=torch.int64)
    return first.scatter_reduce(0, where, order, "amin", include_self=False), where


def distinct_boxes(instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]] | None:
    """:func:`distinct_rows` of each image's ``pred_boxes``.

    Args:
        instances: of N images.

    Returns:
        tuple: for each image what :func:`distinct_rows` gives, as two lists; None if no two
        detections of an image share a box (in a trace, which holds for other images, never None).
    """
    found = [distinct_rows(one.pred_boxes.tensor) for one in instances]
    first, where = [first for first, _ in found], [where for _, where in found]
    if not torch.jit.is_tracing() and sum(map(len, first)) == sum(map(len, where)):
        return None
    return first, where


def stacked(indices: list[Tensor], rows: list[Tensor]) -> Tensor:
    """Indices into each image's own rows as indices into the rows of all images in a row.

    Args:
        indices: int64, one tensor an image.
        rows: one tensor an image, as long as the image has rows.

    Returns:
        Tensor: int64, as many as there are indices in all.
    """
    start, moved = 0, []
    for index, own in zip(indices, rows):
        moved.append(index + start)
        start = start + own.shape[0]
    return torch.cat(moved)
