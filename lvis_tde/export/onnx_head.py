"""A box predictor as ONNX: features of regions in, probabilities and box deltas out."""

from __future__ import annotations

import copy
import os
import warnings

import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..calibration.settings import describe
from ..data.files import atomic_path
from ..layers.functional import (
    cosine_to_mean,
    exempt_background,
    normalize_features,
    normalize_weight,
    project_on_mean,
)
from ..modeling.box_losses import joint_logits
from ..modeling.fast_rcnn import TDEFastRCNNOutputLayers
from ..posthoc.class_means import add_similarity
from ..posthoc.margins import split_pull, with_background
from .common import add_notes, difference, exported_at, exporter_options

__all__ = ["export_onnx", "onnx_difference", "why_no_onnx"]


class _BoxHead(nn.Module):
    """Features to probabilities and box deltas, with all that does not depend on them folded."""

    weight: Tensor
    bias: Tensor | None
    mean: Tensor
    pull: Tensor
    factor: Tensor | None
    margin: Tensor | None
    fractal: Tensor | None
    directions: Tensor | None
    usual: Tensor | None

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
        buffers |= {"directions": steps.directions, "usual": steps.usual}
        self.class_means = steps.settings.class_means
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
        if self.directions is not None:
            means = self.directions, self.usual
            direct = add_similarity(direct, features, *means, self.class_means, True)
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


def why_no_onnx(predictor: TDEFastRCNNOutputLayers) -> str:
    """Why there is no ONNX export of a predictor's settings; "" where there is one."""
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
        reason = why_no_onnx(predictor)
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
            add_notes(partial, predictor)


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

    Returns:
        float: infinite where a number is NaN.

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
    return max(difference(ours, torch.from_numpy(other)) for ours, other in pairs)
