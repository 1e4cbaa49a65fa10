"""The demo: softmax against de-confound against TDE on the generated long-tailed set.

Trains two small models that differ in the box classifier alone, chooses alpha on the calibration
split and evaluates on val, and puts TDE on the trained softmax model too. Everything random
follows from one seed.
"""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..calibration.alpha import sweep_alpha
from ..calibration.checkpoint import load_trained
from ..calibration.estimate import angle_between, estimate_feature_mean
from ..calibration.settings import tde_predictors
from ..calibration.sweep import best_alpha
from ..config import use_tde_on_softmax
from ..data.files import write_text
from ..data.generated import KINDS
from ..data.glyphs import CREDIT
from ..data.processes import end_with_parent
from ..engine import Trainer, YacsRecipe, load_config
from .demo_pictures import draw_charts, draw_classes, draw_images
from .recording import RecordingEvaluator, report, rounded

__all__ = ["run_demo"]

logger = logging.getLogger(__name__)

ALPHAS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


@dataclass(frozen=True)
class _Plan:
    """What the processes of one demo share."""

    output: Path
    kind: str
    seed: int
    configs: Path
    num_pictures: int
    mean_batches: int
    overrides: Sequence

    @property
    def folder(self) -> Path:
        return self.output / f"seed{self.seed}"

    def names(self) -> dict[str, str]:
        return KINDS[self.kind].register(self.output / "datasets", seed=self.seed)

    def config(self, run: str):
        train = self.names()["train"]
        DatasetCatalog.get(train)  # fills in the metadata
        options = [
            "SEED", self.seed,
            "OUTPUT_DIR", str(self.folder / run),
            "MODEL.ROI_HEADS.NUM_CLASSES", len(MetadataCatalog.get(train).thing_classes),
            "DATASETS.TRAIN", (train,),
            "DATASETS.TEST", (),
            *self.overrides,
        ]  # fmt: skip
        return load_config(str(self.configs / f"demo_{run}.yaml"), options)


def _claim(plan: _Plan) -> None:
    """Takes the folders of all parts, or none if one holds something else."""
    files = {Path(c.OUTPUT_DIR) / "config.yaml": c.dump() for c in map(plan.config, _PARTS)}
    for file, text in files.items():
        if file.is_file() and file.read_text("utf-8") != text:
            raise ValueError(
                f"{file.parent} holds a run with another configuration or another kind of set. "
                f"Remove {plan.folder}, or choose another output."
            )
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)


def _train(cfg) -> torch.nn.Module:
    """The trained model: from its checkpoint if it is finished, resumed if it was interrupted."""
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer.model.eval()


def _evaluate(cfg, model, dataset: str, alphas: Sequence[float]) -> dict:
    loader = build_detection_test_loader(cfg, dataset)
    evaluator = RecordingEvaluator.from_config(cfg, dataset)
    return sweep_alpha(model, loader, alphas, lambda: evaluator)


def _calibrate(cfg, model, dataset: str) -> tuple[float, dict]:
    """The alpha with the best mask AP, and the results of all."""
    logger.info("Choosing alpha on the calibration split.")
    calibration = _evaluate(cfg, model, dataset, ALPHAS)
    alpha = best_alpha(calibration, "segm/AP")
    logger.info("alpha = %g has the best mask AP on the calibration split.", alpha)
    return alpha, {f"{a:g}": rounded(values) for a, values in calibration.items()}


def _estimate(plan: _Plan, cfg, model) -> dict:
    """Estimates the mean anew; tells how sure it is and how far from the one before."""
    (predictor,) = tde_predictors(model)
    tracked = predictor.feature_mean.mean.clone()
    seed_all_rng(cfg.SEED)
    found = estimate_feature_mean(
        model, Trainer.build_train_loader(cfg), max_batches=plan.mean_batches, tolerance=0
    )
    estimate: dict[str, Any] = {
        "batches": found.num_batches,
        "foreground": sum(found.num_foreground),
        "degrees_between_halves": round(found.angle, 2),
    }
    if tracked.any():
        apart = angle_between(tracked, found.means[0], predictor.cls_score.num_heads)
        estimate["degrees_to_tracked"] = [round(angle, 2) for angle in apart.tolist()]
    logger.info("Feature mean estimated: %s", estimate)
    return estimate


def _softmax(plan: _Plan) -> dict:
    cfg, names = plan.config("softmax"), plan.names()
    _train(cfg)
    logger.info("TDE on the trained softmax model.")
    cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    use_tde_on_softmax(cfg)
    model = load_trained(YacsRecipe(cfg))
    estimated = _estimate(plan, cfg, model)
    alpha, calibration = _calibrate(cfg, model, names["calib"])
    # With alpha 0 it is the trained softmax model: one pass for both.
    on_val = _evaluate(cfg, model, names["val"], sorted({0.0, alpha}))
    runs = {"softmax": on_val[0.0], "softmax_tde": on_val[alpha]}
    return {
        **report(runs),
        "alphas": {"softmax_tde": alpha},
        "calibrations": {"softmax_tde": calibration},
        "feature_mean": {"softmax_tde": estimated},
    }


