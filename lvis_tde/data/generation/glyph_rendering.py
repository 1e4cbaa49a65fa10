"""Scenes of the glyph sets: glyphs turned, lit and partly hidden, before a background.

Numbers drawn at random are rounded before geometry is computed from them, and masks are sampled,
not interpolated: so polygons do not depend on the last digit of a mathematical library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from .outlines import SUBPIXELS, Scene, visible_polygons

__all__ = ["MIN_VISIBLE", "Sprite", "draw_portrait", "draw_scene", "make_sprite"]

# Least part of an object that the image border and other objects leave to be seen.
MIN_VISIBLE = 0.5
# Square root of an object's box area, as a part of that of the image: between these, log-uniform.
RELATIVE_SIZE = (0.13, 0.45)
# The same of a portrait, and how far from its middle, as a part of the side, the object may be.
PORTRAIT_SIZE = (0.55, 0.95)
PORTRAIT_SHIFT = 0.1
MAX_TURN = 25.0  # degrees
MAX_HUE_SHIFT = 12.0  # degrees
PLACEMENT_TRIES = 40
# Each attempt of a round draws smaller objects; a squid, which encloses holes, needs more rounds.
ROUNDS, ATTEMPTS, SHRINK = 10, 24, 0.95
_GRAY_AXIS = 1 / math.sqrt(3)


class Sprite(NamedTuple):
    """A glyph made ready: premultiplied RGBA, (H, W, 4) float32 in [0, 1], and its silhouette."""

    colors: np.ndarray
    silhouette: np.ndarray  # (H, W) bool, without holes: polygons have none


def make_sprite(picture: np.ndarray) -> Sprite:
    """A sprite from an RGBA picture, (H, W, 4) uint8."""
    opaque = np.pad((picture[..., 3] >= 128).astype(np.uint8), 2)
    # Narrow gaps are closed first: turned, they would enclose holes.
    opaque = cv2.morphologyEx(opaque, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    _, background = cv2.connectedComponents(1 - opaque, connectivity=4)
    silhouette = (background != background[0, 0])[2:-2, 2:-2]
    colors = picture.astype(np.float32) / 255
    colors[..., :3] *= colors[..., 3:]
    return Sprite(colors, np.ascontiguousarray(silhouette))


class _Placed(NamedTuple):
    window: tuple[slice, slice]  # of the subpixel grid; it begins and ends with whole pixels
    mask: np.ndarray  # silhouette in the window
    cells: np.ndarray  # the sprite's pixel, rows * width + columns, that is in a cell of the window
    inside: np.ndarray  # whether the cell is in the sprite
    area: int  # cells of the silhouette, also of what the border cuts off
    center: np.ndarray  # x, y in pixels
    size: float


def _draw(rng: np.random.Generator, low: float, high: float, digits: int = 4) -> float:
    return round(rng.uniform(low, high), digits)


def _draw_size(rng: np.random.Generator, low: float, high: float) -> float:
    """Uniform in the logarithm."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _position(
    rng: np.random.Generator, image_size: tuple[int, int], scale: float, near: _Placed | None
) -> tuple[float, np.ndarray]:
    """Size and center of an object somewhere in the image, or beside ``near``."""
    height, width = image_size
    size = _draw_size(rng, *RELATIVE_SIZE) * math.sqrt(height * width) * scale
    if near is None:
        center = np.array([_draw(rng, 0, width, 2), _draw(rng, 0, height, 2)])
    else:
        size = near.size * _draw(rng, 0.8, 1.2)
        angle, distance = rng.uniform(0, 2 * math.pi), near.size * rng.uniform(0.7, 1.6)
        center = near.center + np.round([distance * math.cos(angle), distance * math.sin(angle)], 2)
    return round(size, 2), center


