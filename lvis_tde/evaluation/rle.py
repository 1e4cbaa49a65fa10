"""Run-length encoding of instance masks from crops of their boxes, in NumPy alone.

``pycocotools.mask.encode`` walks over every pixel of the image for every mask, and needs a
transposed copy of it first. An instance mask is empty outside its box, so only the crop is read
here; the strings are byte for byte those of ``pycocotools`` (``rleEncode`` and ``rleToString`` in
its ``maskApi.c``).

Names: N masks, H x W the image. Runs go down the columns, as everywhere in COCO's format.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["encode_changes", "encode_crops", "encode_masks", "rle_dicts"]


def encode_crops(
    crops: Iterable[np.ndarray], corners: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Encode masks of image size that are False outside their crops.

    Args:
        crops: N bool masks of any shapes, which may be empty. They are read one by one, so a
            generator never has more than one in memory.
        corners: (N, 2) integer, (x0, y0) of each crop, which lies inside the image.
        size: (H, W) of the image.

    Returns:
        ``(counts, lengths)``: the compressed counts of all masks behind each other as uint8, and
        how many bytes each takes, (N,) int32.
    """
    keys, number = _changes(crops, corners, size)
    return _compress(*_counts(*_bounds(keys, number, size[0] * size[1]), size[0] * size[1]))


