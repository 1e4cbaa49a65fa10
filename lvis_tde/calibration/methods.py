"""The methods of :mod:`lvis_tde.posthoc` and what to try of each: softmax, sigmoids, images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..posthoc import Settings
from .settings import tde_predictors

__all__ = [
    "CLASS_MEANS",
    "FACTUAL",
    "IMAGE_METHODS",
    "SIGMOID_METHODS",
    "SOFTMAX_METHODS",
    "TDE_JOINT",
    "Method",
    "methods_of",
]

FACTUAL = "factual"  # the row of no method
_TDE = ("region", "class_")


@dataclass(frozen=True)
class Method:
    """A method and the strengths to try.

    Attributes:
        name: of its row.
        fields: of :class:`~lvis_tde.posthoc.Settings` that are its strength.
        strengths: ascending, all above 0. 0, the factual probabilities, competes with them, unless
            there is but one, which is then nothing to choose.
        group: what it corrects by: "mean", "weights", "counts", "logits" or "classes". A
            composition has at most one method of a group: two would correct the same thing twice.
        added: strengths to try on top of others; none if it is not for compositions.
        options: further settings, such as the background.
    """

    name: str
    fields: tuple[str, ...]
    strengths: tuple[float, ...]
    group: str
    added: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, strength: float) -> Settings:
        """The method alone; 0 is the factual probabilities, whatever the options."""
        if strength == 0:
            return Settings()
        return Settings(**self._values(strength), **self.options)

    def on_top_of(self, other: Settings, strength: float) -> Settings:
        """With other steps, whose background and sum stay theirs."""
        return dataclasses.replace(other, **self._values(strength))

    def _values(self, strength: float) -> dict[str, Any]:
        return dict.fromkeys(self.fields, float(strength))

    @property
    def tried(self) -> tuple[float, ...]:
        """The strengths that compete."""
        return self.strengths if len(self.strengths) == 1 else (0.0, *self.strengths)


_JOINT, _FREE = {"background": "joint"}, {"keep_sum": ""}
# Of those in brackets in the papers: exempt where nothing is said.
SOFTMAX_METHODS = (
    Method("tde", _TDE, (0.5, 1.0, 1.5, 2.0, 3.0), "mean", (0.5, 1.0, 1.5)),
    Method("tau_norm", ("tau_norm",), (0.5, 1.0, 1.5), "weights", (0.5, 1.0)),
    Method("logit_adjustment", ("logit_adjustment",), (0.5, 1.0, 1.5), "counts", (0.25, 0.5)),
    Method("norcal", ("norcal",), (0.3, 0.6, 1.0), "counts", options=_JOINT),
    Method("logn", ("logn",), (1.0,), "logits", options=_JOINT),
    Method("fracal", ("fracal",), (1.0, 2.0), "counts", options=_JOINT),
)
# TDE without background exemption, the last row of the paper's table 5: to compare, not to choose.
TDE_JOINT = Method("tde_joint", _TDE, (0.5, 1.0, 1.5, 2.0, 3.0), "mean", options=_JOINT)

_ADJUSTMENT = ("logit_adjustment",)
SIGMOID_METHODS = (
    Method("tde", _TDE, (0.1, 0.2, 0.35, 0.5), "mean", (0.1, 0.2)),
    Method("tde_region", ("region",), (0.2, 0.5), "mean"),
    Method("tde_class", ("class_",), (0.5, 2.0), "mean"),
    Method("tde_keep_sum", _TDE, (0.2, 0.5), "mean", options={"keep_sum": "factual"}),
    Method("tau_norm", ("tau_norm",), (0.5, 1.0), "weights", (0.5,)),
    Method("logit_adjustment", _ADJUSTMENT, (0.5, 1.0, 1.5, 2.0), "counts", (0.5, 1.0)),
    Method("logit_adjustment_free", _ADJUSTMENT, (0.5, 1.0, 1.5), "counts", options=_FREE),
    Method("logn", ("logn",), (1.0,), "logits"),
    Method("fracal", ("fracal",), (1.0, 2.0), "counts"),
)


# Without a background NorCal is logit adjustment; FRACAL is about boxes.
IMAGE_METHODS = (
    Method("tde", _TDE, (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0), "mean", (0.25, 0.5, 1.0)),
    Method("tau_norm", ("tau_norm",), (0.5, 1.0, 1.5, 2.0), "weights", (0.5, 1.0)),
    Method("logit_adjustment", _ADJUSTMENT, (0.5, 1.0, 1.5, 2.0), "counts", (0.25, 0.5, 1.0)),
    Method("logn", ("logn",), (0.5, 1.0), "logits"),
)
# For a model that knows the mean of each class, whatever its classifier.
CLASS_MEANS = Method(
    "class_means", ("class_means",), (4.0, 8.0, 12.0, 16.0, 24.0, 48.0), "classes", (8.0, 16.0)
)


def methods_of(model: nn.Module) -> tuple[Method, ...]:
    """The methods for a model: of a softmax or of sigmoids over regions, or of images.

    With the classes' means, if the model knows them.

    Raises:
        ValueError: if it has no TDE predictor.
    """
    predictors = tde_predictors(model)
    methods: tuple[Method, ...] = IMAGE_METHODS
    if predictors[0].has_background:
        methods = SOFTMAX_METHODS
    if any(predictor.use_sigmoid_ce for predictor in predictors):
        methods = SIGMOID_METHODS
    means = [predictor.statistics.class_means for predictor in predictors]
    # A model without numbers, of a check, knows none.
    known = all(not one.is_meta and bool(one.any()) for one in means)
    return (*methods, CLASS_MEANS) if known else methods
