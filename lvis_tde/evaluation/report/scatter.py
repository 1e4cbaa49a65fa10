"""The chart of the page that names its dots, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ...visualization.class_charts import FEW_DOTS
from ...visualization.palette import GROUP_COLORS, GROUPS

__all__ = ["scatter"]


def _tip(row: Mapping[str, Any]) -> str:
    return (
        f"{row['name']} ({GROUPS[row['frequency']]}): AP {row['AP']:.1f}, "
        f"{row['image_count']} training images, {row['num_gt']} objects here"
    )


def scatter(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    line: tuple[Sequence[float], Sequence[float]],
    highest: int,
    width: int = 640,
    height: int = 400,
    *,
    tip: Callable[[Mapping[str, Any]], str] = _tip,
) -> str:
    """A dot per class, AP against training images, which shows the class when pointed at.

    Args:
        name: of the run.
        rows: classes with an AP and training images.
        line: training images and AP of the line through the dots.
        highest: upper end of the axis of AP, a multiple of 20.
        width: in SVG units.
        height: in SVG units.
        tip: what is said of a class.

    Returns:
        An ``svg`` element.
    """
    left, right, top, bottom = 44, 12, 28, 40
    most = max((row["image_count"] for row in rows), default=1)
    span = max(math.log10(most) + 0.1, 1)

    def x(count: float) -> float:
        return left + (width - left - right) * math.log10(count) / span

    def y(ap: float) -> float:
        return height - bottom - (height - top - bottom) * ap / highest

    parts = [f'<text x="{left}" y="16" class=title>{escape(name)}</text>']
    for ap in range(0, highest + 1, 20 if highest > 40 else 10):
        parts.append(f'<path class=grid d="M{left} {y(ap):.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(ap) + 4:.1f}" class=end>{ap}</text>')
    for power in range(int(span) + 1):
        at = x(10**power)
        parts.append(f'<path class=grid d="M{at:.1f} {top}V{height - bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - 22}" class=mid>{10**power:,}</text>')
    label = "training images of the class"
    parts.append(f'<text x="{width / 2}" y="{height - 5}" class=mid>{label}</text>')
    radius = 5.5 if len(rows) < FEW_DOTS else 3.6
    for row in rows:
        parts.append(
            f'<circle cx="{x(row["image_count"]):.1f}" cy="{y(row["AP"]):.1f}" r="{radius}" '
            f'fill="{GROUP_COLORS[row["frequency"]]}" data-tip="{escape(tip(row), quote=True)}"/>'
        )
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(*line))
    parts.append(f'<polyline points="{points}"/>')
    return f'<svg viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
