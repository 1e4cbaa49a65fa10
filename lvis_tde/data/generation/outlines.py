"""From the masks of generated objects to polygons of what is visible of them.

Masks are kept on a grid of :data:`SUBPIXELS` x :data:`SUBPIXELS` cells per pixel, so that polygons
are accurate to a fraction of a pixel and edges are anti-aliased. Polygon coordinates follow COCO:
continuous, (0, 0) is the outer corner of the first pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

__all__ = ["SUBPIXELS", "Scene", "polygon_area", "trace_outlines", "visible_polygons"]

SUBPIXELS = 4
# Smaller visible fragments, in square pixels, are not worth a polygon.
MIN_PART_AREA = 6.0


class Scene(NamedTuple):
    """An image, (H, W, 3) uint8 RGB, and per object the (N, 2) polygons of its visible parts."""

    image: np.ndarray
    polygons: list[list[np.ndarray]]


def polygon_area(points: np.ndarray) -> float:
    """Area within a polygon, (N, 2)."""
    x, y = points[:, 0], points[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def trace_outlines(mask: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Polygons along the borders of a mask's cells, and the outlines of its holes.

    Args:
        mask: (H, W) uint8 of 0 and 1.

    Returns:
        Two lists of (N, 2) float64, in cells: polygons simplified to within one cell, and holes.
    """
    # findContours runs through cell centers; grown by one cell, it runs along the borders.
    grown = cv2.dilate(np.pad(mask, ((0, 1), (0, 1))), np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, hierarchy = cv2.findContours(grown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons: list[np.ndarray] = []
    holes: list[np.ndarray] = []
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0] if len(contours) else []):
        points = cv2.approxPolyDP(contour, 1.0, True) if parent < 0 else contour
        (polygons if parent < 0 else holes).append(points[:, 0].astype(np.float64))
    return polygons, holes


def visible_polygons(mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
    """Outlines of a subpixel mask in pixels, and whether it has a hole (polygons have none)."""
    outlines, holes = trace_outlines(mask)
    polygons, holed = [], any(polygon_area(hole) > SUBPIXELS**2 for hole in holes)
    for points in outlines:
        points = points / SUBPIXELS
        if len(points) >= 3 and polygon_area(points) >= MIN_PART_AREA:
            polygons.append(points)
    return polygons, holed
