"""The box predictor: upstream's, with the classifier, the running mean and TDE in their places.

The meaning of an output never depends on ``self.training``: ``forward`` gives factual logits,
``losses`` sees the labels and updates the mean, ``predict_probs`` applies TDE.
"""

from __future__ import annotations

import logging

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from ..config import tde_options
from ..layers.classifier import CosineMultiHeadClassifier
from ..layers.feature_mean import RunningFeatureMean
from ..layers.functional import at_least_fp32, check_alpha, cosine_to_mean, exempt_background
from .postprocess import LargeVocabularyInference

__all__ = ["TDEFastRCNNOutputLayers"]

logger = logging.getLogger(__name__)

# (R, C + 1) factual logits, (R, 4) or (R, 4 C) box deltas, (R, D) classifier input
Predictions = tuple[Tensor, Tensor, Tensor]


def refuse_sigmoid(options: dict[str, bool]) -> None:
    """
    Raises:
        ValueError: if ``options`` ask for sigmoid cross entropy or the federated loss.
    """
    for name in ("use_sigmoid_ce", "use_fed_loss"):
        if options.get(name):
            raise ValueError(
                f"{name}=True does not go with TDE: the background exemption needs a softmax "
                "over foreground and background, and a sigmoid has no background class. Set "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE and USE_FED_LOSS to False."
            )


