"""Where pasted masks begin and end, without pasting them.

Down a column of the image a pasted mask is linear between the rows of its M x M probabilities. So
each crossing of the threshold is one division, and what a mask costs depends on the width of its
box and on M, not on its height. Where rounding could decide, the pixel is computed by upstream's
own ``grid_sample``.

Names: N masks, M their side, K columns of all boxes behind each other, S segments between two rows
in one column.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["changes"]

# Values this near to the threshold are computed by upstream's operations. Far above the error of
# two interpolations in float32, about 1e-5.
_BAND = 1e-4
# Pixels of one mask that are computed together with those of others.
_FEW = 64


def changes(
    masks: torch.Tensor, boxes: np.ndarray, crops: np.ndarray, height: int, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels from which on a mask has the other value, down the columns of the image.

    Args:
        masks: (N, M, M) float32, finite, on the CPU.
        boxes: (N, 4) float32, XYXY, finite, of positive width and height.
        crops: (N, 4) int64, XYXY: pixels that a mask may cover.
        height: of the image.
        threshold: in (0, 1].

    Returns:
        Masks (B,) int64 and positions (B,) int64, ``x * height + y``, in any order. What occurs
        twice changes nothing.
    """
    side = masks.shape[1]
    widths = crops[:, 2] - crops[:, 0]
    owner = np.repeat(np.arange(len(crops)), widths)
    column = np.arange(len(owner)) - np.repeat(np.cumsum(widths) - widths, widths)
    column += crops[owner, 0]
    values = _columns(masks.numpy(), _coordinates(column, boxes, owner, 0), owner)
    # Row k of the mask, -1 to M with the zeros around it, lies at this height in the image.
    scale = (boxes[:, 3].astype(np.float64) - boxes[:, 1])[:, None] / side
    rows = boxes[:, 1, None] + scale * (np.arange(-1, side + 1) + 0.5) - 0.5
    first = np.ceil(rows.clip(crops[:, 1, None], crops[:, 3, None])).astype(np.int64)

    zone = (values > threshold - _BAND).astype(np.uint8)
    zone += values >= threshold + _BAND
    # Both ends below, or both above: nothing happens between them.
    both = zone[:, :-1] + zone[:, 1:]
    place, row = np.divmod(np.flatnonzero((both > 0) & (both < 4)), side + 1)
    mask = owner[place]
    start, stop = first[mask, row], first[mask, row + 1]
    begin, end = (values[place, row + k].astype(np.float64) for k in (0, 1))
    top, step = rows[mask, row], scale[mask, 0]

    with np.errstate(divide="ignore", invalid="ignore"):

        def reached(value: float) -> np.ndarray:
            return top + (value - begin) / (end - begin) * step

        cross = (begin >= threshold) != (end >= threshold)
        at = np.ceil(np.where(cross, reached(threshold), 0)).clip(start, stop).astype(np.int64)
        near = reached(threshold - _BAND), reached(threshold + _BAND)
    flat = begin == end
    low = np.where(flat, start, np.ceil(np.minimum(*near) - 1e-6).clip(start, stop))
    high = np.where(flat, stop, np.floor(np.maximum(*near) + 1e-6).clip(start - 1, stop - 1) + 1)
    low, high = low.astype(np.int64), high.astype(np.int64)

    # Pixels that rounding could decide.
    number = np.maximum(high - low, 0)
    segment = np.repeat(np.arange(len(number)), number)
    y = np.arange(len(segment)) - np.repeat(np.cumsum(number) - number - low, number)
    x, of = column[place[segment]], mask[segment]
    found = np.where(y < at[segment], begin[segment] >= threshold, end[segment] >= threshold)
    points = np.stack([_coordinates(x, boxes, of, 0), _coordinates(y, boxes, of, 1)], axis=1)
    wrong = np.flatnonzero(found != (_sampled(masks, points, of) >= threshold))
    flipped = x[wrong] * height + y[wrong]
    crossing = column[place] * height + at
    return (
        np.concatenate([mask[cross], of[wrong], of[wrong]]),
        np.concatenate([crossing[cross], flipped, flipped + 1]),
    )


def _coordinates(pixels: np.ndarray, boxes: np.ndarray, owner: np.ndarray, axis: int) -> np.ndarray:
    """Pixel centers in the coordinates of ``grid_sample``; upstream's operations in its order."""
    low, high = boxes[owner, axis], boxes[owner, axis + 2]
    centers = pixels.astype(np.float32) + np.float32(0.5)
    return (centers - low) / (high - low) * np.float32(2) - np.float32(1)


def _columns(masks: np.ndarray, along_x: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(K, M + 2) float32: masks at the columns of pixels, with the zeros above and below."""
    side = masks.shape[1]
    padded = np.zeros((len(masks), side + 2, side + 2), dtype=np.float32)
    padded[:, 1:-1, 1:-1] = masks.transpose(0, 2, 1)
    position = (((along_x + 1) * side - 1) / 2).clip(-1, side)
    left = np.floor(position).clip(max=side - 1)
    weight = (position - left).astype(np.float32)[:, None]
    index = owner * (side + 2) + left.astype(np.int64) + 1
    flat = padded.reshape(-1, side + 2)
    values = flat[index + 1]
    values *= weight
    values += flat[index] * (1 - weight)
    return values


def _sampled(masks: torch.Tensor, points: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Values of the masks ``owner`` (P,) at points (P, 2), by ``grid_sample``."""
    order = np.argsort(owner, kind="stable")
    used, start, count = np.unique(owner[order], return_index=True, return_counts=True)
    out = np.zeros(len(owner), dtype=np.float32)
    groups = np.flatnonzero(count <= _FEW), *np.flatnonzero(count > _FEW)[:, None]
    for group in filter(len, groups):
        place = np.arange(count[group].max())
        inside = place < count[group, None]
        taken = order[np.minimum(start[group, None] + place, len(order) - 1)]
        grid = torch.from_numpy(np.ascontiguousarray(points[taken], dtype=np.float32))
        sampled = F.grid_sample(
            masks[torch.from_numpy(used[group])][:, None], grid[:, None], align_corners=False
        )
        out[taken[inside]] = sampled[:, 0, 0].numpy()[inside]
    return out
