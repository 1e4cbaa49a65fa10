"""Scenes of the generated set of shapes: colors, light, occlusion and visible polygons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from .outlines import SUBPIXELS, Scene, polygon_area, visible_polygons

# Least part of an object that the image border and other objects leave to be seen.
MIN_VISIBLE = 0.5
PLACEMENT_TRIES = 30
HUE_SPREAD = 6.0
PIXEL_NOISE = 10.0

BASE_HUES: dict[str, float] = {"red": 0.0, "green": 120.0, "blue": 240.0}
# What the same three hues are called after HUE_SHIFT.
SHIFTED_HUES: dict[str, str] = {"red": "orange", "green": "mint", "blue": "violet"}
HUE_SHIFT = 35.0
VARIANTS: tuple[str, ...] = ("plain", "shifted", "striped", "rimmed")


class Appearance(NamedTuple):
    """What makes a class: one of :data:`SHAPES`, :data:`BASE_HUES` and :data:`VARIANTS`."""

    shape: str
    color: str
    variant: str

    @property
    def name(self) -> str:
        """Name in LVIS's style, such as ``red_disc``, ``orange_disc`` or ``striped_red_disc``."""
        if self.variant == "shifted":
            return f"{SHIFTED_HUES[self.color]}_{self.shape}"
        prefix = "" if self.variant == "plain" else f"{self.variant}_"
        return f"{prefix}{self.color}_{self.shape}"


def _regular(corners: int) -> np.ndarray:
    angle = np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star() -> np.ndarray:
    return _regular(10) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]


def _cross() -> np.ndarray:
    a, b = 0.95, 0.33
    quarter = np.array([[a, -b], [a, b], [b, b]])
    turns = [np.array([[0, 1], [-1, 0]]), np.eye(2)]
    turns = [np.linalg.matrix_power(turns[0], k) for k in range(4)]
    return np.concatenate([quarter @ turn for turn in turns])


def _crescent() -> np.ndarray:
    outer = np.linspace(-2.3, 2.3, 24)
    inner = np.linspace(1.85, -1.85, 18)
    # The inner arc starts and ends where the outer one does.
    tip = np.array([math.cos(2.3), math.sin(2.3)])
    scale = tip[1] / math.sin(1.85)
    shift = tip[0] - scale * math.cos(1.85)
    arc = np.stack([np.cos(inner) * scale + shift, np.sin(inner) * scale], axis=1)
    return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], axis=1), arc[1:-1]])


# Outlines inside the unit circle, (N, 2).
SHAPES: dict[str, np.ndarray] = {
    "disc": _regular(32),
    "square": _regular(4),
    "triangle": _regular(3),
    "star": _star(),
    "cross": _cross(),
    "crescent": _crescent(),
}


class _Placed(NamedTuple):
    outline: np.ndarray  # (N, 2), pixels
    center: np.ndarray  # (2,), pixels
    radius: float
    angle: float


def _place(rng: np.random.Generator, shape: str, size: int) -> _Placed:
    radius = size * math.exp(rng.uniform(math.log(0.07), math.log(0.2)))
    center = rng.uniform(0.5 * radius, size - 0.5 * radius, size=2)
    angle = rng.uniform(0, 2 * math.pi)
    unit = SHAPES[shape] * np.array([1.0, rng.uniform(0.8, 1.0)])
    unit = unit * rng.normal(1.0, 0.02, size=(len(unit), 1))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return _Placed(unit @ turn * radius + center, center, radius, angle)


def _rasterize(outline: np.ndarray, size: int) -> np.ndarray:
    """Fill an outline given in pixels; returns a (size * SUBPIXELS,) * 2 uint8 mask of 0 and 1."""
    mask = np.zeros((size * SUBPIXELS, size * SUBPIXELS), np.uint8)
    cv2.fillPoly(mask, [np.round(outline * SUBPIXELS - 0.5).astype(np.int32)], 1)
    return mask


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    sector = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6.0
    return 255 * value * (1 - saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1))