def _place(
    rng: np.random.Generator,
    sprite: Sprite,
    image_size: tuple[int, int],
    size: float,
    center: np.ndarray,
) -> _Placed | None:
    """A sprite turned, mirrored and stretched; None where nothing of it is in the image."""
    height, width = image_size
    sprite_height, sprite_width = sprite.silhouette.shape
    # Pixels per sprite pixel, along the glyph's own axes.
    stretch = _draw(rng, 0.88, 1.14)
    unit = size / math.sqrt(sprite_height * sprite_width)
    along, across = unit * stretch, unit / stretch
    turn = math.radians(_draw(rng, -MAX_TURN, MAX_TURN, 2))
    cos, sin = round(math.cos(turn), 6), round(math.sin(turn), 6)
    flip = -1 if rng.random() < 0.5 else 1

    half_x = (abs(cos) * sprite_width * along + abs(sin) * sprite_height * across) / 2
    half_y = (abs(sin) * sprite_width * along + abs(cos) * sprite_height * across) / 2
    x0, x1 = max(int(center[0] - half_x), 0), min(int(center[0] + half_x) + 1, width)
    y0, y1 = max(int(center[1] - half_y), 0), min(int(center[1] + half_y) + 1, height)
    if x0 >= x1 or y0 >= y1:
        return None
    dx = (np.arange(x0 * SUBPIXELS, x1 * SUBPIXELS) + 0.5) / SUBPIXELS - center[0]
    dy = (np.arange(y0 * SUBPIXELS, y1 * SUBPIXELS) + 0.5) / SUBPIXELS - center[1]
    columns = _fixed(cos * flip / along * dx, sin * flip / along * dy + sprite_width / 2)
    rows = _fixed(-sin / across * dx, cos / across * dy + sprite_height / 2)
    # Seen as unsigned, a negative number is too large.
    inside = (columns.view(np.uint32) < sprite_width) & (rows.view(np.uint32) < sprite_height)
    cells = rows * sprite_width + columns
    mask = sprite.silhouette.ravel().take(cells, mode="clip") & inside
    area = round(float(sprite.silhouette.sum()) * along * across * SUBPIXELS**2)
    window = slice(y0 * SUBPIXELS, y1 * SUBPIXELS), slice(x0 * SUBPIXELS, x1 * SUBPIXELS)
    return _Placed(window, mask, cells, inside, area, center, size)


