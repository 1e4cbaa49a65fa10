"""What a training recorded while it ran, from the ``metrics.json`` that Detectron2 writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["curve_of", "iterations_of", "training_seconds"]

_MOST = 40
_EVALUATED = "calib/"
# Of a cascade its first stage's.
_PREFIXES = ("tde/", "stage0/tde/", _EVALUATED)


def _rows(folder: Path) -> list[dict[str, Any]]:
    """One a recorded iteration; a resumed training records some anew, and the last word counts."""
    rows: dict[int, dict[str, Any]] = {}
    path = folder / "metrics.json"
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            rows[int(row["iteration"])] = row
        except (ValueError, KeyError, TypeError):
            continue  # a line that a killed training began
    return [rows[iteration] for iteration in sorted(rows)]


def iterations_of(folder: Path) -> int:
    """Iterations that are trained, as of the last record."""
    rows = _rows(folder)
    return int(rows[-1]["iteration"]) + 1 if rows else 0


def training_seconds(folder: Path) -> float:
    """Of the iterations alone, however often the training was interrupted."""
    seconds, before = 0.0, -1
    for row in _rows(folder):
        seconds += float(row.get("time", 0.0)) * (int(row["iteration"]) - before)
        before = int(row["iteration"])
    return round(seconds, 1)


def curve_of(folder: Path, points: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Scalars of TDE and evaluations on the calibration split, over the training.

    Args:
        folder: with ``metrics.json``; none gives no curve.
        points: "iteration" and metrics of further evaluations.

    Returns:
        At most :data:`_MOST` rows beside those of evaluations: "iteration", and without their
        prefixes the scalars that begin with "tde/", of a cascade those of its first stage, or
        with "calib/".
    """
    rows = []
    for row in _rows(folder):
        found = {
            name.removeprefix("stage0/").partition("/")[2]: float(f"{value:.4g}")
            for name, value in row.items()
            if name.startswith(_PREFIXES) and math.isfinite(value)
            # Detectron2's evaluator has -100 where no class is in the images.
            if not (name.startswith(_EVALUATED) and value < 0)
        }
        if found:
            asked = any(name.startswith(_EVALUATED) for name in row)
            rows.append(({"iteration": int(row["iteration"]), **found}, asked))
    kept = _spread([i for i, (_, asked) in enumerate(rows) if not asked])
    curve = {row["iteration"]: row for i, (row, asked) in enumerate(rows) if asked or i in kept}
    for point in points:
        curve[point["iteration"]] = {**curve.get(point["iteration"], {}), **point}
    return [curve[iteration] for iteration in sorted(curve)]


def _spread(places: Sequence[int]) -> set[int]:
    """Evenly spread ones of them, the last among them."""
    if len(places) <= _MOST:
        return set(places)
    step = (len(places) - 1) / (_MOST - 1)
    return {places[round(i * step)] for i in range(_MOST)}
