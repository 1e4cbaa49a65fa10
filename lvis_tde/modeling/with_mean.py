"""What a predictor with a running mean does with it, for boxes and for images alike."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..layers.feature_mean import RunningFeatureMean
from ..layers.functional import cosine_to_mean
from .remembered import NOT_CALIBRATED, STRENGTHS
from .strengths import DEFAULT_ALPHA, Strengths

__all__ = ["WithFeatureMean"]

logger = logging.getLogger(__name__)


class WithFeatureMean(Strengths):
    """Mixin for predictors; says once what the user may not know of a mean or of a checkpoint.

    Attributes:
        feature_mean (RunningFeatureMean): part of checkpoints.
    """

    feature_mean: RunningFeatureMean
    _looked_at_mean = False

    def score_logits(self, logits: Tensor) -> Tensor:
        """The logits whose softmax, or sigmoids, are the scores.

        Those of ``forward``, but with the seesaw loss for the last column, its objectness.

        Args:
            logits: what ``forward`` gives.
        """
        return logits

    def finish_scores(self, probs: Tensor, logits: Tensor) -> Tensor:
        """What sigmoids become beside a background that has one of its own (EQL v2).

        Args:
            probs: of each class on its own, whatever was done to it after training.
            logits: what ``forward`` gives.
        """
        return probs

    def _tde_terms(self, logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """TDE's terms, see :meth:`CosineMultiHeadClassifier.effect_terms`.

        A mean of zero has no effect to remove: TDE then changes nothing.
        """
        self._see_to_mean(logits)
        return self.cls_score.effect_terms(features, self.feature_mean.mean)

    def _see_to_mean(self, logits: Tensor) -> None:
        if not (self._looked_at_mean or torch.compiler.is_compiling() or logits.is_meta):
            self._look_at_mean()

    def _look_at_mean(self) -> None:
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
                "tools/sweep_alpha.py finds the one that suits it on held-out images.%s",
                self.alpha,
                " It is a softmax's: sigmoids need far less." if self.use_sigmoid_ce else "",
            )

    def _move_mean(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Moves the mean.

        Args:
            features, mask: see :meth:`RunningFeatureMean.update`.

        Returns:
            tuple: scalars on the device: the number of selected rows over all processes, the norm
            of the mean, the average cosine to it of this process's rows, NaN where it has none.
        """
        count = self.feature_mean.update(features, mask)
        mean = self.feature_mean.mean
        selected = features if mask is None else features[mask]
        cosine = cosine_to_mean(selected, mean, self.cls_score.num_heads, "cosine").mean()
        return count, mean.norm(), cosine.float()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        self._looked_at_mean = False
        # Checkpoints of earlier releases and of softmax models do not know the entry.
        state_dict.setdefault(f"{prefix}_extra_state", torch.tensor(NOT_CALIBRATED, device="cpu"))
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
        strengths = state_dict.pop(f"{prefix}{STRENGTHS}", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]
        self._recall(strengths)
