"""RLEs that are none, against a decoder in plain Python."""

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from lvis_tde.data.masks import (
    broken_rles,
    rle_areas,
    segmentation_fault,
    type_fault,
    usable_polygons,
)


def decode(data):
    """Run lengths of a compressed RLE, as ``rleFrString`` reads them; None if it ends too early."""
    runs, at = [], 0
    while at < len(data):
        value, digit, more = 0, 0, True
        while more:
            if at == len(data) or not 0 <= data[at] - 48 < 64:
                return None
            c = data[at] - 48
            value |= (c & 31) << 5 * digit
            more, at, digit = bool(c & 32), at + 1, digit + 1
            if not more and c & 16:
                value -= 1 << 5 * digit
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def is_broken(data, pixels):
    runs = decode(data)
    return bool(data) and (runs is None or min(runs) < 0 or sum(runs) != pixels)


@pytest.mark.parametrize("seed", range(4))
def test_broken_rles_are_those_that_do_not_fill_their_image(seed):
    rng = np.random.default_rng(seed)
    texts, pixels = [b"", b"0", b"\x00\xff", b"Po1", b"o" * 40], [9, 0, 9, 9, 9]
    for i in range(300):
        height, width = rng.integers(1, 60, 2).tolist()
        mask = (rng.random((height, width)) < rng.choice([0.0, 0.02, 0.5, 1.0])).astype(np.uint8)
        data = bytearray(mask_utils.encode(np.asfortranarray(mask))["counts"])
        area = height * width
        if i % 3 == 1:
            data[rng.integers(len(data))] = rng.integers(40, 118)
        elif i % 3 == 2:
            data = data[: rng.integers(len(data) + 1)]
            area += int(rng.integers(2))
        texts.append(bytes(data))
        pixels.append(area)
    expected = [is_broken(text, area) for text, area in zip(texts, pixels)]
    blob = np.frombuffer(b"".join(texts), dtype=np.uint8)
    lengths = np.array([len(text) for text in texts])
    found = broken_rles(blob, lengths, pixels)
    assert found.tolist() == expected and 60 < sum(expected) < 240
    # In any order, and of some masks only.
    first, order = np.cumsum(lengths) - lengths, rng.permutation(len(texts))[:200]
    areas = rle_areas(blob, first[order], lengths[order], np.array(pixels)[order])
    for i, area in zip(order.tolist(), areas.tolist()):
        runs = decode(texts[i])
        assert area == (-1 if expected[i] else sum(runs[1::2]) if texts[i] else 0)


def test_nothing_is_not_broken():
    assert broken_rles(np.zeros(0, np.uint8), [], []).tolist() == []
    assert broken_rles(np.zeros(0, np.uint8), [0, 0], [4, 4]).tolist() == [False, False]


RLE = {"size": [2, 3], "counts": [1, 2, 3]}


@pytest.mark.parametrize(
    "segmentation, fault",
    [
        ([[0, 0, 2, 0, 2, 2]], ""),
        (RLE, ""),
        ({**RLE, "counts": [6]}, ""),
        ({"size": [2.0, 3.0], "counts": [1.0, 2.0, 3]}, ""),
        ({**RLE, "size": [2.5, 3]}, "size"),
        ({**RLE, "size": [float("nan"), 3]}, "size"),
        ({**RLE, "counts": [1, 2.5, 2.5]}, "not all run lengths"),
        ({**RLE, "counts": [True, 5]}, "not all run lengths"),
        (None, "neither polygons nor an RLE"),
        ([], "neither polygons nor an RLE"),
        (7, "neither polygons nor an RLE"),
        ([7], "no lists of numbers"),
        ([["a", 1, 2, 3, 4, 5]], "no number"),
        ([[1, 2]], "no polygon"),
        ([[0, 0, 2, 0, 2, float("nan")]], "no polygon"),
        ([[0, 0, 2, 0, 2, 1e9]], "no polygon"),
        ({**RLE, "size": [2]}, "size"),
        ({**RLE, "size": [2, -3]}, "size"),
        ({**RLE, "size": [3, 2]}, r"of size \[3, 2\] in an image of \[2, 3\]"),
        ({**RLE, "counts": [1, 2]}, "do not fill"),
        ({**RLE, "counts": [-1, 7]}, "not all run lengths"),
        ({**RLE, "counts": "06é"}, "do not fill"),
        ({**RLE, "counts": None}, "counts=None"),
        ({"size": [2, 3]}, "counts=None"),
    ],
)
def test_faults(segmentation, fault):
    found = segmentation_fault(segmentation, 2, 3)
    assert bool(found) == bool(fault)
    if fault:
        with pytest.raises(ValueError, match=fault):
            raise ValueError(found)


def test_an_image_of_unknown_size_takes_any_rle():
    assert segmentation_fault(RLE, 0, 0) == "" and type_fault(None) == ""


def test_usable_polygons_have_three_finite_points():
    good, bad = [0, 0, 2, 0, 2, 2], [[0, 0, 1], [0, 0, 2, 0], [0] * 7, [float("inf")] * 6]
    assert usable_polygons([bad[0], good, *bad[1:]]) == [good]