def _deconfound(plan: _Plan) -> dict:
    cfg, names = plan.config("deconfound"), plan.names()
    model = _train(cfg)
    alpha, calibration = _calibrate(cfg, model, names["calib"])
    on_val = _evaluate(cfg, model, names["val"], sorted({0.0, alpha}))
    off, on = (on_val[a]["segm"]["detections"] for a in (0.0, alpha))
    draw_images(names["val"], off, on, alpha, plan.num_pictures, plan.output)
    return {
        "alpha": alpha,
        **report({"deconfound": on_val[0.0], "tde": on_val[alpha]}),
        "alphas": {"tde": alpha},
        "calibrations": {"tde": calibration},
        # Last, since it replaces the mean that training tracked.
        "feature_mean": {"tde": _estimate(plan, cfg, model)},
    }


_PARTS = {"softmax": _softmax, "deconfound": _deconfound}


def _run_part(name: str, plan: _Plan) -> dict:
    # One thread a process, also where there are more cores: two processes with two threads each
    # are far slower on two cores, and the figures must not depend on the number of cores.
    torch.set_num_threads(1)
    for logged in ("detectron2", "fvcore", "lvis_tde"):
        # The part's name instead of the package's: the lines of both parts reach one terminal.
        setup_logger(str(plan.folder / name), name=logged, abbrev_name=name)
    return _PARTS[name](plan)


def run_demo(
    output: str | os.PathLike,
    *,
    kind: str = "glyphs",
    seed: int = 0,
    configs: str | os.PathLike = "configs",
    num_pictures: int = 4,
    mean_batches: int = 60,
    jobs: int = 2,
    dataset: Mapping | None = None,
    overrides: Sequence = (),
) -> dict:
    """Generates the set, trains, calibrates, evaluates and draws.

    A second call finds what is finished; an interrupted one is resumed.

    Args:
        output: folder for ``results.json`` and pictures of the latest call; below it
            ``datasets/`` and, for each seed, checkpoints, logs and its own ``results.json``.
        kind: of generated set: "glyphs", or "shapes", which need no font.
        seed: of the generated set, the weights and the order of training.
        configs: folder with ``demo_softmax.yaml`` and ``demo_deconfound.yaml``.
        num_pictures: val images to draw beside the opening picture.
        mean_batches: training batches for the mean of a model that is already trained.
        jobs: processes of one thread each, to draw glyphs and to train both models side by side; 1
            runs all in this process. The figures do not depend on it.
        dataset: further arguments of what makes the set, see :mod:`lvis_tde.data.generated`.
        overrides: "KEY VALUE" changes of the configs.

    Returns:
        dict: ``{"set": {"kind", ...}, "seed", "alpha", "runs": {run: {task: {metric: percent}}},
        "alphas": {run: alpha}, "calibrations": {run: {alpha: {task: {metric: percent}}}},
        "feature_mean": {run: {...}}, "image_count": {class: images}, "per_class": {run: {class:
        mask AP}}}``, as in ``results.json``. ``alpha`` is that of the run "tde"; ``feature_mean``
        says how sure the estimated means are and how far from the tracked one; ``set`` has the
        parameters of the generated set, for glyphs with the hash of the font.

    Raises:
        ValueError: if the kind is unknown, if the set cannot be made (no font), or if the folder
            holds a run with another configuration.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    plan = _Plan(
        Path(output), kind, seed, Path(configs), num_pictures, mean_batches, tuple(overrides)
    )
    plan.folder.mkdir(parents=True, exist_ok=True)
    glyphs = kind == "glyphs"
    options = {**({"jobs": jobs} if glyphs else {}), **(dataset or {})}
    made = KINDS[kind].make(plan.output / "datasets", seed=seed, **options)
    parameters = json.loads((made / "parameters.json").read_text("utf-8"))
    _claim(plan)
    if jobs == 1:
        parts = [_run_part(name, plan) for name in _PARTS]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, initializer=end_with_parent) as pool:
            parts = list(pool.map(_run_part, _PARTS, itertools.repeat(plan)))
    results: dict[str, Any] = {"set": {"kind": kind, **parameters}, "seed": seed, "alpha": None}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, dict):
                value = {**results.get(key, {}), **value}
            results[key] = value
    for folder in (plan.folder, plan.output):
        write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    draw_charts(results, plan.output)
    draw_classes(plan.names()["train"], plan.output, CREDIT if glyphs else None)
    return results
