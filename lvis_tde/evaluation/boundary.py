"""Boundary regions for Boundary IoU (Cheng et al. 2021, "Boundary IoU: Improving Object-Centric
Image Segmentation Evaluation", section 4)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils

from .rle import encode_crops

DILATION_RATIO = 0.02


def boundary_rles(rles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pixels of each mask within 2% of the image diagonal of its contour.

    The distance is the paper's: as many erosions by 3 x 3 pixels, at least one, with everything
    outside the image taken as background.

    Args:
        rles: compressed RLEs.

    Returns:
        RLEs of the boundary regions, of the same sizes.
    """
    out = []
    for rle, (x, y, w, h) in zip(rles, mask_utils.toBbox(rles).astype(int) if rles else ()):
        height, width = rle["size"]
        distance = max(round(DILATION_RATIO * math.sqrt(height**2 + width**2)), 1)
        window = 2 * distance + 1
        if min(w, h) < window:
            # No pixel is further than this from the contour.
            out.append(rle)
            continue
        mask = mask_utils.decode(rle).view(np.bool_)[y : y + h, x : x + w]
        sums = np.zeros((h + 1, w + 1), dtype=np.int32)
        np.cumsum(mask, axis=0, out=sums[1:, 1:])
        np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
        inner = sums[window:, window:] - sums[:-window, window:]
        inner -= sums[window:, :-window] - sums[:-window, :-window]
        edge = slice(distance, -distance)
        mask[edge, edge] &= inner < window**2
        counts, _ = encode_crops([mask], np.array([[x, y]]), (height, width))
        out.append({"size": rle["size"], "counts": counts.tobytes()})
    return out
