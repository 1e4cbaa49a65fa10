"""A color font made on the spot, so that the tests of the glyph sets need none on the system."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import (
    BitmapSizeTable,
    SbitLineMetrics,
    Strike,
    eblc_index_sub_table_1,
)
from PIL import Image, ImageDraw

from lvis_tde.data.generation.glyph_table import read_glyphs

SIDE = 64
EVERY_GLYPH = tuple(glyph.codepoint for glyph in read_glyphs())


def glyph_picture(codepoint: int, flavor: int = 0) -> Image.Image:
    """A blob with a spot, of a color and an outline that follow from the code point."""
    rng = np.random.default_rng([codepoint, flavor])
    hue = rng.random()
    colors = [
        tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue + turn, 0.9, 0.9)) for turn in (0, 0.4)
    ]
    picture = Image.new("RGBA", (SIDE, SIDE))
    draw = ImageDraw.Draw(picture)
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    radii = SIDE / 2 * rng.uniform(0.65, 1.0, size=8)
    corners = SIDE / 2 + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    draw.polygon([tuple(corner) for corner in corners.tolist()], fill=colors[0])
    x, y = rng.uniform(0.35, 0.65, size=2) * SIDE
    draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=colors[1])
    return picture


def dust_picture(codepoint: int) -> Image.Image:
    """Specks too small for an annotation."""
    picture = np.zeros((SIDE, SIDE, 4), np.uint8)
    picture[::9, ::9] = (255, codepoint % 256, 0, 255)
    return Image.fromarray(picture)


def write_color_font(
    path: Path,
    codepoints: Iterable[int] = EVERY_GLYPH,
    picture: Callable[[int], Image.Image] = glyph_picture,
) -> Path:
    """Write a TrueType font with a PNG bitmap per glyph (CBDT), as Noto Color Emoji is.

    Args:
        path: of the font file.
        codepoints: that it has glyphs for.
        picture: of a code point, RGBA, 64 x 64.
    """
    names = {codepoint: f"u{codepoint:X}" for codepoint in sorted(codepoints)}
    order = [".notdef", *names.values()]
    builder = FontBuilder(SIDE, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupHorizontalMetrics({name: (SIDE, 0) for name in order})
    builder.setupHorizontalHeader(ascent=SIDE, descent=0)
    builder.setupNameTable({"familyName": "Test Color", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=SIDE, usWinAscent=SIDE)
    builder.setupPost()

    missing = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 255))
    pictures = [missing, *map(picture, names)]
    bitmaps = {name: _bitmap(picture) for name, picture in zip(order, pictures)}
    data = builder.font["CBDT"] = newTable("CBDT")
    data.version, data.strikeData = 3.0, [bitmaps]
    index = builder.font["CBLC"] = newTable("CBLC")
    index.version, index.strikes = 3.0, [_strike(order)]
    builder.save(path)
    return path


def _bitmap(picture: Image.Image):
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    bitmap = cbdt_bitmap_format_17(b"", None)
    bitmap.metrics = _fill(
        SmallGlyphMetrics(), height=SIDE, width=SIDE, BearingX=0, BearingY=SIDE, Advance=SIDE
    )
    bitmap.imageData = file.getvalue()
    return bitmap


def _strike(order: list[str]) -> Strike:
    strike = Strike()
    line = _fill(
        SbitLineMetrics(),
        ascender=SIDE, descender=0, widthMax=SIDE,
        caretSlopeNumerator=0, caretSlopeDenominator=0, caretOffset=0,
        minOriginSB=0, minAdvanceSB=0, maxBeforeBL=0, minAfterBL=0, pad1=0, pad2=0,
    )  # fmt: skip
    strike.bitmapSizeTable = _fill(
        BitmapSizeTable(),
        colorRef=0, hori=line, vert=line, startGlyphIndex=0, endGlyphIndex=len(order) - 1,
        ppemX=SIDE, ppemY=SIDE, bitDepth=32, flags=1,
    )  # fmt: skip
    table = eblc_index_sub_table_1(b"", None)
    strike.indexSubTables = [
        _fill(
            table, names=order, indexFormat=1, imageFormat=17, firstGlyphIndex=0,
            lastGlyphIndex=len(order) - 1,
        )
    ]  # fmt: skip
    return strike


def _fill(record, **fields):
    vars(record).update(fields)
    return record
