"""Glyphs of a color emoji font as pictures."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["CREDIT", "GlyphFont", "find_font"]

CREDIT = "Glyphs: Noto Color Emoji, Google, SIL Open Font License 1.1"
FILE_NAME = "NotoColorEmoji.ttf"
CURE = (
    f"Install {FILE_NAME} (Debian, Ubuntu: apt install fonts-noto-color-emoji; Fedora: "
    "google-noto-color-emoji-fonts; https://github.com/googlefonts/noto-emoji) or name a font file "
    "with --font"
)
# Bitmap fonts have one size: Noto's, Apple's, and others'.
_SIZES = (109, 160, 136, 128, 96, 64)
_FOLDERS = (
    "~/.fonts",
    "~/.local/share/fonts",
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
)
_NOTHING = 0x10FFFF  # a code point that will never be a character: drawn as "missing"


def find_font(path: str | os.PathLike | None = None) -> Path:
    """The font file to draw with.

    Args:
        path: where it is; by default it is looked for with fontconfig and in the usual folders.

    Raises:
        ValueError: if there is none.
    """
    if path is not None:
        if not Path(path).is_file():
            raise ValueError(f"The font {str(path)!r} does not exist. {CURE}.")
        return Path(path)
    if shutil.which("fc-list"):
        listing = subprocess.run(
            ["fc-list", ":family=Noto Color Emoji", "file"], capture_output=True, text=True
        ).stdout
        for line in sorted(listing.splitlines()):
            found = Path(line.strip().rstrip(":"))
            if found.name == FILE_NAME and found.is_file():
                return found
    for folder in _FOLDERS:
        for found in sorted(Path(folder).expanduser().rglob(FILE_NAME)):
            return found
    raise ValueError(f"No {FILE_NAME} is installed. {CURE}.")


class GlyphFont:
    """A color font with bitmaps, as Pillow draws them, unscaled.

    Args:
        path: of the font file; see :func:`find_font`.

    Raises:
        ValueError: if Pillow cannot draw the font in color.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        self._font = self._open()
        self._missing = self._render(_NOTHING)

    def __repr__(self) -> str:
        return f"GlyphFont({str(self.path)!r})"

    def _open(self) -> ImageFont.FreeTypeFont:
        for size in _SIZES:
            try:
                # Without text shaping, which depends on an optional library.
                return ImageFont.truetype(
                    str(self.path), size, layout_engine=ImageFont.Layout.BASIC
                )
            except OSError as error:
                reason = error
        raise ValueError(f"Pillow cannot open {str(self.path)!r} as a font: {reason}. {CURE}.")

    def _render(self, codepoint: int) -> np.ndarray:
        text = chr(codepoint)
        left, top, right, bottom = self._font.getbbox(text)
        canvas = Image.new("RGBA", (max(1, int(right - left)), max(1, int(bottom - top))))
        draw = ImageDraw.Draw(canvas)
        draw.text((-left, -top), text, font=self._font, embedded_color=True)
        return np.asarray(canvas)

    def check(self, codepoints: Iterable[int]) -> None:
        """Check that the font has glyphs, in color.

        Raises:
            ValueError: naming the first glyph that it lacks.
        """
        codepoints = list(codepoints)
        pictures = [self._render(codepoint) for codepoint in codepoints]
        lacking = [c for c, picture in zip(codepoints, pictures) if self._is_missing(picture)]
        if len(lacking) == len(codepoints) or not any(_is_colored(p) for p in pictures):
            raise ValueError(
                f"Pillow draws no color from {str(self.path)!r}: it needs a font with bitmaps "
                f"(CBDT or sbix), not with vector layers (COLR, SVG). {CURE}."
            )
        if lacking:
            raise ValueError(
                f"{str(self.path)!r} lacks {len(lacking)} of {len(codepoints)} glyphs, the first "
                f"being U+{lacking[0]:X}: it is older than Unicode 14 (2021). {CURE}."
            )

    def draw(self, codepoint: int) -> np.ndarray:
        """The glyph, cut to what is seen of it: (H, W, 4) uint8 RGBA, not premultiplied.

        Raises:
            ValueError: if the font lacks it.
        """
        picture = self._render(codepoint)
        if self._is_missing(picture):
            raise ValueError(f"{str(self.path)!r} has no glyph U+{codepoint:X}. {CURE}.")
        rows, columns = (np.flatnonzero(picture[..., 3].max(axis)) for axis in (1, 0))
        return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    def _is_missing(self, picture: np.ndarray) -> bool:
        return not picture[..., 3].any() or np.array_equal(picture, self._missing)


def _is_colored(picture: np.ndarray) -> bool:
    seen = picture[picture[..., 3] > 0][:, :3].astype(np.int64)
    return bool(len(seen)) and bool((seen.max(1) - seen.min(1) > 64).any())
