"""What all formats share: the strengths that become constants, notes, how exact a file must be."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import inference_context
from torch import Tensor, nn

from ..calibration.settings import settings, tde_predictors
from ..modeling.fast_rcnn import TDEFastRCNNOutputLayers
from ..modeling.image_predictor import TDEImagePredictor

__all__ = [
    "NOTES",
    "TOLERANCES",
    "about",
    "add_notes",
    "check_differences",
    "difference",
    "exported_at",
    "exporter_options",
    "plain_attention",
]

logger = logging.getLogger(__name__)

# Of the notes in an exported file.
NOTES = "lvis_tde.json"

# By file type, from an exported model to its original in fp32. Boxes of a detector are in pixels.
TOLERANCES = {".ts": 1e-3, ".onnx": 1e-5}


@contextlib.contextmanager
def exported_at(model: nn.Module, alpha: float | None):
    """The model in eval mode and with this alpha, folded, while it is open.

    Raises:
        ValueError: if alpha is positive and the mean zero.
    """
    own = [(one, one.alpha, one.chosen) for one in tde_predictors(model)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(inference_context(model))
        predictors = stack.enter_context(settings(model, alpha=alpha))
        for predictor, before, words in own:
            if predictor.alpha != before:
                # Who chose the model's alpha did not choose this one.
                predictor.chosen = ""
                stack.callback(setattr, predictor, "chosen", words)
        for predictor in predictors:
            # Folded here: what it depends on is no part of the graph.
            predictor.composition()
            if any(predictor.strengths) and not predictor.feature_mean.mean.any():
                raise ValueError(
                    "The running feature mean is zero, so there is no TDE to export: estimate it "
                    "with tools/estimate_feature_mean.py, or export with alpha 0."
                )
        yield


def about(predictor: TDEFastRCNNOutputLayers | TDEImagePredictor) -> dict[str, Any]:
    """What an exported file says of itself: classes, strengths and how they were chosen.

    In ``model.ts`` it is the extra file ``lvis_tde.json``
    (``torch.jit.load(path, _extra_files={"lvis_tde.json": ""})``), in ONNX the property of that
    name.

    Args:
        predictor: what is exported.

    Returns:
        ``classes`` (names, or None), ``frequency`` ("r", "c", "f" of each, or None), ``alpha``,
        ``settings`` (all strengths), ``chosen`` (words, or "" where nobody chose this alpha) and
        ``sigmoid``.
    """
    statistics = predictor.statistics
    as_chosen = predictor.calibrated_alpha in (None, predictor.alpha)
    return {
        "classes": statistics.class_names,
        "frequency": statistics.class_groups,
        "alpha": predictor.alpha,
        "settings": dataclasses.asdict(predictor.posthoc),
        "chosen": predictor.chosen if as_chosen else "",
        "sigmoid": predictor.use_sigmoid_ce,
    }


def add_notes(path: Path, predictor: TDEFastRCNNOutputLayers | TDEImagePredictor) -> None:
    """Puts :func:`about` into an ONNX file, as its property ``lvis_tde.json``."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {NOTES: json.dumps(about(predictor))})
    onnx.save(model, str(path))


@contextlib.contextmanager
def plain_attention():
    """torch's attention as its parts: the operator that it has for inference has no ONNX."""
    fused = getattr(torch.backends, "mha", None)  # older releases have no switch
    before = fused is not None and fused.get_fastpath_enabled()
    if fused is not None:
        fused.set_fastpath_enabled(False)
    try:
        yield
    finally:
        if fused is not None:
            fused.set_fastpath_enabled(before)


def exporter_options() -> dict:
    """What ``torch.onnx.export`` needs beside its usual arguments."""
    # Newer torch has another exporter by default, which needs one more package.
    known = inspect.signature(torch.onnx.export).parameters
    return {"dynamo": False} if "dynamo" in known else {}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of two outputs; infinite if a number of either is NaN or shapes differ."""
    if ours.shape != theirs.shape:
        return math.inf
    apart = (ours.cpu().double() - theirs.cpu().double()).abs()
    # Python's max may forget a NaN.
    return math.inf if apart.isnan().any() else float(apart.max()) if apart.numel() else 0.0


def check_differences(differences: Mapping[Path, float]) -> None:
    """Remove files that do not give what their model gives, so that nobody uses them.

    Args:
        differences: of exported files.

    Raises:
        RuntimeError: a file is further from its model than :data:`TOLERANCES` has it.
    """
    wrong = {f: d for f, d in differences.items() if not d <= TOLERANCES[f.suffix]}
    for file in wrong:
        file.unlink()
    if wrong:
        told = "; ".join(f"{file} differs from the model by {d:g}" for file, d in wrong.items())
        raise RuntimeError(f"{told}. It is removed.")
    for file, apart in differences.items():
        logger.info("%s: at most %.1e from the model.", file, apart)
