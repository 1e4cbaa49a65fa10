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
from ..layers.functional import FLOOR, at_least_fp32, check_alpha, cosine_to_mean, exempt_background
from .postprocess import LargeVocabularyInference

__all__ = ["TDEFastRCNNOutputLayers"]

logger = logging.getLogger(__name__)

# (R, C + 1) factual logits, (R, 4) or (R, 4 C) box deltas, (R, D) classifier input
Predictions = tuple[Tensor, Tensor, Tensor]

DEFAULT_ALPHA = 1.5  # of the paper, for LVIS
_NOT_CALIBRATED = -1.0  # in checkpoints


def refuse_sigmoid(options: dict[str, bool]) -> None:
    """
    Raises:
        ValueError: if ``options`` ask for sigmoid cross entropy or the federated loss.
    """
    for name in ("use_sigmoid_ce", "use_fed_loss"):
        if options.get(name):
            raise ValueError(
                f"{name}=True does not go with TDE: the background exemption needs a softmax "
                "over foreground and background, and a sigmoid has no background class. Set both "
                "to False (MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE and USE_FED_LOSS in yacs)."
            )


def _exempt_in_place(logits: Tensor, direct: Tensor) -> Tensor:
    """:func:`exempt_background` that overwrites ``direct``.

    With 1203 classes fresh tensors of this size cost more page faults than arithmetic.
    """
    probs = F.softmax(logits, dim=-1)
    background = probs[:, -1:].clone()
    foreground = probs[:, :-1].sum(-1, keepdim=True)
    direct[:, -1] = -torch.inf
    torch.softmax(direct, dim=-1, out=probs)
    probs.add_(FLOOR).mul_(foreground / (1 + FLOOR))
    probs[:, -1:] = background
    return probs


class TDEFastRCNNOutputLayers(LargeVocabularyInference, FastRCNNOutputLayers):
    """Predicts boxes as upstream does and classes with the total direct effect.

    A drop-in for :class:`FastRCNNOutputLayers` in the forward code of Standard, Cascade and Res5
    ROI heads. ``forward`` returns the classifier input as a third element, because the
    counterfactual logits need it at inference and the running mean in training.

    Attributes:
        cls_score (CosineMultiHeadClassifier): gives the factual logits.
        feature_mean (RunningFeatureMean): part of checkpoints.
        alpha (float): strength of the removal, >= 0; never used in training, so it may be changed
            on a trained model.
        calibrated_alpha (float or None): the alpha that was chosen for these weights on held-out
            data, part of checkpoints.
    """

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
        background_exempt: bool = True,
        mean_momentum: float = 0.9998,
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
            mean_momentum: mu of the running mean, in [0, 1); a step weighs 1 - mu.
            fast_nms: same detections as upstream's, faster with many classes; False runs upstream's
                code.
            **kwargs: those of :class:`FastRCNNOutputLayers`, whichever release is installed.

        Raises:
            ValueError: if an argument is out of its range, or if sigmoid cross entropy or the
                federated loss is asked for.
        """
        refuse_sigmoid(kwargs)
        if kwargs.pop("mean_momentum_lr_scaled", None) is not None:
            logger.warning(
                "mean_momentum_lr_scaled was removed and is ignored: a step of the running mean "
                "weighs 1 - mean_momentum, whatever the learning rate."
            )
        super().__init__(input_shape, **kwargs)
        in_features, num_outputs = self.cls_score.in_features, self.cls_score.out_features
        self.cls_score = CosineMultiHeadClassifier(
            in_features, num_outputs, num_heads=num_heads, tau=tau, gamma=gamma, norm=norm
        )
        self.feature_mean = RunningFeatureMean(in_features, momentum=mean_momentum)
        self.alpha = alpha
        self.calibrated_alpha: float | None = None
        self.background_exempt = background_exempt
        self.fast_nms = fast_nms
        self._looked_at_mean = False

    @property
    def alpha(self) -> float:
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = check_alpha(value)

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
        if self.alpha == 0:
            return F.softmax(logits, dim=-1)
        if not (self._looked_at_mean or torch.compiler.is_compiling() or logits.is_meta):
            self._look_at_mean()
        # A mean of zero has no effect to remove: what follows is then the softmax of the logits.
        mean = self.feature_mean.mean
        direct = self.cls_score.direct_effect(logits, features, mean, self.alpha)
        if not self.background_exempt:
            return direct.softmax(-1)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return exempt_background(logits, direct)
        return _exempt_in_place(logits, direct)

    def _look_at_mean(self) -> None:
        """Says once what the user may not know of this prediction."""
        self._looked_at_mean = True
        if not self.feature_mean.mean.any():
            logger.warning(
                "The running feature mean is zero: predicting without TDE. Load a checkpoint "
                "that was trained with TDE, train, or estimate the mean of a trained model with "
                "tools/estimate_feature_mean.py."
            )
        elif self.calibrated_alpha is None and self.alpha == DEFAULT_ALPHA:
            logger.warning(
                "Predicting with alpha %g, the default, which nobody chose for this model: "
                "tools/sweep_alpha.py finds the one that suits it on held-out images.",
                self.alpha,
            )

    @torch.no_grad()
    def _update_mean(self, features: Tensor, proposals: list[Instances]) -> None:
        labels = [p.gt_classes for p in proposals]
        gt_classes = torch.cat(labels) if labels else features.new_empty(0, dtype=torch.long)
        foreground = (gt_classes >= 0) & (gt_classes < self.num_classes)
        count = self.feature_mean.update(features, foreground)
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

    def get_extra_state(self) -> Tensor:
        # A tensor, since checkpointers take every entry for one.
        chosen = _NOT_CALIBRATED if self.calibrated_alpha is None else self.calibrated_alpha
        return torch.tensor(chosen, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        chosen = state.item()
        self.calibrated_alpha = None if chosen == _NOT_CALIBRATED else chosen
        if self.calibrated_alpha not in (None, self.alpha):
            logger.warning(
                "The checkpoint's alpha, chosen on held-out data, is %g; this model predicts with "
                "%g (alpha, MODEL.TDE.ALPHA).",
                self.calibrated_alpha,
                self.alpha,
            )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        self._looked_at_mean = False
        # Checkpoints of earlier releases and of softmax models do not know the entry.
        state_dict.setdefault(f"{prefix}_extra_state", torch.tensor(_NOT_CALIBRATED, device="cpu"))
        # Says what the names of missing and unexpected keys do not: what follows from them.
        bias, mean = f"{prefix}cls_score.bias", f"{prefix}feature_mean.mean"
        if bias in state_dict and self.cls_score.bias is None:
            logger.warning(
                "The checkpoint has %s: its classifier is a softmax. Its weight is loaded as the "
                "start of the TDE classifier and its bias is dropped: train before relying on "
                "the scores, or keep the softmax with norm 'none' (MODEL.TDE.NORM).",
                bias,
            )
        elif f"{prefix}cls_score.weight" in state_dict and mean not in state_dict:
            logger.warning(
                "The checkpoint has a classifier but no %s: without that mean there is no TDE. "
                "Estimate it with tools/estimate_feature_mean.py, or train.",
                mean,
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
