"""The kinds of generated sets by name, for whoever lets the user choose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .glyphs import make_glyph_lvis, register_glyph_lvis
from .synthetic import make_synthetic_lvis, register_synthetic_lvis

__all__ = ["KINDS", "Kind"]


class Kind(NamedTuple):
    """A kind of set: ``make(root, seed=0)`` generates it, ``register(root, seed=0)`` names it."""

    make: Callable[..., Path]
    register: Callable[..., dict[str, str]]


KINDS = {
    "glyphs": Kind(make_glyph_lvis, register_glyph_lvis),
    "shapes": Kind(make_synthetic_lvis, register_synthetic_lvis),
}
