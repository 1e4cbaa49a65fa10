"""Errors that name the first offender and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def complain(offenders: Sequence[Any], what: str, cure: str) -> None:
    """Raise if there are offenders.

    Args:
        offenders: what is wrong, in the order of the input; nothing happens if it is empty.
        what: the fault, as in "detections with a NaN score".
        cure: what the user can do.

    Raises:
        ValueError: there is at least one offender.
    """
    if len(offenders):
        raise ValueError(f"{len(offenders)} {what}, the first is {offenders[0]!r}: {cure}")
