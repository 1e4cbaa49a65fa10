"""Masks as annotation and result files hold them: what is wrong with one, found before pycocotools
reads it, which checks nothing.

A segmentation is a list of polygons, ``[[x, y, x, y, ...], ...]``, or an RLE: ``{"size": [height,
width], "counts": a string, bytes or run lengths}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "LARGEST",
    "broken_rles",
    "rle_areas",
    "segmentation_fault",
    "type_fault",
    "usable_polygons",
    "with_integers",
]

# Of a coordinate, in pixels. pycocotools walks along outlines pixel by pixel, however far they go.
LARGEST = 1e6
# Masks that are unpacked at one time.
_BLOCK = 1024
# More than any image has pixels.
_DIGITS = 7


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
        if not all(type(run) in (int, float) and _is_whole(run, LARGEST**2) for run in counts):
            return "an RLE whose counts are not all run lengths"
    elif not isinstance(counts, (str, bytes)):
        return f"an RLE with counts={str(counts)[:40]}, expected a string or run lengths"
    return ""


def _is_length(value: Any) -> bool:
    # Exports of tables hold whole numbers with a point.
    is_number = isinstance(value, (int, float, np.integer))
    return is_number and bool(value > 0) and _is_whole(value, LARGEST)


def _is_whole(value: Any, most: float) -> bool:
    return bool(0 <= value <= most) and value == int(value)


def with_integers(segmentation: Any) -> Any:
    """
    Args:
        segmentation: one without a :func:`type_fault`.

    Returns:
        An RLE with integers as pycocotools needs them, if it had floats; else the same object.
    """
    if not (segmentation and isinstance(segmentation, dict)):
        return segmentation
    size, counts = segmentation["size"], segmentation["counts"]
    runs = counts if isinstance(counts, list) else ()
    if not any(isinstance(number, float) for number in (*size, *runs)):
        return segmentation
    counts = [int(run) for run in runs] if runs else counts
    return {**segmentation, "size": [int(length) for length in size], "counts": counts}


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
    first = np.cumsum(lengths) - lengths
    return rle_areas(counts, first, lengths, pixels) < 0


def rle_areas(
    counts: np.ndarray, first: np.ndarray, lengths: np.ndarray, pixels: np.ndarray
) -> np.ndarray:
    """Pixels that compressed RLEs cover.

    Args:
        counts: uint8, strings of masks.
        first: (N,) int64, where in ``counts`` each mask begins.
        lengths: (N,) int64, bytes of each; 0 for none, which covers nothing.
        pixels: (N,) int64, height times width of each.

    Returns:
        (N,) int64, -1 where a string does not describe a mask of its size.
    """
    areas = np.zeros(len(lengths), dtype=np.int64)
    blob, given = counts.data, np.flatnonzero(lengths)
    # Blocks that stay in the cache of one core.
    for start in range(0, len(given), _BLOCK):
        some = given[start : start + _BLOCK]
        spans = zip(first[some].tolist(), (first[some] + lengths[some]).tolist())
        joined = np.frombuffer(b"".join([blob[a:b] for a, b in spans]), dtype=np.uint8)
        areas[some] = _areas(joined, lengths[some], pixels[some])
    return areas


def _areas(counts: np.ndarray, lengths: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """:func:`rle_areas` of strings behind each other, none of them empty; the reverse of
    ``rleToString`` in COCO's ``maskApi.c``."""
    bits = counts - np.uint8(48)  # what is below wraps around to above 63
    stop = np.cumsum(lengths)
    # Five bits a byte, the sixth for "more follows"; the highest bit of the last is the sign.
    last = bits < 32
    broken = ~last[stop - 1]
    last[stop - 1] = True
    end = np.flatnonzero(last)
    after = np.searchsorted(end, stop)
    run = np.concatenate([[0], after[:-1]])
    digits = np.diff(end, prepend=-1)
    value = (bits[end] & 31).astype(np.int64)
    value -= (value & 16) << 1
    for place in range(1, min(int(digits.max()), _DIGITS)):
        longer = np.flatnonzero(digits > place)
        value[longer] = (value[longer] << 5) + (bits[end[longer] - place] & 31)
    for fault in (np.flatnonzero(bits > 63), end[digits > _DIGITS]):
        broken[np.searchsorted(stop, fault, side="right")] = True

    # From the fourth on a number is the difference to the last but one: sums over every other.
    total, area = np.zeros(len(run), dtype=np.int64), np.zeros(len(run), dtype=np.int64)
    sums = np.zeros(len(value) + 1, dtype=np.int64)  # one before the first
    for parity in (0, 1):
        sums[1 + parity :: 2] = np.cumsum(value[parity::2])
    for parity in (0, 1):
        is_first = run % 2 == parity
        begin, finish = (run + 1 - parity) // 2, (after + 1 - parity) // 2
        # The first number is of no chain: the even ones after it begin anew.
        base = np.repeat(np.where(is_first, sums[run + 1], sums[run]), finish - begin)
        length = sums[1 + parity :: 2] - base
        length[begin[is_first]] = value[run[is_first]]
        negative = np.flatnonzero(length < 0) * 2 + parity
        broken[np.searchsorted(after, negative, side="right")] = True
        covered = np.concatenate([[0], np.cumsum(length)])
        covered = covered[finish] - covered[begin]
        total += covered
        area += np.where(is_first, 0, covered)
    return np.where(broken | (total != pixels), -1, area)
