"""What a checkpoint remembers of a predictor's strengths; what is told where a model has others."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch import Tensor

from ..posthoc import Settings
from .words import pack, unpack

__all__ = ["NOT_CALIBRATED", "STRENGTHS", "Remembered"]

logger = logging.getLogger(__name__)

NOT_CALIBRATED = -1.0  # in checkpoints

# Entry of checkpoints beside the calibrated alpha; bytes of it, and letters of how it was chosen.
STRENGTHS = "strengths"
_STATE_SIZE, _MOST_WORDS = 2048, 300


class Remembered:
    """Mixin of :class:`~.strengths.Strengths`, whose attributes it puts into checkpoints."""

    alpha: float
    use_sigmoid_ce: bool
    calibrated_alpha: float | None
    chosen: str = ""
    # Where scores come from besides each logit: "", "objectness" or "sigmoid" of the background.
    scores: str = ""
    _posthoc: Settings

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

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        content: dict[str, Any] = {
            "settings": dataclasses.asdict(self._posthoc),
            "sigmoid": self.use_sigmoid_ce,
            "scores": self.scores,
            "chosen": self.chosen[:_MOST_WORDS],
        }
        # JSON takes up to twelve bytes for a letter.
        while content["chosen"] and not pack(content, _STATE_SIZE).any():
            content["chosen"] = content["chosen"][:-1]
        destination[f"{prefix}{STRENGTHS}"] = pack(content, _STATE_SIZE)

    def _recall(self, state: Tensor | None) -> None:
        """Takes what a checkpoint says of its strengths, and tells where this model has others."""
        content = None if state is None else unpack(state)
        content = content if isinstance(content, dict) else {}
        self.chosen = str(content.get("chosen", ""))
        sigmoid = content.get("sigmoid", self.use_sigmoid_ce)
        if sigmoid != self.use_sigmoid_ce:
            logger.warning(
                "The checkpoint's classifier has %s, and this model %s: its scores will be wrong. "
                "Set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE (use_sigmoid_ce) to %s.",
                *(("sigmoids", "a softmax") if sigmoid else ("a softmax", "sigmoids")),
                bool(sigmoid),
            )
        elif (scores := content.get("scores", self.scores)) != self.scores:
            losses = {"objectness": "seesaw", "sigmoid": "eqlv2"}
            logger.warning(
                "The checkpoint's classifier was trained with the loss %s, and this model has %s: "
                "its scores will be wrong. Set MODEL.TDE.LOSS (loss) to that of the training.",
                *(
                    losses.get(one, "cross_entropy or balanced_softmax")
                    for one in (scores, self.scores)
                ),
            )
        if not self.chosen:
            return
        there, here = content.get("settings", {}), dataclasses.asdict(self._posthoc)
        # Of alpha set_extra_state tells.
        other = {
            name: value
            for name, value in there.items()
            if name in here and here[name] != value and name not in ("class_", "region")
        }
        if other:
            logger.warning(
                "The checkpoint's settings were chosen on held-out data (%s), and this model "
                "predicts with others: %s.",
                self.chosen,
                ", ".join(f"{name} {here[name]} in place of {other[name]}" for name in other),
            )
