"""Masks as annotation and result files hold them: what is wrong with one, found before pycocotools
reads it, which checks nothing.

A segmentation is a list of polygons, ``[[x, y, x, y, ...], ...]``, or an RLE: ``{"size": [height,
width], "counts": a string, bytes or run lengths}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["LARGEST", "broken_rles", "segmentation_fault", "type_fault", "usable_polygons"]

# Of a coordinate, in pixels. pycocotools walks along outlines pixel by pixel, however far they go.
LARGEST = 1e6
# Masks that are unpacked at one time.
_BLOCK = 4096


def type_fault(segmentation: Any) -> str:
    """What keeps a value from being a segmentation at all.

    Args:
        segmentation: of a JSON file; None and what is empty are no segmentation, which is no fault.

    Returns:
        The fault in words, "" for none.
    """
    if segmentation is None:
        return ""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, (list, tuple, np.ndarray)):
                return f"polygons that are no lists of numbers, such as {str(polygon)[:40]}"
            try:
                sum(polygon)
            except (TypeError, OverflowError):
                return f"polygons with something that is no number: {str(polygon)[:80]}"
        return ""
    if not isinstance(segmentation, dict):
        return f"a segmentation that is neither polygons nor an RLE: {str(segmentation)[:80]!r}"
    if not segmentation:
        return ""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(map(_is_length, size)):
        return f"an RLE with size={str(size)[:40]}, expected [height, width]"
    if isinstance(counts, list):
        if not all(type(run) is int and 0 <= run <= LARGEST**2 for run in counts):
            return "an RLE whose counts are not all run lengths"
    elif not isinstance(counts, (str, bytes)):
        return f"an RLE with counts={str(counts)[:40]}, expected a string or run lengths"
    return ""


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and bool(0 < value <= LARGEST)


def segmentation_fault(segmentation: Any, height: int, width: int) -> str:
    """What keeps a segmentation from being a mask of an image.

    Args:
        segmentation: of a JSON file.
        height, width: of the image; 0 for unknown, which fits any RLE.

    Returns:
        The fault in words, "" for none.
    """
    if not segmentation:
        return f"a segmentation that is neither polygons nor an RLE: {segmentation!r}"
    fault = type_fault(segmentation)
    if fault:
        return fault
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if len(polygon) < 4 or not _in_range(polygon):
                kind = "a segmentation with a polygon that is no polygon"
                return f"{kind}: {str(polygon)[:80]}"
        return ""
    size = [int(length) for length in segmentation["size"]]
    if height and width and size != [height, width]:
        return f"an RLE of size {size} in an image of {[height, width]}"
    counts = segmentation["counts"]
    if isinstance(counts, list):
        wrong = sum(counts) != size[0] * size[1]
    else:
        data = counts.encode("utf-8") if isinstance(counts, str) else counts
        blob = np.frombuffer(data, dtype=np.uint8)
        wrong = bool(broken_rles(blob, [len(blob)], [size[0] * size[1]])[0])
    return f"an RLE whose counts do not fill its size {size}: {str(counts)[:40]!r}" if wrong else ""


def usable_polygons(segmentation: Sequence[Sequence[float]]) -> list[Any]:
    """The polygons that have an inside: three points or more, all of them finite.

    Args:
        segmentation: polygons without a :func:`type_fault`.

    Returns:
        Some of them, or all.
    """
    return [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0 and _in_range(p)]


def _in_range(polygon: Sequence[float]) -> bool:
    # A NaN may escape the least and the greatest, but not the sum.
    total = sum(polygon)
    return bool(total == total and -LARGEST <= min(polygon) and max(polygon) <= LARGEST)


def broken_rles(
    counts: np.ndarray, lengths: Sequence[int] | np.ndarray, pixels: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Which compressed RLEs do not describe a mask of their size.

    Args:
        counts: uint8, the strings of N masks behind each other.
        lengths: (N,) bytes of each; 0 for none, which is no fault.
        pixels: (N,) height times width of each.

    Returns:
        (N,) bool.
    """
    lengths, pixels = np.asarray(lengths, np.int64), np.asarray(pixels, np.int64)
    ends = np.cumsum(lengths)
    parts = [np.zeros(0, dtype=np.bool_)]
    for start in range(0, len(lengths), _BLOCK):
        some = slice(start, start + _BLOCK)
        first = ends[start] - lengths[start]
        blob = counts[first : ends[some][-1]]
        parts.append(_broken(blob, lengths[some], pixels[some]))
    return np.concatenate(parts)


def _broken(counts: np.ndarray, lengths: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """:func:`broken_rles` in one piece; the reverse of ``rleToString`` of COCO's ``maskApi.c``."""
    number = len(lengths)
    if not len(counts):
        return np.zeros(number, dtype=np.bool_)
    owner = np.repeat(np.arange(number), lengths)
    value = counts.astype(np.int64) - 48
    wrong = (value < 0) | (value > 63)
    # Five bits a byte, the sixth for "more follows"; the highest bit of the last is the sign.
    last = (value & 32) == 0
    of_mask = (np.cumsum(lengths) - 1)[lengths > 0]
    wrong[of_mask] |= ~last[of_mask]
    last[of_mask] = True
    begin = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    digit = np.arange(len(value)) - np.repeat(begin, np.diff(begin, append=len(value)))
    wrong |= digit > 6  # more than any image has pixels
    digit = np.minimum(digit, 6)
    runs = np.add.reduceat((value & 31) << 5 * digit, begin)
    end = np.flatnonzero(last)
    runs -= ((value[end] & 16) > 0) * (1 << 5 * (digit[end] + 1))
    # From the fourth on a number is the difference to the last but one.
    of_run = owner[begin]
    sizes = np.bincount(of_run, minlength=number)
    first = np.cumsum(sizes) - sizes
    place = np.arange(len(runs)) - first[of_run]
    length = np.where(place == 0, runs, 0)
    for parity in (1, 0):
        chained = (place % 2 == parity) & (place > 0)
        total = np.concatenate([[0], np.cumsum(np.where(chained, runs, 0))])
        length += np.where(chained, total[1:] - total[first[of_run]], 0)
    broken = np.bincount(owner[wrong], minlength=number) > 0
    broken |= np.bincount(of_run[length < 0], minlength=number) > 0
    return broken | ((lengths > 0) & (_sums(length, of_run, number) != pixels))


def _sums(values: np.ndarray, owner: np.ndarray, number: int) -> np.ndarray:
    out = np.zeros(number, dtype=np.int64)
    np.add.at(out, owner, values)
    return out