def encode_changes(
    masks: np.ndarray, positions: np.ndarray, number: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Encode masks that are False at first and known by where they change.

    Args:
        masks: (B,) int64, which mask changes, in any order.
        positions: (B,) int64, ``x * H + y``, from which on it has the other value, up to H * W.
            What occurs twice changes nothing.
        number: N.
        size: (H, W) of the image.

    Returns:
        ``(counts, lengths)`` as :func:`encode_crops`.
    """
    area = size[0] * size[1]
    # Nearly in order already, which this kind of sorting makes use of.
    keys = np.sort(masks * (area + 1) + positions, kind="stable")
    return _compress(*_counts(*_bounds(keys, number, area), area))


def encode_masks(masks: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode full-image masks, reading little more than their boxes.

    Args:
        masks: (N, H, W) bool. A mask may leave its box: that is noticed, and costs time, not
            exactness.
        boxes: (N, 4) float, (x0, y0, x1, y1) in pixels; need not be finite or inside the image.

    Returns:
        ``(counts, lengths)`` as :func:`encode_crops`.

    Raises:
        ValueError: the shapes do not fit, or the masks are not bool.
    """
    masks, boxes = np.asarray(masks), np.asarray(boxes, dtype=np.float64)
    if masks.ndim != 3 or masks.dtype != np.bool_ or boxes.shape != (len(masks), 4):
        raise ValueError(
            f"masks must be bool of shape (N, H, W) with (N, 4) boxes, got {masks.dtype} "
            f"{masks.shape} and boxes {boxes.shape}"
        )
    n, height, width = masks.shape
    # One pixel of margin: pasting interpolates, which reaches across the border of the box.
    low = np.floor(np.nan_to_num(boxes[:, :2])) - 1
    high = np.ceil(np.nan_to_num(boxes[:, 2:])) + 1
    limit = (width, height)
    low, high = np.clip(low, 0, limit).astype(np.int64), np.clip(high, 0, limit).astype(np.int64)
    size, area = (height, width), height * width
    bounds, sizes = _bounds(*_changes(_crops(masks, low, high), low, size), area)
    inside = _segment_sum(bounds[1::2] - bounds[::2], sizes // 2)
    if np.count_nonzero(masks) != inside.sum():
        outside = [i for i, mask in enumerate(masks) if np.count_nonzero(mask) != inside[i]]
        for i in outside:
            rows, columns = masks[i].any(axis=1).nonzero()[0], masks[i].any(axis=0).nonzero()[0]
            low[i], high[i] = (columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)
        bounds, sizes = _bounds(*_changes(_crops(masks, low, high), low, size), area)
    return _compress(*_counts(bounds, sizes, area))


def rle_dicts(
    counts: np.ndarray, lengths: np.ndarray, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Encoded masks as in COCO's result files.

    Args:
        counts: from :func:`encode_crops`.
        lengths: likewise, (N,).
        size: (H, W) of the image.

    Returns:
        N dicts ``{"size": [H, W], "counts": str}``.
    """
    text, ends = counts.tobytes().decode("ascii"), np.cumsum(lengths).tolist()
    return [{"size": list(size), "counts": text[a:b]} for a, b in zip([0, *ends], ends)]


def _crops(masks: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    corners = zip(masks, low.tolist(), high.tolist())
    return [mask[y0:y1, x0:x1] for mask, (x0, y0), (x1, y1) in corners]


def _changes(
    crops: Iterable[np.ndarray], corners: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, int]:
    """Keys ``mask * (H * W + 1) + position`` of where masks change, ascending, and how many masks
    there are."""
    height, width = size
    parts, wide = [np.zeros(0, dtype=np.int64)], [1]
    for crop in crops:
        rows, columns = crop.shape
        # With a row of zeros above and below, a column changes an even number of times.
        flat = np.zeros((rows + 2) * columns, dtype=np.bool_)
        flat[columns : (rows + 1) * columns].reshape(rows, columns)[:] = crop
        # The methods, since the functions of their names take longer than most crops.
        parts.append((flat[columns:] != flat[: (rows + 1) * columns]).nonzero()[0])
        wide.append(max(columns, 1))
    number, sizes = len(parts) - 1, np.array([len(part) for part in parts[1:]], dtype=np.int64)
    row, column = np.divmod(np.concatenate(parts), np.repeat(np.array(wide[1:], np.int64), sizes))
    origin = corners[:number, 0].astype(np.int64) * height + corners[:number, 1]
    origin += np.arange(number) * (height * width + 1)
    return np.sort(np.repeat(origin, sizes) + column * height + row), number


def _bounds(keys: np.ndarray, number: int, area: int) -> tuple[np.ndarray, np.ndarray]:
    """Alternating starts and ends of runs, as positions in the whole image, and how many each mask
    has."""
    # A run that goes on at the top of the next column ends and begins at one position.
    same = keys[1:] == keys[:-1]
    if same.any():
        first = np.flatnonzero(np.concatenate([[True], ~same]))
        keys = keys[first[np.diff(first, append=len(keys)) % 2 == 1]]
    owner, bounds = np.divmod(keys, area + 1)
    return bounds, np.bincount(owner, minlength=number)


def _segment_sum(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    total = np.concatenate([[0], np.cumsum(values)])
    ends = np.cumsum(sizes)
    return total[ends] - total[ends - sizes]


def _counts(bounds: np.ndarray, sizes: np.ndarray, area: int) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths, background first, from alternating starts and ends.

    Args:
        bounds: (B,) ascending within a mask.
        sizes: (N,) bounds per mask, even.
        area: pixels of the image.

    Returns:
        All run lengths and how many each mask has.
    """
    ends = np.cumsum(sizes + 2)
    points = np.zeros(len(bounds) + 2 * len(sizes), dtype=np.int64)
    points[ends - 1] = area
    points[np.arange(len(bounds)) + 2 * np.repeat(np.arange(len(sizes)), sizes) + 1] = bounds
    keep = np.ones(len(points), dtype=np.bool_)
    keep[ends - 1] = False
    counts = np.diff(points, append=0)
    # A foreground run that reaches the last pixel is the last count: no empty background follows.
    reaches = (counts[ends - 2] == 0) & (sizes > 0)
    keep[ends[reaches] - 2] = False
    return counts[keep], sizes + 1 - reaches


def _compress(counts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's string: from the fourth on differences to the last but one, five bits per byte."""
    value = counts.copy()
    value[2:] -= counts[:-2]
    first = np.cumsum(sizes) - sizes
    for place in range(3):
        early = first[sizes > place] + place
        value[early] = counts[early]
    characters = np.ones(len(value), dtype=np.int64)
    for bits in range(4, 60, 5):
        longer = (value >= 1 << bits) | (value < -(1 << bits))
        if not longer.any():
            break
        characters += longer
    offsets = np.cumsum(characters) - characters
    out = np.empty(int(characters.sum()), dtype=np.uint8)
    for i in range(int(characters.max(initial=0))):
        some = np.flatnonzero(characters > i)
        more = (characters[some] > i + 1) << 5
        out[offsets[some] + i] = ((value[some] >> 5 * i) & 31 | more) + 48
    return out, _segment_sum(characters, sizes).astype(np.int32)
