"""Detections that come image by image, put together while others come."""

from __future__ import annotations

from .detections import Detections

# How many parts are put together: of one image, and of these again.
_TOGETHER = (16, 64)


class Parts:
    """Holds detections in few arrays.

    Arrays of one image each, among temporary ones, would leave holes of ten times their size; those
    of a thousand images go back to the system when they are freed.
    """

    def __init__(self) -> None:
        self._levels: list[list[Detections]] = [[] for _ in range(len(_TOGETHER) + 1)]

    def add(self, part: Detections) -> None:
        """Takes the detections of an image."""
        self._levels[0].append(part)
        for level, most in enumerate(_TOGETHER):
            if len(self._levels[level]) == most:
                self._levels[level + 1].append(Detections.concatenate(self._levels[level]))
                self._levels[level] = []

    def together(self) -> Detections:
        """All that were added, in this order."""
        parts = [part for level in reversed(self._levels) for part in level]
        detections = Detections.concatenate(parts, consume=True)
        self._levels = [[] for _ in _TOGETHER] + [[detections]]
        return detections
