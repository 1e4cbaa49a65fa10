"""What a TDE predictor is given after training: how much of the indirect effect it removes."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..layers.functional import check_alpha
from ..posthoc import Composition, Settings, compose
from ..posthoc.margins import check_strength

__all__ = ["DEFAULT_ALPHA", "Strengths"]

logger = logging.getLogger(__name__)

DEFAULT_ALPHA = 1.5  # of the paper, for LVIS
NOT_CALIBRATED = -1.0  # in checkpoints


class Strengths:
    """Mixin for box predictors; none of it is used in training.

    Attributes:
        alpha (float): strength of the removal, >= 0.
        alpha_region (float or None): of sigmoids, the strength of the part that is equal for all
            classes of a region; None for ``alpha``.
        keep_sum (bool): of sigmoids, whether each region keeps its summed probability.
        calibrated_alpha (float or None): the alpha that was chosen for these weights on held-out
            data, part of checkpoints.
    """

    use_sigmoid_ce: bool
    calibrated_alpha: float | None

    @property
    def alpha(self) -> float:
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = check_alpha(value)

    @property
    def alpha_region(self) -> float | None:
        return self._alpha_region

    @alpha_region.setter
    def alpha_region(self, value: float | None) -> None:
        if value is None or value == -1:
            self._alpha_region = None
        elif self.use_sigmoid_ce:
            self._alpha_region = check_strength("alpha_region", value)
        else:
            raise ValueError(
                f"alpha_region={value} needs sigmoids (use_sigmoid_ce=True): a softmax has alpha "
                "alone."
            )

    @property
    def strengths(self) -> tuple[float, float]:
        """Of what all classes of a region share, and of the rest; both 0 turn TDE off."""
        region = self.alpha if self.alpha_region is None else self.alpha_region
        return region, self.alpha

    @property
    def keep_sum(self) -> bool:
        return self._keep_sum

    @keep_sum.setter
    def keep_sum(self, value: bool) -> None:
        if value and not self.use_sigmoid_ce:
            raise ValueError(
                "keep_sum=True needs sigmoids (use_sigmoid_ce=True): a softmax keeps its sum with "
                "background_exempt."
            )
        self._keep_sum = bool(value)

    def sigmoid_steps(self) -> Composition:
        """What makes probabilities of a sigmoid classifier's logits."""
        region, class_ = self.strengths
        keep = "factual" if self.keep_sum else ""
        return compose(Settings(region=region, class_=class_, keep_sum=keep), sigmoid=True)

    def get_extra_state(self) -> Tensor:
        # A tensor, since checkpointers take every entry for one.
        chosen = NOT_CALIBRATED if self.calibrated_alpha is None else self.calibrated_alpha
        return torch.tensor(chosen, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        chosen = state.item()
        self.calibrated_alpha = None if chosen == NOT_CALIBRATED else chosen
        if self.calibrated_alpha not in (None, self.alpha):
            logger.warning(
                "The checkpoint's alpha, chosen on held-out data, is %g; this model predicts with "
                "%g (alpha, MODEL.TDE.ALPHA).",
                self.calibrated_alpha,
                self.alpha,
            )