def _paint(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, item: _Placed, look: Appearance
) -> None:
    """Blend one object over ``image`` (H, W, 3) float32, in place."""
    size = image.shape[0]
    low = np.clip(np.floor(item.outline.min(0)).astype(int), 0, size)
    high = np.clip(np.ceil(item.outline.max(0)).astype(int) + 1, 0, size)
    (x0, y0), (x1, y1) = low, high
    inner = mask[y0 * SUBPIXELS : y1 * SUBPIXELS, x0 * SUBPIXELS : x1 * SUBPIXELS]
    alpha = cv2.resize(inner.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)

    hue = BASE_HUES[look.color] + HUE_SHIFT * (look.variant == "shifted")
    hue = rng.normal(hue, HUE_SPREAD)
    color = _hsv(hue, rng.uniform(0.65, 0.95), rng.uniform(0.65, 0.95))
    xs = (np.arange(x0, x1) + 0.5 - item.center[0]) / item.radius
    ys = (np.arange(y0, y1) + 0.5 - item.center[1]) / item.radius
    light = rng.uniform(-0.15, 0.15, size=2)
    shade = 1 + light[0] * xs[None, :] + light[1] * ys[:, None]
    if look.variant == "striped":
        along = math.cos(item.angle) * xs[None, :] + math.sin(item.angle) * ys[:, None]
        dark = np.sin(2 * math.pi * along / 0.6 + rng.uniform(0, 2 * math.pi)) > 0
        shade = shade * np.where(dark, 0.5, 1.0)
    elif look.variant == "rimmed":
        rim = np.zeros_like(mask)
        width = max(1, round(0.4 * item.radius * SUBPIXELS))
        points = np.round(item.outline * SUBPIXELS - 0.5).astype(np.int32)
        cv2.polylines(rim, [points], True, 1, thickness=width)
        rim = rim[y0 * SUBPIXELS : y1 * SUBPIXELS, x0 * SUBPIXELS : x1 * SUBPIXELS]
        rim = cv2.resize(rim.astype(np.float32), alpha.shape[::-1], interpolation=cv2.INTER_AREA)
        shade = shade * (1 - 0.5 * rim)
    region = image[y0:y1, x0:x1]
    region += alpha[..., None] * (shade[..., None] * color - region)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Gray-ish clouds and strokes, (size, size, 3) float32: clutter that belongs to no class."""
    coarse = rng.uniform(70, 190, size=(4, 4, 1)) + rng.normal(0, 8, size=(4, 4, 3))
    image = cv2.resize(coarse.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(2, 6)):
        (x0, y0), (x1, y1) = rng.integers(0, size, size=(2, 2)).tolist()
        gray = float(rng.uniform(30, 225))
        cv2.line(image, (x0, y0), (x1, y1), (gray, gray, gray), int(rng.integers(1, 4)))
    return image


def draw_scene(seed: Sequence[int], looks: Sequence[Appearance], size: int) -> Scene:
    """Draw the objects back to front, each at least half visible and without holes.

    Args:
        seed: entropy of the scene; equal seeds give equal scenes.
        looks: appearance of each object.
        size: height and width of the image in pixels.

    Returns:
        The scene, with ``polygons`` in the order of ``looks``.

    Raises:
        ValueError: if the objects do not fit into the image.
    """
    for attempt in range(20):
        rng = np.random.default_rng([*seed, attempt])
        scene = _try_scene(rng, looks, size)
        if scene is not None:
            return scene
    raise ValueError(f"{len(looks)} objects do not fit into {size}x{size} pixels: ask for fewer")


def _try_scene(rng, looks, size):
    owner = np.full((size * SUBPIXELS, size * SUBPIXELS), -1, np.int16)
    full: list[float] = []  # whole areas in subpixel cells, also of what the border cuts off
    placed, masks = [], []
    for index, look in enumerate(looks):
        for _ in range(PLACEMENT_TRIES):
            item = _place(rng, look.shape, size)
            mask = _rasterize(item.outline, size)
            area = polygon_area(item.outline) * SUBPIXELS**2
            trial = np.where(mask, np.int16(index), owner)
            cells = np.bincount(trial.ravel() + 1, minlength=index + 2)[1:]
            if all(c >= MIN_VISIBLE * a for c, a in zip(cells, [*full, area])):
                break
        else:
            return None
        owner = trial
        full.append(area)
        placed.append(item)
        masks.append(mask)

    polygons = []
    for index in range(len(looks)):
        parts, holed = visible_polygons((owner == index).astype(np.uint8))
        if holed or not parts:
            return None
        polygons.append(parts)

    image = _background(rng, size)
    for item, mask, look in zip(placed, masks, looks):
        _paint(rng, image, mask, item, look)
    image += rng.normal(0, PIXEL_NOISE, size=image.shape)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), polygons)