def _fixed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whole part of every ``x + y``, (Y, X) int32, computed in 16.16 bits."""
    x, y = (np.round(v * 65536).astype(np.int32) for v in (x, y))
    return (x[None, :] + y[:, None]) >> 16


def _arrange(rng, sprites, groups, image_size, scale):
    """Place all sprites, back to front; None if they do not fit."""
    grid = image_size[0] * SUBPIXELS, image_size[1] * SUBPIXELS
    owner = np.full(grid, -1, np.int16)
    visible: list[int] = []
    placed: list[_Placed] = []
    first: dict[int, _Placed] = {}
    for index, (sprite, group) in enumerate(zip(sprites, groups)):
        for attempt in range(PLACEMENT_TRIES):
            # Instances of a class stand together; where there is no place left, elsewhere.
            near = first.get(group) if attempt < PLACEMENT_TRIES // 2 else None
            position = _position(rng, image_size, scale, near)
            item = _place(rng, sprite, image_size, *position)
            if item is None or item.mask.sum() < MIN_VISIBLE * item.area:
                continue
            hidden = np.bincount(owner[item.window][item.mask] + 1, minlength=index + 1)[1:]
            if all(
                v - h >= MIN_VISIBLE * other.area
                for v, h, other in zip(visible, hidden.tolist(), placed)
            ):
                break
        else:
            return None
        owner[item.window][item.mask] = index
        visible = [v - h for v, h in zip(visible, hidden.tolist())] + [int(item.mask.sum())]
        placed.append(item)
        first.setdefault(group, item)
    return placed, owner


def _paint(rng: np.random.Generator, image: np.ndarray, item: _Placed, sprite: Sprite) -> None:
    """Blend one sprite over ``image``, (H, W, 3) float32 in [0, 255], in place."""
    # Four samples per pixel; sixteen, as masks have, would look the same.
    cells, inside = item.cells[1::2, 1::2], item.inside[1::2, 1::2]
    samples = sprite.colors.reshape(-1, 4).take(cells, axis=0, mode="clip")
    samples *= inside[..., None]
    bottom_right = [s.stop // SUBPIXELS for s in item.window]
    (top, left), (bottom, right) = [s.start // SUBPIXELS for s in item.window], bottom_right
    patch = cv2.resize(samples, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    color, alpha = patch[..., :3], patch[..., 3:]

    color = color @ _color_change(rng).T
    light = rng.uniform(-0.25, 0.25, size=2)
    xs = (np.arange(left, right) + 0.5 - item.center[0]) / item.size
    ys = (np.arange(top, bottom) + 0.5 - item.center[1]) / item.size
    shade = rng.uniform(0.75, 1.1) * (1 + light[0] * xs[None, :] + light[1] * ys[:, None])
    region = image[top:bottom, left:right]
    region *= 1 - alpha
    region += 255 * color * shade[..., None].astype(np.float32)


def _color_change(rng: np.random.Generator) -> np.ndarray:
    """(3, 3) map of RGB: a turn of the hue about the gray axis and a change of saturation."""
    turn = math.radians(rng.uniform(-MAX_HUE_SHIFT, MAX_HUE_SHIFT))
    saturation = rng.uniform(0.75, 1.15)
    axis = np.full((3, 3), _GRAY_AXIS**2)
    cross = _GRAY_AXIS * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    rotation = math.cos(turn) * np.eye(3) + math.sin(turn) * cross + (1 - math.cos(turn)) * axis
    return (axis + saturation * (rotation - axis)).astype(np.float32)


def _background(rng: np.random.Generator, size: tuple[int, int], hue: float) -> np.ndarray:
    """Gradient, texture of several scales and strokes or tiles, (H, W, 3) float32."""
    height, width = size
    image = np.zeros((height, width, 3), np.float32)
    tint = _tint(hue + rng.normal(0, 25), rng.uniform(0, 0.5))
    lightness = rng.uniform(70, 200)
    ramp = rng.uniform(-50, 50, size=2)
    image += lightness * tint
    image += (ramp[0] * np.linspace(-1, 1, width)[None, :, None]).astype(np.float32)
    image += (ramp[1] * np.linspace(-1, 1, height)[:, None, None]).astype(np.float32)
    for cells, strength in ((3, 30), (9, 20), (32, 14)):
        noise = rng.normal(0, rng.uniform(0, strength), size=(cells, cells, 1))
        noise = noise + rng.normal(0, strength / 6, size=(cells, cells, 3))
        image += cv2.resize(
            noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    if rng.random() < 0.4:  # a horizon: ground of another color
        line = int(height * rng.uniform(0.3, 0.8))
        image[line:] += rng.normal(0, 30, size=3).astype(np.float32)
    if rng.random() < 0.25:  # tiles or shelves
        step, value = int(rng.integers(12, 40)), float(rng.uniform(-45, 45))
        image[::step] += value
        if rng.random() < 0.5:
            image[:, ::step] += value
    for _ in range(rng.integers(0, 5)):
        (x0, x1), (y0, y1) = rng.integers(0, width, 2).tolist(), rng.integers(0, height, 2).tolist()
        color = rng.uniform(30, 225, size=3).tolist()
        cv2.line(image, (x0, y0), (x1, y1), color, int(rng.integers(1, 4)), cv2.LINE_AA)
    return image


def _tint(hue: float, saturation: float) -> np.ndarray:
    sector = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6.0
    color = 1 - saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return (color / color.mean()).astype(np.float32)


def draw_scene(
    seed: Sequence[int],
    sprites: Sequence[Sprite],
    groups: Sequence[int],
    size: tuple[int, int],
    hue: float = 0.0,
) -> Scene:
    """Draw objects back to front, each at least half visible and without holes.

    Args:
        seed: entropy of the scene; equal seeds give equal scenes.
        sprites: of each object.
        groups: class of each object; objects of one class stand together.
        size: height and width of the image in pixels.
        hue: of the background, in degrees.

    Returns:
        The scene, with ``polygons`` in the order of ``sprites``.

    Raises:
        ValueError: if the objects do not fit into the image.
    """
    for attempt in range(ROUNDS * ATTEMPTS):
        rng = np.random.default_rng([*seed, attempt])
        arranged = _arrange(rng, sprites, groups, size, SHRINK ** (attempt % ATTEMPTS))
        if arranged is None:
            continue
        placed, owner = arranged
        found = [_polygons(owner, index, item) for index, item in enumerate(placed)]
        if all(found):
            return Scene(_picture(rng, placed, sprites, size, hue), found)
    raise ValueError(
        f"{len(sprites)} objects do not fit into {size[1]}x{size[0]} pixels: ask for larger images "
        "or another seed"
    )


def draw_portrait(seed: Sequence[int], sprite: Sprite, side: int) -> np.ndarray:
    """Draw one object, about the middle of a square, before a background of any hue.

    Args:
        seed: entropy of the picture; equal seeds give equal pictures.
        sprite: of the object.
        side: height and width of the picture in pixels.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    rng = np.random.default_rng(seed)
    hue = _draw(rng, 0, 360)
    size = round(_draw_size(rng, *PORTRAIT_SIZE) * side, 2)
    center = side * (0.5 + np.round(rng.uniform(-PORTRAIT_SHIFT, PORTRAIT_SHIFT, size=2), 3))
    item = _place(rng, sprite, (side, side), size, center)
    assert item is not None, center
    return _picture(rng, [item], [sprite], (side, side), hue)


def _polygons(owner: np.ndarray, index: int, item: _Placed) -> list[np.ndarray]:
    """What is visible of an object; nothing where it is too small or has a hole."""
    parts, holed = visible_polygons((owner[item.window] == index).astype(np.uint8))
    corner = np.array([item.window[1].start, item.window[0].start]) / SUBPIXELS
    return [] if holed else [points + corner for points in parts]


def _picture(rng, placed, sprites, size, hue) -> np.ndarray:
    image = _background(rng, size, hue)
    for item, sprite in zip(placed, sprites):
        _paint(rng, image, item, sprite)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 0.9)))
    image += rng.normal(0, rng.uniform(3, 12), size=image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
