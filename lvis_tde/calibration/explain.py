"""What TDE did to a prediction, class by class.

Shapes as in :mod:`lvis_tde.layers.functional`; the R rows are regions, or detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.functional import cosine_to_mean, exempt_background
from ..modeling.fast_rcnn import TDEFastRCNNOutputLayers

__all__ = ["Explanation", "explain", "explain_detections"]


@dataclass(frozen=True)
class Explanation:
    """The parts of R predictions, all float64; background is the last class.

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
    """

    total: Tensor
    indirect: Tensor
    direct: Tensor
    cosine: Tensor
    factual_probs: Tensor
    direct_probs: Tensor
    probs: Tensor
    alpha: float

    @property
    def exemption(self) -> Tensor:
        """(R, C + 1) what background exemption added to each probability; rows sum to 0."""
        return self.probs - self.direct_probs

    def __len__(self) -> int:
        return len(self.total)

    def __getitem__(self, rows) -> Explanation:
        """The explanation of some rows: a slice, a mask or a tensor of indices."""
        return Explanation(*(getattr(self, name)[rows] for name in _TENSORS), self.alpha)


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
        ValueError: if the features do not fit or ``alpha`` is negative.
    """
    alpha = predictor.alpha if alpha is None else float(alpha)
    classifier, mean = predictor.cls_score, predictor.feature_mean.mean
    if features.dim() != 2 or features.shape[1] != classifier.in_features:
        raise ValueError(
            f"features have shape {tuple(features.shape)}, expected (R, {classifier.in_features})."
        )
    if not alpha >= 0:
        raise ValueError(f"alpha={alpha} must not be negative.")
    if not mean.any():
        alpha = 0.0
    features = features.double()
    total = classifier(features)
    indirect = classifier.indirect_effect(features, mean, alpha)
    direct = total - indirect
    factual_probs, direct_probs = F.softmax(total, -1), F.softmax(direct, -1)
    probs = direct_probs
    if alpha == 0:
        probs = factual_probs
    elif predictor.background_exempt:
        probs = exempt_background(total, direct)
    cosine = cosine_to_mean(features, mean, classifier.num_heads, "cosine")
    return Explanation(total, indirect, direct, cosine, factual_probs, direct_probs, probs, alpha)


def _average(stages: Sequence[Explanation]) -> Explanation:
    """Of a cascade: effects and probabilities are averaged, as its predictions are."""
    if len(stages) == 1:
        return stages[0]
    parts = {
        name: torch.stack([getattr(stage, name) for stage in stages]).mean(0) for name in _TENSORS
    }
    parts["cosine"] = torch.cat([stage.cosine for stage in stages], dim=1)
    return Explanation(**parts, alpha=max(stage.alpha for stage in stages))


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
        ValueError: if the model has no TDE predictor or ``alpha`` is negative.
    """
    # Here, since the sweep is built on the model's parts as this is.
    from .alpha import detect_boxes, tde_predictors

    if alpha is None:
        alpha = tde_predictors(model)[0].alpha
    instances, kept, calls = detect_boxes(model, inputs, alpha)
    results = []
    for index, (found, rows) in enumerate(zip(instances, kept)):
        stages = []
        for predictor, predictions, proposals in calls:
            features = predictions[2].split([len(p) for p in proposals])[index]
            stages.append(explain(predictor, features[rows], alpha))
        results.append((found, _average(stages)))
    return results
