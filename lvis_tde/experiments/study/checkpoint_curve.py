"""AP over the training, after it: what each checkpoint that was kept gives on held-out images."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader

from ...calibration.alpha import sweep_alpha
from ...calibration.checkpoint import load_all
from ...calibration.settings import tde_predictors
from ...config import use_tde_on_softmax
from ...data.files import write_text
from ...engine import Trainer
from ...posthoc import Settings
from ..recording import RecordingEvaluator

__all__ = ["CURVE_FILE", "checkpoint_curve"]

logger = logging.getLogger(__name__)

CURVE_FILE = "curve.json"
_METRICS = ("AP", "APr", "APc", "APf")
_NUMBERED = re.compile(r"model_(\d+)\.pth")
_LAST = "model_final.pth"


def checkpoint_curve(cfg: CfgNode, dataset: str, *, alpha: float) -> list[dict[str, Any]]:
    """Box AP of each checkpoint of a training, as trained and with TDE, from one pass for both.

    Training needs no change but ``SOLVER.CHECKPOINT_PERIOD``, the distance of the points. Each is
    written to ``curve.json`` in the folder once it is known, so that a call after an interruption
    goes on, and one after the checkpoints were removed still has them. ``study/unit.py`` calls it
    between the end of training and the removal of its checkpoints, where the study file has
    ``curve: {every: ITERATIONS, alpha: ALPHA}``, and adds the points to the scalars of
    ``metrics.json``.

    Args:
        cfg: of the training, whose ``OUTPUT_DIR`` has the checkpoints.
        dataset: registered name of the calibration split; val has no place in a choice.
        alpha: strength of TDE, the same at every point, chosen before any result is known.

    Returns:
        list: by iteration ``{"iteration", "AP", "APr", "APc", "APf"}`` in percent, "iteration"
        that of the last step, counted from 0, as in ``metrics.json``; and ``"AP_tde"`` and so on
        where training tracked the feature mean. APs that are undefined are left out.
    """
    folder = Path(cfg.OUTPUT_DIR)
    path = folder / CURVE_FILE
    key = {"dataset": dataset, "alpha": alpha}
    points = _known(path, key)
    for iteration, checkpoint in sorted(_checkpoints(folder, cfg.SOLVER.MAX_ITER).items()):
        if iteration not in points:
            logger.info("AP after iteration %d.", iteration)
            points[iteration] = _point(cfg, checkpoint, dataset, alpha)
            write_text(path, json.dumps({**key, "points": points}) + "\n")
    return [{"iteration": one, **points[one]} for one in sorted(points)]


def _known(path: Path, key: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Points of an earlier call with the same arguments."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text("utf-8"))
    if {name: found.get(name) for name in key} != key:
        return {}
    return {int(iteration): point for iteration, point in found["points"].items()}


def _checkpoints(folder: Path, max_iter: int) -> dict[int, Path]:
    found = {int(m[1]): p for p in folder.glob("*.pth") if (m := _NUMBERED.fullmatch(p.name))}
    if (folder / _LAST).is_file():
        found[max_iter - 1] = folder / _LAST
    return found


def _point(cfg: CfgNode, checkpoint: Path, dataset: str, alpha: float) -> dict[str, float]:
    cfg = cfg.clone()
    use_tde_on_softmax(cfg)
    model = Trainer.build_model(cfg).eval()
    load_all(model, str(checkpoint))
    settings = {"": Settings()}
    if all(one.feature_mean.mean.any() for one in tde_predictors(model)):
        settings["_tde"] = Settings(region=alpha, class_=alpha)
    results = sweep_alpha(
        model,
        build_detection_test_loader(cfg, dataset),
        list(settings.values()),
        lambda: RecordingEvaluator.from_config(cfg, dataset),
        boxes_only=list(settings.values()),
    )
    return {
        f"{metric}{suffix}": round(float(value), 4)
        for suffix, one in settings.items()
        for metric in _METRICS
        if (value := results[one]["bbox"][metric]) >= 0
    }
