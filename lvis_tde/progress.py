"""How far a long run is: one line of one form for training, estimate, sweep and evaluation.

Needs the standard library alone.
"""

from __future__ import annotations

import datetime
import logging
import math
import time

__all__ = ["Progress", "Pace", "progress_line"]

logger = logging.getLogger(__name__)

_WIDTH = 20


def progress_line(
    what: str, done: int, total: int, eta: float | str | None = None, note: str = ""
) -> str:
    """Such as ``training  [######..............] 391/1300, ETA 0:05:12, total_loss 3.27``.

    Args:
        what: the kind of run.
        done, total: steps.
        eta: seconds that are left, or words; None or infinite if unknown.
        note: further words.
    """
    filled = _WIDTH * min(done, total) // max(total, 1)
    parts = [f"{what:<10} [{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total}"]
    if isinstance(eta, str):
        parts.append(f"ETA {eta}")
    elif eta is not None and math.isfinite(eta):
        parts.append(f"ETA {datetime.timedelta(seconds=round(max(eta, 0)))}")
    return ", ".join([*parts, note] if note else parts)


class Pace:
    """When to tell of progress: every 5 s in the first minute, then every 30 s.

    So an hour of any kind is 130 lines.
    """

    FIRST, LATER, MINUTE = 5.0, 30.0, 60.0

    def __init__(self) -> None:
        self._start = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def due(self) -> bool:
        """Whether to tell now; it is then told."""
        now = time.monotonic()
        period = self.FIRST if now - self._start < self.MINUTE else self.LATER
        if now - self._told < period:
            return False
        self._told = now
        return True


class Progress:
    """Logs :func:`progress_line` after the first step, then at a :class:`Pace`, and at the end."""

    def __init__(self, what: str, total: int, *, done: int = 0):
        """
        Args:
            what: the kind of run.
            total: steps.
            done: steps of an earlier run that is resumed.
        """
        self._what, self._total, self._before = what, total, done
        self._pace, self._first = Pace(), True

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._pace.seconds

    def step(self, done: int, *, needed: int | None = None, note: str = "") -> None:
        """
        Args:
            done: steps that are done, the resumed ones included.
            needed: steps that are expected to be enough; default: all.
            note: further words.
        """
        due, last = self._pace.due(), done >= self._total
        if not (due or last or self._first):
            return
        self._first = False
        each = self.seconds / max(done - self._before, 1)
        left = each * ((self._total if needed is None else needed) - done)
        logger.info("%s", progress_line(self._what, done, self._total, left, note))
