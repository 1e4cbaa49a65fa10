"""The glyph sets with the font that is on the system."""

import numpy as np
import pytest

from lvis_tde.data.generation.glyph_font import GlyphFont, find_font
from lvis_tde.data.generation.glyph_rendering import draw_scene, make_sprite
from lvis_tde.data.generation.glyph_table import read_glyphs
from lvis_tde.data.glyphs import make_glyph_lvis


@pytest.fixture(scope="module")
def font():
    try:
        return GlyphFont(find_font())
    except ValueError as error:
        pytest.skip(str(error))


def test_it_has_every_glyph_in_color_and_no_two_look_the_same(font):
    codepoints = [glyph.codepoint for glyph in read_glyphs()]
    font.check(codepoints)
    pictures = {font.draw(codepoint).tobytes() for codepoint in codepoints}
    assert len(pictures) == len(codepoints)


def test_every_glyph_can_be_drawn_and_its_silhouette_covers_its_picture(font):
    for glyph in read_glyphs():
        sprite = make_sprite(font.draw(glyph.codepoint))
        (polygons,) = draw_scene([glyph.codepoint], [sprite], [0], (96, 128)).polygons
        assert polygons, glyph
        assert sprite.silhouette[sprite.colors[..., 3] > 0.6].all(), glyph


def test_a_set_is_drawn_with_it(font, tmp_path):
    few = {"num_train": 30, "num_calib": 10, "num_val": 10, "num_classes": 30, "image_size": 96}
    folder = make_glyph_lvis(tmp_path, jobs=1, **few)
    assert len(list((folder / "train").iterdir())) == 30


def test_codepoints_that_are_no_characters_are_missing(font):
    for codepoint in (0x10FFFF, 0x378, 0xE000):
        with pytest.raises(ValueError, match=f"no glyph U\\+{codepoint:X}"):
            font.draw(codepoint)
    assert np.asarray(font.draw(0x1F355)).shape[2] == 4