class TDEFastRCNNOutputLayers(LargeVocabularyInference, FastRCNNOutputLayers):
    """Predicts boxes as upstream does and classes with the total direct effect.

    A drop-in for :class:`FastRCNNOutputLayers` in the forward code of Standard, Cascade and Res5
    ROI heads. ``forward`` returns the classifier input as a third element, because the
    counterfactual logits need it at inference and the running mean in training.

    Attributes:
        cls_score (CosineMultiHeadClassifier): gives the factual logits.
        feature_mean (RunningFeatureMean): part of checkpoints.
        alpha (float): strength of the removal; never used in training, so it may be changed on
            a trained model.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        norm: str = "deconfound",
        num_heads: int = 2,
        tau: float = 16.0,
        gamma: float = 1 / 32,
        alpha: float = 1.5,
        background_exempt: bool = True,
        mean_momentum: float = 0.9,
        mean_momentum_lr_scaled: bool = True,
        fast_nms: bool = True,
        **kwargs,
    ):
        """
        Args:
            input_shape (ShapeSpec): shape of the input feature to this module.
            norm, num_heads, tau, gamma: see :class:`CosineMultiHeadClassifier`.
            alpha: strength of the removal, >= 0 (1.5 for LVIS); 0 turns TDE off.
            background_exempt: keep the factual ratio of foreground to background
                (paper section 4.3). Detection needs it.
            mean_momentum: mu of the running mean, in [0, 1).
            mean_momentum_lr_scaled: weight every step of the mean by the learning rate.
            fast_nms: same detections as upstream's, faster with many classes; False runs upstream's
                code.
            **kwargs: those of :class:`FastRCNNOutputLayers`, whichever release is installed.

        Raises:
            ValueError: if an argument is out of its range, or if sigmoid cross entropy or the
                federated loss is asked for.
        """
        refuse_sigmoid(kwargs)
        super().__init__(input_shape, **kwargs)
        check_alpha(alpha)
        in_features, num_outputs = self.cls_score.in_features, self.cls_score.out_features
        self.cls_score = CosineMultiHeadClassifier(
            in_features, num_outputs, num_heads=num_heads, tau=tau, gamma=gamma, norm=norm
        )
        self.feature_mean = RunningFeatureMean(in_features, momentum=mean_momentum)
        self.alpha = float(alpha)
        self.background_exempt = background_exempt
        self.mean_momentum_lr_scaled = mean_momentum_lr_scaled
        self.fast_nms = fast_nms
        self._warned_zero_mean = False
        self._before_unscaled = None

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), **tde_options(cfg)}

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

        Under ``torch.no_grad`` the mean stays: a validation loss or the statistics of batch norm
        are no training step.
        """
        if torch.is_grad_enabled():
            self._update_mean(predictions[2], proposals)
        return super().losses(predictions[:2], proposals)

    def predict_boxes(self, predictions: Predictions, proposals: list[Instances]):
        return super().predict_boxes(predictions[:2], proposals)

    def predict_boxes_for_gt_classes(self, predictions: Predictions, proposals: list[Instances]):
        return super().predict_boxes_for_gt_classes(predictions[:2], proposals)

    def predict_probs(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Probabilities after TDE and background exemption.

        Args:
            predictions: what :meth:`forward` returned.
            proposals: N images' proposals that the features belong to.

        Returns:
            tuple[Tensor]: N tensors (Ri, C + 1), rows in [0, 1] that sum to 1, fp32 at least.
        """
        logits, _, features = predictions
        return self._probs(at_least_fp32(logits), features).split([len(p) for p in proposals])

    def _probs(self, logits: Tensor, features: Tensor) -> Tensor:
        if self.alpha == 0 or not self._has_mean():
            return F.softmax(logits, dim=-1)
        mean = self.feature_mean.mean
        direct = self.cls_score.direct_effect(logits, features, mean, self.alpha)
        if self.background_exempt:
            return exempt_background(logits, direct, overwrite=True)
        return direct.softmax(-1)

    def _has_mean(self) -> bool:
        if self.feature_mean.mean.any():
            return True
        if not self._warned_zero_mean:
            self._warned_zero_mean = True
            logger.warning(
                "The running feature mean is zero: predicting without TDE. Load a checkpoint "
                "that was trained with TDE, train, or estimate the mean of a trained model with "
                "tools/estimate_feature_mean.py."
            )
        return False

    @torch.no_grad()
    def _update_mean(self, features: Tensor, proposals: list[Instances]) -> None:
        labels = [p.gt_classes for p in proposals]
        gt_classes = torch.cat(labels) if labels else features.new_empty(0, dtype=torch.long)
        foreground = (gt_classes >= 0) & (gt_classes < self.num_classes)
        lr = self._current_lr() if self.mean_momentum_lr_scaled else None
        before = self.feature_mean.mean.clone()
        if lr is not None and self._before_unscaled is not None:
            # What is logged now is the rate of the step before, which was taken without it.
            self.feature_mean.mean.copy_(self._before_unscaled.lerp(before, lr))
        self._before_unscaled = before if lr is None and self.mean_momentum_lr_scaled else None
        count = self.feature_mean.update(features, foreground, lr)
        mean = self.feature_mean.mean
        num_heads = self.cls_score.num_heads
        cosine = cosine_to_mean(features[foreground], mean, num_heads, "cosine").mean()
        # One transfer for the three scalars.
        num_fg, mean_norm, fg_cosine = torch.stack([count, mean.norm(), cosine.float()]).tolist()
        if num_fg == 0:
            return
        storage = get_event_storage()
        storage.put_scalar("tde/num_fg", num_fg)
        storage.put_scalar("tde/mean_norm", mean_norm)
        if fg_cosine == fg_cosine:  # NaN where only other processes have foreground
            storage.put_scalar("tde/fg_cosine_to_mean", fg_cosine)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Says what the names of missing and unexpected keys do not: what follows from them.
        bias, mean = f"{prefix}cls_score.bias", f"{prefix}feature_mean.mean"
        if bias in state_dict and self.cls_score.bias is None:
            logger.warning(
                "The checkpoint has %s: its classifier is a softmax. Its weight is loaded as the "
                "start of the TDE classifier and its bias is dropped: train before relying on "
                "the scores, or keep the softmax with MODEL.TDE.NORM none.",
                bias,
            )
        elif f"{prefix}cls_score.weight" in state_dict and mean not in state_dict:
            logger.warning(
                "The checkpoint has a classifier but no %s: without that mean there is no TDE. "
                "Estimate it with tools/estimate_feature_mean.py, or train.",
                mean,
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _current_lr(self):
        if self.feature_mean.lr is not None:
            return self.feature_mean.lr
        # Under a training loop that is not ours: Detectron2 logs the rate of the step before.
        history = get_event_storage().histories().get("lr")
        return history.latest() if history is not None else None
