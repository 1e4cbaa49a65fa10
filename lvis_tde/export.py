"""Models for use without this package: traced for TorchScript, and the box predictor as ONNX.

The strengths of TDE and of the other steps are constants of the exported graph: export once for
each. Over 300 lines, since both formats are set up, compared with the model and written by the same
steps.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import inspect
import json
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import inference_context
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import cascade_rcnn
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from .calibration.settings import describe, settings, tde_predictors
from .data.files import atomic_path, write_bytes
from .layers.functional import (
    check_alpha,
    cosine_to_mean,
    exempt_background,
    normalize_features,
    normalize_weight,
    project_on_mean,
)
from .modeling.box_losses import joint_logits
from .modeling.fast_rcnn import TDEFastRCNNOutputLayers
from .modeling.intercept import intercepted
from .posthoc.margins import split_pull, with_background

__all__ = [
    "NOTES",
    "TOLERANCES",
    "TracedModel",
    "about",
    "export_onnx",
    "exported_at",
    "exporter_options",
    "largest_difference",
    "onnx_difference",
    "run_export",
    "trace_model",
]

logger = logging.getLogger(__name__)

# Of the notes in an exported file.
NOTES = "lvis_tde.json"

# By file type, from an exported model to its original in fp32. Boxes of a detector are in pixels.
TOLERANCES = {".ts": 1e-3, ".onnx": 1e-5}


def tracing_adapter():
    """Detectron2's ``TracingAdapter``, in whichever release.

    Importing its package needs Caffe2 in release 0.6, which current torch has no more. The adapter
    itself does not, so there it is loaded from a package of ours with the same files.
    """
    try:
        from detectron2.export import TracingAdapter

        return TracingAdapter
    except ImportError:
        name = f"{__package__}._detectron2_export"
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(os.path.dirname(detectron2.__file__), "export")]
        sys.modules.setdefault(name, package)
        return importlib.import_module(f"{name}.flatten").TracingAdapter


@contextlib.contextmanager
def exported_at(model: nn.Module, alpha: float | None):
    """The model in eval mode and with this alpha, folded, while it is open.

    Raises:
        ValueError: if alpha is positive and the mean zero.
    """
    with inference_context(model), settings(model, alpha=alpha) as predictors:
        for predictor in predictors:
            # Folded here: what it depends on is no part of the graph.
            predictor.composition()
            if any(predictor.strengths) and not predictor.feature_mean.mean.any():
                raise ValueError(
                    "The running feature mean is zero, so there is no TDE to export: estimate it "
                    "with tools/estimate_feature_mean.py, or export with alpha 0."
                )
        yield


def _without_gradient_scaling():
    """Leaves out what release 0.6 does to gradients in a cascade's forward pass.

    It is a Python function, which TorchScript cannot save; main has it in training alone.
    """
    scaling = getattr(cascade_rcnn, "_ScaleGradient", None)
    if scaling is None:
        return contextlib.nullcontext()
    return intercepted(scaling, "apply", lambda _, features, scale: features)


def _detect(model: GeneralizedRCNN, inputs: list[dict]) -> list[Instances]:
    return model.inference(inputs, do_postprocess=False)


@dataclass(frozen=True)
class TracedModel:
    """A traced detector.

    Attributes:
        module: TorchScript; takes an image, (3, H, W) float32 in the value range and the channel
            order of the config, and returns the tensors named in ``outputs``. Boxes are in pixels
            of that image, masks (N, 1, M, M) in their boxes.
        outputs: names of the tensors, in order.
        schema: rebuilds ``[Instances]`` from the tensors, as Detectron2's adapter does.
    """

    module: torch.jit.ScriptModule
    outputs: tuple[str, ...]
    schema: Callable

    def __call__(self, image: Tensor) -> Instances:
        """Detections of one image, as ``model.inference([...], do_postprocess=False)[0]``."""
        return self.schema(self.module(image))[0]


def trace_model(model: nn.Module, image: Tensor, alpha: float | None = None) -> TracedModel:
    """Traces a detector for one alpha with Detectron2's ``TracingAdapter``.

    Args:
        model: a :class:`GeneralizedRCNN` with TDE predictors; not changed.
        image: (3, H, W) example with something to detect in it; other sizes work too.
        alpha: strength of the removal, >= 0; default: the model's.

    Returns:
        TracedModel: with ``alpha`` as a constant.

    Raises:
        ValueError: if the model has no TDE predictor, or alpha is positive and the mean zero.
    """
    with exported_at(model, alpha), torch.no_grad(), warnings.catch_warnings():
        # Each says that a Python value becomes a constant; largest_difference finds mistakes.
        warnings.simplefilter("ignore")
        adapter = tracing_adapter()(model, [{"image": image}], _detect)
        with _without_gradient_scaling():
            module = torch.jit.trace(adapter, (image,), check_trace=False)
        # Weights become constants, which need no gradient, whoever runs the module and how.
        module = torch.jit.freeze(module.eval(), optimize_numerics=False)
        found = adapter.outputs_schema(module(image))[0]
    outputs = (*sorted(found.get_fields()), "image_size")
    return TracedModel(module, outputs, adapter.outputs_schema)


@torch.no_grad()
def largest_difference(
    model: nn.Module, traced: TracedModel, images: Sequence[Tensor], alpha: float | None = None
) -> float:
    """Largest difference of any output of a traced model from the model's own.

    Args:
        model: what was traced.
        traced: the result.
        images: (3, H, W) each, of several sizes.
        alpha: as given to :func:`trace_model`.

    Returns:
        float: infinite where the numbers of detections differ.
    """
    largest = 0.0
    with exported_at(model, alpha):
        for image in images:
            ours, theirs = traced(image).get_fields(), _detect(model, [{"image": image}])[0]
            for name, value in theirs.get_fields().items():
                a, b = (getattr(one, "tensor", one) for one in (ours[name], value))
                if a.shape != b.shape:
                    return float("inf")
                if a.numel():
                    largest = max(largest, (a.double() - b.double()).abs().max().item())
    return largest


class _BoxHead(nn.Module):
    """Features to probabilities and box deltas, with all that does not depend on them folded."""

    weight: Tensor
    bias: Tensor | None
    mean: Tensor
    pull: Tensor
    factor: Tensor | None
    margin: Tensor | None
    fractal: Tensor | None

    def __init__(self, predictor: TDEFastRCNNOutputLayers):
        super().__init__()
        classifier, mean = predictor.cls_score, predictor.feature_mean.mean
        self.num_heads, self.norm = classifier.num_heads, classifier.norm
        self.exempt, self.sigmoid = predictor.background_exempt, predictor.use_sigmoid_ce
        self.scores = predictor.scores
        steps = predictor.composition()
        weight = classifier.scale * normalize_weight(
            classifier.weight, self.num_heads, self.norm, classifier.gamma
        )
        pull = project_on_mean(weight, mean, self.num_heads)
        pull = split_pull(pull, *predictor.strengths, background=True)
        if self.sigmoid:
            pull[-1] = 0  # of a column that is no class
        factor, margin, fractal = (
            None if part is None else with_background(part, neutral, True).to(weight)
            for part, neutral in ((steps.factor, 1.0), (steps.margin, 0.0), (steps.fractal, 1e4))
        )
        if factor is not None:
            pull = factor[:, None] * pull
        buffers = {"weight": weight, "bias": classifier.bias, "mean": mean, "pull": pull}
        buffers |= {"factor": factor, "margin": margin, "fractal": fractal}
        for name, value in buffers.items():
            self.register_buffer(name, None if value is None else value.detach().clone())
        # A copy: this module may move to another device than the model's.
        self.bbox_pred = copy.deepcopy(predictor.bbox_pred)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(
            normalize_features(features, self.num_heads, self.norm), self.weight, self.bias
        )
        if self.scores == "objectness":
            logits = joint_logits(logits)
        cosine = cosine_to_mean(features, self.mean, self.num_heads, self.norm)
        adjusted = logits if self.factor is None else logits * self.factor
        if self.margin is not None:
            adjusted = adjusted + self.margin
        direct = adjusted - F.linear(cosine, self.pull)
        if self.sigmoid:
            probs = direct.sigmoid()
            if self.fractal is not None:
                probs = probs * (direct + self.fractal).sigmoid()
            if self.scores == "sigmoid":
                rest = torch.sigmoid(-logits[:, -1:])
                probs = torch.cat([probs[:, :-1] * rest, probs[:, -1:]], dim=-1)
            return probs, self.bbox_pred(features)
        if not self.exempt:
            return F.softmax(direct, -1), self.bbox_pred(features)
        return exempt_background(logits, direct), self.bbox_pred(features)


def _solved_for(predictor: TDEFastRCNNOutputLayers) -> str:
    """Why there is no ONNX export; "" where there is one."""
    steps = predictor.composition()
    keep = steps.settings.keep_sum
    moved = steps.factor is not None or steps.margin is not None
    if not steps.sigmoid or steps.neutral or not (keep == "factual" or (keep and moved)):
        return ""
    return (
        f"keep_sum={keep!r} has no ONNX export with {describe(steps.settings)}: its shift is "
        "solved for, region by region. model.ts has it; for ONNX set keep_sum to '' "
        "(MODEL.POSTHOC.KEEP_SUM)."
    )


def export_onnx(
    predictor: TDEFastRCNNOutputLayers, path: str | os.PathLike, alpha: float | None = None
) -> None:
    """Writes classifier, TDE, the other steps, background exemption and box regression as ONNX.

    Input ``features`` (R, D) float32; outputs ``probs`` (R, C + 1), background last, and
    ``deltas`` (R, 4) or (R, 4 C). R is free.

    Args:
        predictor: a box predictor; not changed.
        path: the file to write.
        alpha: strength of the removal, >= 0; default: the predictor's.

    Raises:
        ImportError: if the package ``onnx`` is not installed.
        ValueError: if alpha is positive and the mean zero, or the predictor shifts logits to
            keep their sum.
    """
    with exported_at(predictor, alpha), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = _solved_for(predictor)
        if reason:
            raise ValueError(reason)
        head = _BoxHead(predictor).cpu().eval()
        with atomic_path(path) as partial:
            torch.onnx.export(
                head,
                (torch.rand(2, predictor.cls_score.in_features),),
                str(partial),
                input_names=["features"],
                output_names=["probs", "deltas"],
                dynamic_axes={name: {0: "regions"} for name in ("features", "probs", "deltas")},
                **exporter_options(),
            )
            _add_notes(partial, predictor)


def about(predictor: TDEFastRCNNOutputLayers) -> dict[str, Any]:
    """What an exported file says of itself: classes, strengths and how they were chosen.

    In ``model.ts`` it is the extra file ``lvis_tde.json``
    (``torch.jit.load(path, _extra_files={"lvis_tde.json": ""})``), in ONNX the property of that
    name.

    Args:
        predictor: what is exported.

    Returns:
        ``classes`` (names, or None), ``frequency`` ("r", "c", "f" of each, or None), ``alpha``,
        ``settings`` (all strengths), ``chosen`` (words, or "") and ``sigmoid``.
    """
    statistics = predictor.statistics
    return {
        "classes": statistics.class_names,
        "frequency": statistics.class_groups,
        "alpha": predictor.alpha,
        "settings": dataclasses.asdict(predictor.posthoc),
        "chosen": predictor.chosen,
        "sigmoid": predictor.use_sigmoid_ce,
    }


def _add_notes(path: Path, predictor: TDEFastRCNNOutputLayers) -> None:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {NOTES: json.dumps(about(predictor))})
    onnx.save(model, str(path))


def exporter_options() -> dict:
    """What ``torch.onnx.export`` needs beside its usual arguments."""
    # Newer torch has another exporter by default, which needs one more package.
    known = inspect.signature(torch.onnx.export).parameters
    return {"dynamo": False} if "dynamo" in known else {}


@torch.no_grad()
def onnx_difference(
    predictor: TDEFastRCNNOutputLayers,
    path: str | os.PathLike,
    features: Tensor,
    alpha: float | None = None,
) -> float:
    """Largest difference of the outputs of an ONNX file, run by onnxruntime, from the predictor's.

    Args:
        predictor: what was exported.
        path: the file.
        features: (R, D) float32.
        alpha: as given to :func:`export_onnx`.

    Raises:
        ImportError: if the package ``onnxruntime`` is not installed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    theirs = session.run(["probs", "deltas"], {"features": features.cpu().numpy()})
    with exported_at(predictor, alpha):
        predictions = predictor(features.to(predictor.feature_mean.mean.device))
        (probs,) = predictor.predict_probs(predictions, [Instances((1, 1), features=features)])
    pairs = zip((probs, predictions[1]), theirs)
    return max(
        float((ours.cpu() - torch.from_numpy(other)).abs().max()) if ours.numel() else 0.0
        for ours, other in pairs
    )


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
        RuntimeError: if an exported file does not give what the model gives.
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
    differences = {files[0]: largest_difference(model, reloaded, images, alpha)}
    for number, predictor in enumerate(tde_predictors(model) if onnx else ()):
        with exported_at(predictor, alpha):
            reason = _solved_for(predictor)
        if reason:
            logger.warning("ONNX is left out: %s", reason)
            break
        files.append(folder / f"box_predictor{f'_{number}' if number else ''}.onnx")
        export_onnx(predictor, files[-1], alpha)
        features = torch.rand(100, predictor.cls_score.in_features)
        differences[files[-1]] = onnx_difference(predictor, files[-1], features, alpha)
    for file, difference in differences.items():
        if not difference <= TOLERANCES[file.suffix]:
            raise RuntimeError(f"{file} differs from the model by {difference:g}.")
        logger.info("%s: at most %.1e from the model.", file, difference)
    logger.info("%s gives %s.", files[0], ", ".join(traced.outputs))
    return files
