"""Resamples of a unit on disk: what :func:`~lvis_tde.evaluation.compare_resampled` needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...data.files import write_with
from ...evaluation import LVISResult
from ...evaluation.bootstrap import BOOTSTRAPPED
from ...evaluation.result import Resamples

__all__ = ["load_resamples", "save_resamples"]

Results = Mapping[str, Mapping[str, LVISResult]]


def save_resamples(path: str | os.PathLike, results: Results) -> None:
    """Writes the resamples of AP, AP50, AP75, APr, APc and APf; those of single classes are left.

    Args:
        path: a ``.npz``.
        results: run to task to a result with its bootstrap.
    """
    arrays: dict[str, Any] = {}
    for run, tasks in results.items():
        for task, result in tasks.items():
            found = result.resamples
            assert found is not None, (run, task)
            place = f"{run}/{task}"
            values = [found.metrics[name] for name in BOOTSTRAPPED]
            arrays[place] = np.stack(values).astype(np.float32)
            arrays[f"{place}/metrics"] = np.array([result.metrics[name] for name in BOOTSTRAPPED])
            arrays[f"{place}/shown"] = np.array([found.shown[name] for name in BOOTSTRAPPED])
            arrays[f"{place}/draws"] = np.array([found.seed, found.num_images])
    write_with(path, lambda partial: np.savez_compressed(partial, **arrays))


def load_resamples(path: str | os.PathLike) -> dict[str, dict[str, LVISResult]]:
    """Results with what :func:`save_resamples` wrote, and nothing of single classes.

    Returns:
        Run to task to result.
    """
    found: dict[str, dict[str, LVISResult]] = {}
    with np.load(path) as arrays:
        for place in arrays.files:
            run, task, *more = place.split("/")
            if more:
                continue
            values = dict(zip(BOOTSTRAPPED, arrays[place].astype(np.float64)))
            seed, images = arrays[f"{place}/draws"].tolist()
            shown = dict(zip(BOOTSTRAPPED, arrays[f"{place}/shown"].tolist()))
            none = np.zeros((len(values["AP"]), 0))
            result = LVISResult(
                metrics=dict(zip(BOOTSTRAPPED, arrays[f"{place}/metrics"].tolist())),
                per_category=[],
                iou_type=task,
                engine="native",
                resamples=Resamples(seed, images, values, none, shown, none[0]),
            )
            found.setdefault(run, {})[task] = result
    return found
