"""Writing a detector in both formats, each compared with the model."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from torch import nn
from torch.nn import functional as F

from ..calibration.settings import tde_predictors
from ..data.files import write_bytes
from ..layers.functional import check_alpha
from .common import NOTES, about, check_differences, exported_at
from .onnx_head import export_onnx, onnx_difference, why_no_onnx
from .traced import TracedModel, largest_difference, trace_model

__all__ = ["run_export"]

logger = logging.getLogger(__name__)


def run_export(
    model: nn.Module,
    prepare: Callable[[np.ndarray], dict],
    image: str,
    output: str | os.PathLike,
    *,
    alpha: float | None = None,
    onnx: bool = True,
) -> list[Path]:
    """Writes ``model.ts``, and ``box_predictor.onnx`` (one a cascade stage), and checks them.

    Args:
        model: trained, with TDE predictors.
        prepare: makes the model's input of an RGB picture, such as ``Recipe.prepare``.
        image: a picture with something to detect.
        output: folder.
        alpha: strength of the removal, >= 0; default: the model's.
        onnx: write ONNX too, unless the settings have something that it cannot hold, which is told.

    Returns:
        list: the files.

    Raises:
        RuntimeError: if an exported file does not give what the model gives; it is removed.
        ValueError: see :func:`trace_model`.
    """
    if alpha is not None:
        alpha = check_alpha(alpha)
    folder = Path(output)
    full = prepare(read_image(image, "RGB"))["image"]
    others = (F.interpolate(full[None], scale_factor=scale)[0] for scale in (0.75, 1.25))
    images = [full, *others]
    traced = trace_model(model, images[0], alpha)
    files = [folder / "model.ts"]
    # Not by its own writer, which ends the process where the disk is full.
    with exported_at(model, alpha):
        notes = {NOTES: json.dumps(about(tde_predictors(model)[0]), indent=1)}
    write_bytes(files[0], traced.module.save_to_buffer(_extra_files=notes))
    reloaded = TracedModel(torch.jit.load(str(files[0])), traced.outputs, traced.schema)
    # At once, so that nobody finds it unchecked where something else fails.
    check_differences({files[0]: largest_difference(model, reloaded, images, alpha)})
    for number, predictor in enumerate(tde_predictors(model) if onnx else ()):
        with exported_at(predictor, alpha):
            reason = why_no_onnx(predictor)
        if reason:
            logger.warning("ONNX is left out: %s", reason)
            break
        files.append(folder / f"box_predictor{f'_{number}' if number else ''}.onnx")
        export_onnx(predictor, files[-1], alpha)
        features = torch.rand(100, predictor.cls_score.in_features)
        check_differences({files[-1]: onnx_difference(predictor, files[-1], features, alpha)})
    logger.info("%s gives %s.", files[0], ", ".join(traced.outputs))
    return files
