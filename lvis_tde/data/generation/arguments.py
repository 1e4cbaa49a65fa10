"""Numbers among the arguments of a generated set."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["real", "whole"]


def whole(name: str, value: Any) -> int:
    """``value`` as an int; a ValueError names the argument where it is no whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def real(name: str, value: Any) -> float:
    """``value`` as a float; a ValueError names the argument where it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
