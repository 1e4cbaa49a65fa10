"""What the report says of classes, computed from the rows of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

__all__ = ["Classes", "changes", "dots", "trend"]


class Classes(Protocol):
    """Whatever has rows like those of :class:`~lvis_tde.evaluation.LVISResult`."""

    per_category: list[dict[str, Any]]


def dots(result: Classes) -> list[dict[str, Any]]:
    """Classes with an AP and at least one training image.

    Args:
        result: of a run.

    Returns:
        Their rows, by number of training images.
    """
    rows = [r for r in result.per_category if r["image_count"] and not math.isnan(r["AP"])]
    return sorted(rows, key=lambda row: row["image_count"])


def trend(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Geometric mean of images and mean AP of each tenth of the classes.

    Classes with the same number of images stay together.

    Args:
        rows: from :func:`dots`.

    Returns:
        Training images and AP (%), at most ten each.
    """
    if not rows:
        return [], []
    images = np.array([row["image_count"] for row in rows], dtype=np.float64)
    ap = np.array([row["AP"] for row in rows])
    edges = np.unique(np.quantile(images, np.arange(1, 10) / 10))
    tenth = np.searchsorted(edges, images, side="right")
    parts = [tenth == i for i in np.unique(tenth)]
    x = [float(np.exp(np.log(images[part]).mean())) for part in parts]
    return x, [float(ap[part].mean()) for part in parts]


def changes(before: Classes, after: Classes, count: int = 10) -> tuple[list, list]:
    """Classes whose AP rose and fell most.

    Args:
        before: one run.
        after: another run on the same annotations.
        count: how many of each.

    Returns:
        Rows of ``after`` with ``before`` and ``change`` added: most improved first, most damaged
        first.
    """
    old = {row["id"]: row["AP"] for row in before.per_category}
    rows = []
    for row in after.per_category:
        change = row["AP"] - old.get(row["id"], math.nan)
        if not math.isnan(change):
            rows.append({**row, "before": old[row["id"]], "change": change})
    rows.sort(key=lambda row: -row["change"])
    better = [row for row in rows[:count] if row["change"] > 0]
    return better, [row for row in rows[::-1][:count] if row["change"] < 0]
