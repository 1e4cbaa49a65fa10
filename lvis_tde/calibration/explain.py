"""What TDE did to a prediction, class by class.

Shapes as in :mod:`lvis_tde.layers.functional`; the R rows are regions, or detections.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.functional import check_alpha, cosine_to_mean, exempt_background
from ..modeling.fast_rcnn import TDEFastRCNNOutputLayers
from ..modeling.intercept import intercepted
from .replay import BoxBranch
from .settings import settings

__all__ = ["Explanation", "explain", "explain_detections"]


@dataclass(frozen=True)
class Explanation:
    """The parts of R predictions, all float64; background is the last class.

    Read sigmoid for softmax where the predictor has sigmoids. The last column is then none of the
    classes, and the shift that keeps the sum, if there is one, stands for the exemption.

    Attributes:
        total: (R, C + 1) total effect ``y``, the factual logits.
        indirect: (R, C + 1) the momentum's indirect effect ``y0`` at ``alpha``.
        direct: (R, C + 1) total direct effect ``t``; ``total == indirect + direct``.
        cosine: (R, K) cosine of each head's features to the mean; over the stages of a cascade
            (R, stages * K).
        factual_probs: (R, C + 1) ``softmax(y)``: the prediction without TDE.
        direct_probs: (R, C + 1) ``softmax(t)``: that of TDE before background exemption.
        probs: (R, C + 1) the prediction.
        alpha: strength of the removal that was used; 0 where the model has no mean.
        sigmoid: each class has a sigmoid of its own.
    """

    total: Tensor
    indirect: Tensor
    direct: Tensor
    cosine: Tensor
    factual_probs: Tensor
    direct_probs: Tensor
    probs: Tensor
    alpha: float
    sigmoid: bool = False

    @property
    def exemption(self) -> Tensor:
        """(R, C + 1) what background exemption added to each probability: of a softmax 0 a row."""
        return self.probs - self.direct_probs

    def __len__(self) -> int:
        return len(self.total)

    def __getitem__(self, rows) -> Explanation:
        """The explanation of some rows: a slice, a mask or a tensor of indices."""
        parts = {name: getattr(self, name)[rows] for name in _TENSORS}
        return dataclasses.replace(self, **parts)


_TENSORS = ("total", "indirect", "direct", "cosine", "factual_probs", "direct_probs", "probs")


@torch.no_grad()
def explain(
    predictor: TDEFastRCNNOutputLayers, features: Tensor, alpha: float | None = None
) -> Explanation:
    """Takes the predictions for some regions apart.

    Args:
        predictor: a box predictor; not changed.
        features: (R, D) classifier input, any floating type.
        alpha: strength of the removal, >= 0; default: the predictor's.

    Returns:
        Explanation: of what ``predict_probs`` gives for ``features``.

    Raises:
        ValueError: if the features do not fit, or ``alpha`` is negative or not finite.
    """
    alpha = predictor.alpha if alpha is None else float(alpha)
    classifier, mean = predictor.cls_score, predictor.feature_mean.mean
    if features.dim() != 2 or features.shape[1] != classifier.in_features:
        raise ValueError(
            f"features have shape {tuple(features.shape)}, expected (R, {classifier.in_features})."
        )
    check_alpha(alpha)
    if not mean.any():
        alpha = 0.0
    features = features.double()
    total = classifier(features)
    cosine = cosine_to_mean(features, mean, classifier.num_heads, "cosine")
    if predictor.use_sigmoid_ce:
        return _explain_sigmoids(predictor, features, total, cosine, alpha)
    indirect = classifier.indirect_effect(features, mean, alpha)
    direct = total - indirect
    factual_probs, direct_probs = F.softmax(total, -1), F.softmax(direct, -1)
    probs = direct_probs
    if alpha == 0:
        probs = factual_probs
    elif predictor.background_exempt:
        probs = exempt_background(total, direct)
    return Explanation(total, indirect, direct, cosine, factual_probs, direct_probs, probs, alpha)


def _explain_sigmoids(predictor, features, total, cosine, alpha) -> Explanation:
    mean = predictor.feature_mean.mean
    with settings([predictor], alpha=alpha):
        steps = predictor.composition()
    terms = predictor.cls_score.effect_terms(features, mean)
    direct, probs = steps.adjust(total, *terms), steps(total, *terms)
    direct[:, -1] = total[:, -1]
    parts = total, total - direct, direct, cosine, total.sigmoid(), direct.sigmoid(), probs
    return Explanation(*parts, alpha, sigmoid=True)


def _average(stages: Sequence[Explanation]) -> Explanation:
    """Of a cascade: effects and probabilities are averaged, as its predictions are."""
    if len(stages) == 1:
        return stages[0]
    parts: dict[str, Any] = {
        name: torch.stack([getattr(stage, name) for stage in stages]).mean(0) for name in _TENSORS
    }
    parts["cosine"] = torch.cat([stage.cosine for stage in stages], dim=1)
    return dataclasses.replace(stages[0], **parts, alpha=max(stage.alpha for stage in stages))


@torch.no_grad()
def explain_detections(
    model: nn.Module, inputs: list[dict], alpha: float | None = None
) -> list[tuple[Instances, Explanation]]:
    """Detects objects and takes every detection apart.

    Args:
        model: a :class:`GeneralizedRCNN` in eval mode with TDE predictors.
        inputs: N images in Detectron2's format.
        alpha: strength of the removal, >= 0; default: the model's.

    Returns:
        list[tuple]: for each image the detections that ``model(inputs)`` gives, boxes alone, in
        the size of the network's input, and the explanation of each.

    Raises:
        ValueError: if the model has no TDE predictor, ``alpha`` is negative or not finite, or the
            ROI heads change boxes or scores after the predictors, which nothing here explains.
    """
    stages = []

    def record(predict_probs, predictions, proposals):
        probs = predict_probs(predictions, proposals)
        sizes = [len(p) for p in proposals]
        predictor = predict_probs.__self__
        boxes = predictor.predict_boxes(predictions, proposals)
        stages.append((predictor, predictions[2].split(sizes), probs, boxes))
        return probs

    with contextlib.ExitStack() as stack:
        for predictor in stack.enter_context(settings(model, alpha=alpha)):
            stack.enter_context(intercepted(predictor, "predict_probs", record))
        detections = BoxBranch(model, inputs).detect()
    results, heads = [], type(model.roi_heads).__name__
    for index, found in enumerate(detections):
        probs = torch.stack([probs[index] for _, _, probs, _ in stages]).mean(0)
        rows = _regions_of(found, stages[-1][-1][index], probs, heads)
        parts = _average(
            [
                explain(predictor, features[index][rows], alpha)
                for predictor, features, _, _ in stages
            ]
        )
        _check_scores(found, parts, heads)
        results.append((found, parts))
    return results


def _regions_of(found: Instances, boxes: Tensor, probs: Tensor, heads: str) -> Tensor:
    """The region that each detection comes from: of those with its box the nearest in score.

    Args:
        found: D detections of one image.
        boxes: (R, 4) or (R, 4 C) boxes of the last stage.
        probs: (R, C + 1).
        heads: name for the message.

    Returns:
        Tensor: (D,) rows.
    """
    classes = found.pred_classes
    if not len(found):
        return classes
    boxes = boxes.reshape(len(boxes), -1, 4)
    boxes = boxes[:, classes] if boxes.shape[1] > 1 else boxes.expand(-1, len(found), -1)
    clipped = Boxes(boxes.reshape(-1, 4).clone())
    clipped.clip(found.image_size)
    same = (clipped.tensor.view(boxes.shape) == found.pred_boxes.tensor).all(-1)
    unknown = int((~same.any(0)).sum())
    if unknown:
        raise ValueError(
            f"{unknown} of the {len(found)} detections of {heads} have boxes that the box "
            "predictor does not give: they cannot be explained."
        )
    return torch.where(same, (probs[:, classes] - found.scores).abs(), torch.inf).argmin(0)


def _check_scores(found: Instances, parts: Explanation, heads: str) -> None:
    scores = parts.probs.gather(1, found.pred_classes[:, None])[:, 0].to(found.scores)
    wrong = ~torch.isclose(scores, found.scores, rtol=1e-3, atol=1e-5)
    if wrong.any():
        ours, theirs = scores[wrong][0], found.scores[wrong][0]
        raise ValueError(
            f"{heads} gives a detection the score {theirs:.4g}, and its box predictors gave "
            f"{ours:.4g}: what comes after them cannot be explained."
        )
