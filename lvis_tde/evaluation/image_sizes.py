"""Images whose size the annotation file does not say: what is drawn in them would be empty."""

from __future__ import annotations

import numpy as np

from .errors import complain
from .ground_truth import GroundTruth

__all__ = ["check_sizes"]


def check_sizes(truth: GroundTruth, objects: np.ndarray, images: np.ndarray) -> None:
    """Refuse to make masks of polygons and boxes without the size of their image.

    Args:
        truth: ground truth.
        objects: (K,) int64, positions of those whose masks are needed. An RLE has its own size.
        images: int64, positions of images in which something else is drawn.

    Raises:
        ValueError: naming the first image and how many there are.
    """
    unknown = (truth.image_sizes == 0).any(axis=1)
    if not unknown.any():
        return
    objects = objects[[not isinstance(truth.segmentations[i], dict) for i in objects.tolist()]]
    drawn = np.union1d(truth.images[objects], images)
    complain(
        [truth.image_ids[i] for i in drawn[unknown[drawn]].tolist()],
        "images without 'height' and 'width'",
        "masks of polygons and boxes need them: add both to 'images' of the annotation file",
    )
