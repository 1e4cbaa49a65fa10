"""What TDE and the other post-hoc steps did to a prediction, class by class.

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
from ..modeling.image_classifier import ImageClassifier
from ..modeling.image_predictor import TDEImagePredictor
from ..modeling.intercept import intercepted
from ..posthoc import tde
from .replay import BoxBranch
from .settings import describe, settings

__all__ = ["Explanation", "explain", "explain_detections", "explain_images"]


@dataclass(frozen=True)
class Explanation:
    """The parts of R predictions, all float64; background, of regions, is the last class.

    Read C for C + 1 where the rows are images, which have no background.

    Read sigmoid for softmax where the predictor has sigmoids. The last column is then none of the
    classes, and the shift that keeps the sum, if there is one, stands for the exemption.

    Attributes:
        total: (R, C + 1) total effect ``y``, the factual logits.
        indirect: (R, C + 1) the momentum's indirect effect ``y0`` at ``alpha``.
        direct: (R, C + 1) total direct effect ``t``; ``total == indirect + direct``.
        other: (R, C + 1) what the other steps add to ``direct``; 0 where there are none.
        cosine: (R, K) cosine of each head's features to the mean; over the stages of a cascade
            (R, stages * K).
        factual_probs: (R, C + 1) ``softmax(y)``: the prediction without TDE.
        direct_probs: (R, C + 1) ``softmax(adjusted)``: that of TDE and the other steps before
            background exemption.
        probs: (R, C + 1) the prediction.
        alpha: strength of the removal that was used; 0 where the model has no mean.
        sigmoid: each class has a sigmoid of its own.
        steps: names and strengths of what is on, see
            :func:`~lvis_tde.calibration.settings.describe`.
    """

    total: Tensor
    indirect: Tensor
    direct: Tensor
    other: Tensor
    cosine: Tensor
    factual_probs: Tensor
    direct_probs: Tensor
    probs: Tensor
    alpha: float
    sigmoid: bool = False
    steps: str = ""

    @property
    def adjusted(self) -> Tensor:
        """(R, C + 1) logits after all steps: ``direct + other``."""
        return self.direct + self.other

    @property
    def exemption(self) -> Tensor:
        """(R, C + 1) what background exemption added to each probability: of a softmax 0 a row.

        Of sigmoids it is what the shift that keeps the sum and FRACAL's second factor did.
        """
        return self.probs - self.direct_probs

    def __len__(self) -> int:
        return len(self.total)

    def __getitem__(self, rows) -> Explanation:
        """The explanation of some rows: a slice, a mask or a tensor of indices."""
        parts = {name: getattr(self, name)[rows] for name in _TENSORS}
        return dataclasses.replace(self, **parts)


_TENSORS = (
    "total",
    "indirect",
    "direct",
    "other",
    "cosine",
    "factual_probs",
    "direct_probs",
    "probs",
)


@torch.no_grad()
def explain(
    predictor: TDEFastRCNNOutputLayers | TDEImagePredictor,
    features: Tensor,
    alpha: float | None = None,
) -> Explanation:
    """Takes the predictions for some regions apart.

    Args:
        predictor: of boxes or of images; not changed.
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
    logits = classifier(features)
    total = predictor.score_logits(logits)
    terms = classifier.effect_terms(features, mean)
    with settings([predictor], alpha=alpha):
        steps, background = predictor.composition(), predictor.background_exempt
        strengths = predictor.posthoc
    adjusted = direct = steps.adjust(total, *terms, features)
    plain = steps.factor is None and steps.margin is None and not steps.uses_features
    if not plain:
        direct = tde(total, *terms, strengths.region, strengths.class_)
    if steps.sigmoid:
        for one in (adjusted, direct):  # of which the last column is no class
            one[:, -1] = total[:, -1]
    probs = steps(total, *terms, features)
    if plain and steps.uses_tde and background and steps.background and not steps.sigmoid:
        probs = exempt_background(total, direct)  # which has a floor

    def scores(values: Tensor) -> Tensor:
        one = values.sigmoid() if steps.sigmoid else F.softmax(values, dim=-1)
        return predictor.finish_scores(one, logits)

    return Explanation(
        total=total,
        indirect=total - direct,
        direct=direct,
        other=adjusted - direct,
        cosine=cosine_to_mean(features, mean, classifier.num_heads, "cosine"),
        factual_probs=scores(total),
        direct_probs=scores(adjusted),
        probs=predictor.finish_scores(probs, logits),
        alpha=alpha,
        sigmoid=steps.sigmoid,
        steps=describe(strengths),
    )


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


@torch.no_grad()
def explain_images(model: ImageClassifier, inputs: Any, alpha: float | None = None) -> Explanation:
    """Classifies images and takes every prediction apart.

    Args:
        model: in eval mode.
        inputs: N images, as the model takes them.
        alpha: strength of the removal, >= 0; default: the model's.

    Returns:
        Explanation: one row an image.

    Raises:
        ValueError: if ``alpha`` is negative or not finite.
    """
    return explain(model.predictor, model.features(inputs), alpha)


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
