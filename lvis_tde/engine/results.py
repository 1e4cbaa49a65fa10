"""Metrics on the console."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..evaluation.result import percent

__all__ = ["log_results"]

logger = logging.getLogger(__name__)

# COCO's of each class, and a classifier's on each shifted test set: log.txt has them.
_LONG = ("AP-", "forward", "backward", "uniform")


def log_results(results: Mapping[str, Any] | None, where: str = "") -> None:
    """Logs a line for every task; metrics that are undefined are "n/a".

    Args:
        results: ``{task: {metric: percent}}``, or such by data set.
        where: the data set.
    """
    for name, values in (results or {}).items():
        if not isinstance(values, Mapping):
            continue
        if values and all(isinstance(value, Mapping) for value in values.values()):
            log_results(values, f"{name} ")
            continue
        shown = {key: value for key, value in values.items() if not key.startswith(_LONG)}
        line = "  ".join(f"{key} {percent(float(value))}" for key, value in shown.items())
        logger.info("%s%s: %s", where, name, line)
