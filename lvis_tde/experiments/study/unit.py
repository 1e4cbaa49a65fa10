"""One unit of a study, a recipe with a seed: train, choose on ``calib``, evaluate on ``val``."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ...calibration.family import COMPOSITION
from ...calibration.methods import FACTUAL, TDE_JOINT, Method, methods_of
from ...calibration.settings import tde_predictors
from ...calibration.tried import as_json
from ...data.files import write_text
from ...engine import load_config
from ...engine.console import setup_part
from ...engine.lock import locked
from ...evaluation import LVISEvaluator, LVISResult
from ..recording import intervals_of
from ..steps import WEIGHTS, chosen, evaluated, measured, shown_metrics, trained
from .checkpoint_curve import checkpoint_curve
from .curve import curve_of, iterations_of, training_seconds
from .file import SHOWN, Recipe, Study
from .provenance import made_here
from .resamples import save_resamples
from .said import said
from .sets import num_classes, register_set

__all__ = ["Unit", "run_unit"]

logger = logging.getLogger(__name__)

_PERIODIC = re.compile(r"model_\d+\.pth")


@dataclass(frozen=True)
class Unit:
    """A recipe with a seed.

    Attributes:
        study: it is of.
        output: folder of the study.
        recipe, seed: of the study.
        overrides: "KEY", "VALUE" and so on, the last word.
    """

    study: Study
    output: Path
    recipe: Recipe
    seed: int
    overrides: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return f"seed{self.seed}/{self.recipe.name}"

    @property
    def folder(self) -> Path:
        return self.output / self.name

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    def names(self) -> dict[str, str]:
        """Registered names of the splits."""
        return register_set(self.study.data, self.output, self.seed)

    def config(self) -> CfgNode:
        """The config of the training.

        Raises:
            ValueError: an override is none, or the set is not there.
        """
        names = self.names()
        options = [
            "SEED", self.seed,
            "OUTPUT_DIR", str(self.folder),
            "MODEL.ROI_HEADS.NUM_CLASSES", num_classes(names["train"]),
            "DATASETS.TRAIN", (names["train"],),
            "DATASETS.CALIB", (names["calib"],),
            "DATASETS.TEST", (),
            *self.recipe.opts,
            *self.study.opts,
            *self.overrides,
        ]  # fmt: skip
        if self.study.curve is not None:
            options += ["SOLVER.CHECKPOINT_PERIOD", self.study.curve[0]]
        return load_config(self.recipe.config, options)

    def claim(self, *, write: bool = True) -> None:
        """Takes the folder for its config.

        Args:
            write: remember the config there; else only look.

        Raises:
            ValueError: the folder holds a training with another config, or one whose checkpoints
                are removed and that has another learning curve.
        """
        text = self.config().dump()
        found, curve = self._found(), self._curve
        if found and curve and found.get("curve_of") != curve:
            raise ValueError(
                f"{self.folder} is finished with curve={found.get('curve_of')}, and curve={curve} "
                "needs checkpoints that are removed. Leave curve: as it was, or remove that folder."
            )
        if self.config_file.is_file():
            before, now = map(said, (self.config_file.read_text("utf-8"), text))
            for key in sorted(before.keys() | now.keys()):
                if before.get(key) != now.get(key):
                    raise ValueError(
                        f"{self.folder} holds a training with another configuration: {key} was "
                        f"{before.get(key, 'the default')!r} and is "
                        f"{now.get(key, 'the default')!r}. Remove that folder, or choose another "
                        "output."
                    )
        elif write:
            write_text(self.config_file, text)

    def asked(self) -> dict[str, Any]:
        """What a result depends on, as JSON has it; training depends on the first alone."""
        config = json.dumps(said(self.config().dump()), sort_keys=True)
        study = self.study
        return {
            "config_sha": hashlib.sha256(config.encode()).hexdigest()[:16],
            "sets": self.names(),
            "methods": None if study.methods is None else sorted(study.methods),
            "masks": sorted(study.masks),
            "mean_batches": study.mean_batches,
            "curve_of": self._curve,
        }

    @property
    def _curve(self) -> list[Any] | None:
        """That of the study, as JSON has it."""
        return None if self.study.curve is None else list(self.study.curve)

    def result(self) -> dict[str, Any] | None:
        """``unit.json``; None if there is none, or one of other post-hoc methods."""
        found = self._found()
        if not found:
            return None  # and perhaps there is not even a set
        asked = self.asked()
        return found if {key: found.get(key) for key in asked} == asked else None

    def _found(self) -> dict[str, Any]:
        """``unit.json``, whatever it was asked for; nothing if there is none."""
        try:
            return dict(json.loads((self.folder / "unit.json").read_text("utf-8")))
        except (OSError, ValueError):
            return {}

    def state(self) -> str:
        """How far it is, in words."""
        if not self.config_file.is_file():
            return "to do"
        if self.result() is not None:
            return "done"
        done, total = self.iterations()
        return "evaluating" if done == total else f"training {done}/{total}"

    @functools.cached_property
    def _max_iter(self) -> int:
        """Read once: progress asks for it over and over."""
        return int(self.config().SOLVER.MAX_ITER)

    def iterations(self) -> tuple[int, int]:
        """Those that are trained, as far as is known, and all."""
        total = self._max_iter
        if (self.folder / WEIGHTS).is_file():
            return total, total
        return min(iterations_of(self.folder), max(total - 1, 0)), total


def _methods(study: Study, model: nn.Module) -> list[Method]:
    """The methods of a study that fit a model."""
    methods = list(methods_of(model))
    if not any(predictor.use_sigmoid_ce for predictor in tde_predictors(model)):
        methods.insert(1, TDE_JOINT)
    return [one for one in methods if study.methods is None or one.name in study.methods]


def run_unit(unit: Unit, device: int | None = None, *, shown: bool = False) -> None:
    """All of a unit, in this process, with one thread; nothing if it is finished.

    Args:
        unit: of the study.
        device: number of the GPU, of a config that wants one.
        shown: tell of it on the console, too, not in its ``log.txt`` alone.

    Raises:
        ValueError: another process works on it, or see :meth:`Unit.claim`.
    """
    # As in the demo: the figures must not depend on the number of cores.
    torch.set_num_threads(1)
    if device is not None:
        torch.cuda.set_device(device)
    with locked(unit.folder):
        unit.claim()
        if unit.result() is None:
            setup_part(str(unit.folder), unit.name, shown=shown)
            _run(unit)


def _run(unit: Unit) -> None:
    study, cfg, names = unit.study, unit.config(), unit.names()
    asked, most = unit.asked(), cfg.TEST.DETECTIONS_PER_IMAGE
    model = trained(cfg)
    began = time.monotonic()
    points = []
    if study.curve is not None:
        points = checkpoint_curve(cfg, names["calib"], alpha=study.curve[1])
    _remove_periodic(unit.folder)
    measured(cfg, model, study.mean_batches)
    wanted = study.methods is None or COMPOSITION in study.methods
    choice = chosen(
        cfg, model, names["calib"], methods=_methods(study, model), rounds=4 if wanted else 0
    )
    rows = {row.method: row for row in choice.rows if wanted or row.method != COMPOSITION}
    calibrated = time.monotonic()
    evaluator = LVISEvaluator(names["val"], max_dets_per_image=most)
    evaluator.for_report()
    results: dict[Any, dict[str, LVISResult]] = {}
    evaluated(
        cfg,
        model,
        names["val"],
        [row.settings for row in rows.values() if row.method in study.masks],
        [row.settings for row in rows.values()],
        evaluator,
        lambda settings, one: results.update({settings: dict(one.lvis_results)}),
    )
    kept = {
        method: {
            task: result
            for task, result in results[row.settings].items()
            if task == "bbox" or method in study.masks
        }
        for method, row in rows.items()
    }
    ended = time.monotonic()
    # A result of other methods goes first: it would stand beside these resamples.
    (unit.folder / "unit.json").unlink(missing_ok=True)
    save_resamples(unit.folder / "resamples.npz", kept)
    found = {
        "recipe": unit.recipe.name,
        "seed": unit.seed,
        **asked,
        "made": made_here(),
        "seconds": {
            "train": training_seconds(unit.folder),
            "calibrate": round(calibrated - began, 1),
            "evaluate": round(ended - calibrated, 1),
        },
        "runs": {
            method: {
                "strength": row.strength,
                "settings": dataclasses.asdict(row.settings),
                "calibration": shown_metrics(row.metrics),
                "val": {task: _metrics(result) for task, result in kept[method].items()},
                "intervals": {task: _ends(result) for task, result in kept[method].items()},
            }
            for method, row in rows.items()
        },
        "image_count": {
            row["name"]: row["image_count"] for row in kept[FACTUAL]["bbox"].per_category
        },
        "curve": curve_of(unit.folder, points),
    }
    write_text(unit.folder / "unit.json", json.dumps(as_json(found), indent=1) + "\n")
    logger.info("Done: %s", unit.folder / "unit.json")


def _metrics(result: LVISResult) -> dict[str, float]:
    return {name: round(float(result.metrics[name]), 4) for name in SHOWN}


def _ends(result: LVISResult) -> dict[str, list[float]]:
    ends = intervals_of(result)
    return {name: ends[name] for name in SHOWN}


def _remove_periodic(folder: Path) -> None:
    """Checkpoints to resume from, which are most of a study's size, once the last one is there."""
    for path in folder.glob("model_*.pth"):
        if _PERIODIC.fullmatch(path.name):
            path.unlink(missing_ok=True)
