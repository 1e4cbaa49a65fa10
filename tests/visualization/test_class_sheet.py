"""The sheet shows every class, from the most frequent to the rarest."""

import numpy as np
import pytest

from lvis_tde.visualization.class_sheet import draw_class_sheet


def _flat(color, opacity=None):
    crop = np.full((20, 20, 3), color, np.uint8)
    return crop if opacity is None else np.dstack([crop, np.full((20, 20), opacity, np.uint8)])


def _place(sheet, color):
    """Middle (row, column) of a color, None where it is not."""
    found = np.argwhere((sheet == np.array(color, np.uint8)).all(-1))
    return tuple(found.mean(0)) if len(found) else None


COLORS = [(250, 0, 250), (0, 250, 250), (250, 250, 0), (0, 0, 250), (90, 20, 160)]


def test_classes_are_in_order_of_their_images():
    counts = [5, 400, 5, 40, 1]
    sheet = draw_class_sheet(
        [_flat(color) for color in COLORS], list("abcde"), counts, list("rfrcr"), columns=3
    )
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    places = [_place(sheet, color) for color in COLORS]
    assert None not in places
    read = sorted(range(5), key=lambda i: (round(places[i][0] / 100), places[i][1]))
    assert read == [1, 3, 0, 2, 4]


def test_many_classes_are_all_there():
    colors = [(6 * i, 255 - 6 * i, 128 + i % 2 * 100) for i in range(40)]
    names = [f"a_rather_long_name_of_class_{i}" for i in range(40)]
    sheet = draw_class_sheet([_flat(c) for c in colors], names, range(40), ["c"] * 40)
    assert all(_place(sheet, color) is not None for color in colors)
    height, width = sheet.shape[:2]
    assert 0.6 < width / height < 1.6 and width < 2000


def test_what_is_transparent_is_not_there():
    options = names, counts, groups = ["x"], [1], ["r"]
    assert _place(draw_class_sheet([_flat(COLORS[0], 255)], *options), COLORS[0])
    clear = draw_class_sheet([_flat(COLORS[0], 0)], *options)
    assert _place(clear, COLORS[0]) is None
    white = draw_class_sheet([_flat((255, 255, 255))], *options)
    np.testing.assert_array_equal(clear, white)


def test_credit_and_title_are_written():
    def draw(**options):
        return draw_class_sheet([_flat(COLORS[0])], ["x"], [1], ["r"], **options)

    plain, credited = draw(), draw(credit="Somebody")
    assert credited.shape[0] > plain.shape[0]
    assert (credited[-20:] < 200).any()
    assert not np.array_equal(plain, draw(title="Other words"))


def test_sheet_mistakes():
    with pytest.raises(ValueError, match=r"\[1, 2, 1, 1\]"):
        draw_class_sheet([_flat(COLORS[0])], ["x", "y"], [1], ["r"])
    with pytest.raises(ValueError, match=r"\[0, 0, 0, 0\]"):
        draw_class_sheet([], [], [], [])
