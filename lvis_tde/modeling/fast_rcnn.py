"""The box predictor: upstream's, with the classifier, the running mean and TDE in their places.

The meaning of an output never depends on ``self.training``: ``forward`` gives factual logits,
``losses`` sees the labels and updates the mean, ``predict_probs`` applies TDE and what else of
:mod:`lvis_tde.posthoc` is set.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..config import tde_options
from ..layers.classifier import CosineMultiHeadClassifier
from ..layers.feature_mean import RunningFeatureMean
from ..layers.functional import (
    FLOOR,
    NO_NORM,
    at_least_fp32,
    autocast_off,
    exempt_background,
    may_overwrite,
)
from ..posthoc.exemption import exempt_direct
from .box_loss_modules import BoxLoss, build_box_loss
from .box_losses import joint_logits
from .postprocess import LargeVocabularyInference
from .sigmoid import BoxPredictor, ImageCountWeights
from .statistics import ClassStatistics
from .strengths import DEFAULT_ALPHA
from .with_mean import WithFeatureMean

__all__ = ["TDEFastRCNNOutputLayers"]

logger = logging.getLogger(__name__)

# (R, C + 1) factual logits, (R, 4) or (R, 4 C) box deltas, (R, D) classifier input
Predictions = tuple[Tensor, Tensor, Tensor]

# With it a cosine classifier's sigmoids start at RetinaNet's pi, 0.01. Without a bias its bounded
# logits, which start around 0, come down for a thousand absent classes at once only by turning all
# features away from all weights. The linear classifier has a bias, and starts as upstream's at 0.
_BIAS = -math.log((1 - 0.01) / 0.01)

# EQL v2's authors start at 0.001, and it matters: from 0.5 the first step's negative gradients
# outweigh all positive ones, and the loss then leaves rare classes there.
_EQLV2_BIAS = -math.log((1 - 0.001) / 0.001)


class TDEFastRCNNOutputLayers(WithFeatureMean, LargeVocabularyInference, BoxPredictor):
    """Predicts boxes as upstream does and classes with the total direct effect.

    A drop-in for Detectron2's :class:`FastRCNNOutputLayers` in the forward code of Standard,
    Cascade and Res5 ROI heads. ``forward`` returns the classifier input as a third element, because
    the counterfactual logits need it at inference and the running mean in training.

    Under ``use_sigmoid_ce`` each class has a sigmoid of its own. None of them is the background, so
    nothing is exempt: TDE changes logits, and the sigmoid follows. The last column of logits and
    probabilities is upstream's, unused and left alone.

    Attributes:
        cls_score (CosineMultiHeadClassifier): gives the factual logits.
        feature_mean (RunningFeatureMean): part of checkpoints.
        statistics (ClassStatistics): likewise; unknown until they are gathered.

    What may be changed on a trained model is in :class:`~.strengths.Strengths`.
    """

    has_background = True
    cls_score: CosineMultiHeadClassifier

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        norm: str = "deconfound",
        num_heads: int = 2,
        tau: float = 16.0,
        gamma: float = 1 / 32,
        alpha: float = DEFAULT_ALPHA,
        alpha_region: float | None = None,
        background_exempt: bool = True,
        posthoc: Mapping[str, Any] | None = None,
        mean_momentum: float = 0.9998,
        fast_nms: bool = True,
        loss: str = "cross_entropy",
        get_class_counts: Callable[[], Tensor] | None = None,
        seesaw_p: float = 0.8,
        seesaw_q: float = 2.0,
        eqlv2_gamma: float = 12.0,
        eqlv2_mu: float = 0.8,
        eqlv2_alpha: float = 4.0,
        **kwargs,
    ):
        """
        Args:
            input_shape (ShapeSpec): shape of the input feature to this module.
            norm, num_heads, tau, gamma: see :class:`CosineMultiHeadClassifier`.
            alpha: strength of the removal, >= 0 (1.5 for LVIS); 0 turns TDE off.
            alpha_region: sigmoids: strength of the part of the removed term that is equal for all
                classes of a region, see :func:`lvis_tde.posthoc.tde`; None or -1 for ``alpha``.
            background_exempt: keep the factual ratio of foreground to background
                (paper section 4.3). TDE needs it.
            posthoc: the other steps at inference: ``tau_norm``, ``logn``, ``logit_adjustment``,
                ``norcal``, ``fracal``, ``class_means`` and ``keep_sum``, see
                :class:`lvis_tde.posthoc.Settings`.
            mean_momentum: mu of the running mean, in [0, 1); a step weighs 1 - mu.
            fast_nms: same detections as upstream's, faster with many classes; False runs upstream's
                code.
            loss: of the classifier, "cross_entropy" (of a softmax or of sigmoids),
                "balanced_softmax", "seesaw" or "eqlv2", see :mod:`~.box_losses`.
            get_class_counts: gives (C,) training images of each class, for "balanced_softmax".
            seesaw_p, seesaw_q, eqlv2_gamma, eqlv2_mu, eqlv2_alpha: of these losses.
            **kwargs: those of :class:`FastRCNNOutputLayers`, whichever release is installed, and
                in release 0.6 those of :class:`~.sigmoid.SigmoidFastRCNNOutputLayers`.

        Raises:
            ValueError: if an argument is out of its range, or is for sigmoids and there are none.
        """
        if kwargs.pop("mean_momentum_lr_scaled", None) is not None:
            logger.warning(
                "mean_momentum_lr_scaled was removed and is ignored: a step of the running mean "
                "weighs 1 - mean_momentum, whatever the learning rate."
            )
        super().__init__(input_shape, **kwargs)
        in_features, num_outputs = self.cls_score.in_features, self.cls_score.out_features
        start = _BIAS if self.use_sigmoid_ce and norm != NO_NORM else None
        self.cls_score = CosineMultiHeadClassifier(
            in_features,
            num_outputs,
            num_heads=num_heads,
            tau=tau,
            gamma=gamma,
            norm=norm,
            bias=_EQLV2_BIAS if loss == "eqlv2" else start,
        )
        self.feature_mean = RunningFeatureMean(in_features, momentum=mean_momentum)
        self.statistics = ClassStatistics(num_outputs - 1, in_features)
        self.calibrated_alpha: float | None = None
        self._start(alpha, alpha_region, background_exempt, posthoc)
        self.fast_nms = fast_nms
        self.box_loss: BoxLoss | None = build_box_loss(
            loss,
            num_outputs - 1,
            use_sigmoid_ce=self.use_sigmoid_ce,
            use_fed_loss=self.use_fed_loss,
            get_class_counts=get_class_counts,
            seesaw_p=seesaw_p,
            seesaw_q=seesaw_q,
            eqlv2_gamma=eqlv2_gamma,
            eqlv2_mu=eqlv2_mu,
            eqlv2_alpha=eqlv2_alpha,
        )
        if self.box_loss is not None:
            self.scores = self.box_loss.scores

    @classmethod
    def from_config(cls, cfg, input_shape):
        options = {**super().from_config(cfg, input_shape), **tde_options(cfg)}
        return {**options, "get_class_counts": ImageCountWeights(cfg.DATASETS.TRAIN, 1.0)}

    def forward(self, x: Tensor) -> Predictions:
        """
        Args:
            x: (R, D) or (R, channels, height, width) features, one row a region.

        Returns:
            tuple: (R, C + 1) factual logits, (R, 4) or (R, 4 C) box deltas, (R, D) features.
        """
        if x.dim() > 2:
            x = torch.flatten(x, start_dim=1)
        return self.cls_score(x), self.bbox_pred(x), x

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """Upstream's losses on the factual logits; also moves the running mean.

        What was known of the logits' statistics, and what was chosen for these weights, is
        forgotten, since they are about to move. Under ``torch.no_grad`` all stays: a validation
        loss or the statistics of batch norm are no training step.
        """
        if torch.is_grad_enabled():
            self._update_mean(predictions[2], proposals)
            self.statistics.forget_logits()
            self.calibrated_alpha, self.chosen = None, ""
        # Of another loss upstream's is not used, but its accuracies: those of the scores.
        scores = predictions[0] if self.box_loss is None else self.score_logits(predictions[0])
        losses = super().losses((scores, predictions[1]), proposals)
        if self.box_loss is not None:
            labels = torch.cat([p.gt_classes for p in proposals]) if proposals else None
            logits = predictions[0]
            labels = logits.new_empty(0) if labels is None else labels
            loss = self.box_loss(logits, labels.long())
            losses["loss_cls"] = loss * self.loss_weight.get("loss_cls", 1.0)
        return losses

    def predict_boxes(self, predictions: Predictions, proposals: list[Instances]):
        return super().predict_boxes(predictions[:2], proposals)

    def predict_boxes_for_gt_classes(self, predictions: Predictions, proposals: list[Instances]):
        return super().predict_boxes_for_gt_classes(predictions[:2], proposals)

    def predict_probs(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Probabilities after TDE and what else is set in :attr:`posthoc`.

        Args:
            predictions: what :meth:`forward` returned.
            proposals: N images' proposals that the features belong to.

        Returns:
            tuple[Tensor]: N tensors (Ri, C + 1) in [0, 1], fp32 at least; rows of a softmax sum to
            1, and sigmoids end with a column that is none of the classes.

        Raises:
            ValueError: if a setting needs statistics of the classes that are not known.
        """
        logits, _, features = predictions
        # `len` would be a constant of a trace.
        sizes = [p.__len__() for p in proposals]
        probs = self._probs(self.score_logits(at_least_fp32(logits)), features)
        return self.finish_scores(probs, logits).split(sizes)

    def score_logits(self, logits: Tensor) -> Tensor:
        return joint_logits(logits) if self.scores == "objectness" else logits

    def finish_scores(self, probs: Tensor, logits: Tensor) -> Tensor:
        if self.scores == "sigmoid":
            rest = torch.sigmoid(-at_least_fp32(logits[:, -1:]))
            if not torch.is_grad_enabled():
                probs[:, :-1] *= rest
                return probs
            probs = torch.cat([probs[:, :-1] * rest, probs[:, -1:]], dim=-1)
        return probs

    def _probs(self, logits: Tensor, features: Tensor) -> Tensor:
        steps = self.composition()
        if not steps.uses_tde:
            return steps(logits, features=features)
        alone = steps.factor is None and steps.margin is None and not steps.uses_features
        if self.use_sigmoid_ce or not (alone and self.background_exempt):
            return steps(logits, *self._tde_terms(logits, features), features)
        # TDE alone: the authors' exemption, which has a floor.
        if may_overwrite():
            cosine, pull = self._tde_terms(logits, features)
            with autocast_off(logits):
                return exempt_direct(logits, cosine, pull * self.alpha, FLOOR)
        self._see_to_mean(logits)
        mean = self.feature_mean.mean
        direct = self.cls_score.direct_effect(logits, features, mean, self.alpha)
        return exempt_background(logits, direct)

    @torch.no_grad()
    def _update_mean(self, features: Tensor, proposals: list[Instances]) -> None:
        labels = [p.gt_classes for p in proposals]
        gt_classes = torch.cat(labels) if labels else features.new_empty(0, dtype=torch.long)
        foreground = (gt_classes >= 0) & (gt_classes < self.num_classes)
        # One transfer for the three scalars.
        moved = self._move_mean(features, foreground)
        num_fg, mean_norm, fg_cosine = torch.stack(moved).tolist()
        if num_fg == 0:
            return
        storage = get_event_storage()
        storage.put_scalar("tde/num_fg", num_fg)
        storage.put_scalar("tde/mean_norm", mean_norm)
        if fg_cosine == fg_cosine:  # NaN where only other processes have foreground
            storage.put_scalar("tde/fg_cosine_to_mean", fg_cosine)
