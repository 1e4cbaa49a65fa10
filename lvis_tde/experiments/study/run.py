"""Running a study: what is missing, side by side, and the tables of what is there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...data.files import write_text
from .content import check_opts
from .file import Study
from .gather import gather
from .outputs import write_outputs
from .sets import make_set
from .unit import Unit
from .workers import run_units

__all__ = ["Outcome", "run_study", "states", "units_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Attributes:
        study: content of ``study.json``; None if no unit is finished.
        tables: in Markdown.
        failed: name of a unit to why it failed.
    """

    study: Mapping[str, Any] | None
    tables: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)


def units_of(study: Study, output: str | os.PathLike, overrides: Sequence = ()) -> list[Unit]:
    """All units of a study, those of a seed together.

    Raises:
        ValueError: overrides have a key that each unit has its own value of.
    """
    check_opts(overrides, "KEY VALUE")
    return [
        Unit(study, Path(output), recipe, seed, tuple(overrides))
        for seed in study.seeds
        for recipe in study.recipes.values()
    ]


def states(units: Sequence[Unit]) -> dict[str, str]:
    """Of each unit by its name how far it is, in words; nothing is changed."""
    return {unit.name: _state(unit) for unit in units}


def _state(unit: Unit) -> str:
    try:
        if unit.config_file.is_file():
            unit.claim(write=False)
        return unit.state()
    except ValueError as error:
        return f"refused: {error}"


def run_study(
    study: Study,
    output: str | os.PathLike,
    *,
    jobs: int | None = None,
    only_outputs: bool = False,
    overrides: Sequence = (),
) -> Outcome:
    """Trains, chooses and evaluates what is missing, then writes tables, page and pictures.

    A second call finds what is finished; an interrupted one is resumed, and a unit that fails does
    not keep the others from running. Every strength is chosen on ``calib``, and ``val`` is met once
    by each unit.

    Args:
        study: of :func:`~.file.read_study`.
        output: folder for ``study.json``, tables, page and pictures; below it ``datasets/`` and for
            each seed and recipe a folder with checkpoint, log, ``unit.json`` and ``resamples.npz``.
        jobs: processes of one thread each; default: the number of GPUs where the configs want
            them, each process on its own, else that of the cores. 0 runs all in this process. On
            CPUs the figures do not depend on it.
        only_outputs: run nothing.
        overrides: "KEY VALUE" changes of all configs.

    Returns:
        Outcome: with ``study`` as in ``study.json``, see :func:`~.gather.gather`.

    Raises:
        ValueError: if a set cannot be made, or a folder holds a training with another config;
            before anything is trained.
    """
    if jobs is not None and jobs < 0:
        raise ValueError(f"jobs={jobs} must be at least 1, or 0 for this process")
    units = units_of(study, output, overrides)
    failed: dict[str, str] = {}
    if not only_outputs:
        # What is refused is so before a set is made.
        for some in ([unit for unit in units if unit.config_file.is_file()], units):
            for seed in dict.fromkeys(unit.seed for unit in some):
                make_set(study.data, Path(output), seed)
            for unit in some:
                unit.claim(write=False)
        missing = sorted((unit for unit in units if unit.result() is None), key=_cost, reverse=True)
        logger.info("%d of %d units are finished.", len(units) - len(missing), len(units))
        failed = run_units(missing, *_places(missing, jobs), before=len(units) - len(missing))
    if all(unit.result() is None for unit in units) and failed:
        return Outcome(None, failed=failed)
    found = gather(study, units)
    write_text(Path(output) / "study.json", json.dumps(found, separators=(",", ":")) + "\n")
    return Outcome(found, write_outputs(found, Path(output)), failed)


def _cost(unit: Unit) -> int:
    """Images that training sees, so that the longest begins first."""
    solver = unit.config().SOLVER
    return solver.MAX_ITER * solver.IMS_PER_BATCH


def _places(units: Sequence[Unit], jobs: int | None) -> tuple[int, int]:
    """Processes and GPUs."""
    wanted = any(unit.config().MODEL.DEVICE.startswith("cuda") for unit in units)
    gpus = torch.cuda.device_count() if wanted else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (gpus or cores or 1) if jobs is None else jobs, gpus
