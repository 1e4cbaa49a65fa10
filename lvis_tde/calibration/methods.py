"""The methods of :mod:`lvis_tde.posthoc` by name, each with the strengths that are worth trying."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..posthoc import Settings
from .settings import tde_predictors

__all__ = ["FACTUAL", "SIGMOID_METHODS", "SOFTMAX_METHODS", "Method", "describe", "methods_of"]

FACTUAL = "factual"
_TDE = ("region", "class_")


@dataclass(frozen=True)
class Method:
    """A method and the strengths to try.

    Attributes:
        name: of its row.
        fields: of :class:`~lvis_tde.posthoc.Settings` that are its strength.
        strengths: ascending, all above 0. 0, the factual probabilities, competes with them, unless
            there is but one, which is then nothing to choose.
        group: what it corrects by: "mean", "weights", "counts" or "logits". A composition has at
            most one method of a group, since two would correct the same thing twice.
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
        """The method alone; 0 is :data:`FACTUAL` whatever the options."""
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


_JOINT = {"background": "joint"}
# Of those in brackets in the papers: exempt where nothing is said.
SOFTMAX_METHODS = (
    Method("tde", _TDE, (0.5, 1.0, 1.5, 2.0, 3.0), "mean", (0.5, 1.0, 1.5)),
    Method("tau_norm", ("tau_norm",), (0.5, 1.0, 1.5, 2.0), "weights", (0.5, 1.0)),
    Method("logit_adjustment", ("logit_adjustment",), (0.25, 0.5, 1.0, 1.5), "counts", (0.25, 0.5)),
    Method("norcal", ("norcal",), (0.2, 0.5, 0.8, 1.2), "counts", options=_JOINT),
    Method("logn", ("logn",), (1.0,), "logits", options=_JOINT),
    Method("fracal", ("fracal",), (0.5, 1.0, 2.0), "counts", options=_JOINT),
)

_PARTS = (0.1, 0.2, 0.35, 0.5, 0.75)
_BETAS = (0.5, 1.0, 1.5, 2.0)
_ADJUSTMENT = ("logit_adjustment",)
SIGMOID_METHODS = (
    Method("tde", _TDE, _PARTS, "mean", (0.1, 0.2, 0.35)),
    Method("tde_region", ("region",), _PARTS, "mean"),
    Method("tde_class", ("class_",), (*_PARTS, 1.0, 2.0), "mean"),
    Method("tde_keep_sum", _TDE, _PARTS, "mean", options={"keep_sum": "factual"}),
    Method("tau_norm", ("tau_norm",), (0.5, 1.0, 1.5, 2.0), "weights", (0.5, 1.0)),
    Method("logit_adjustment", _ADJUSTMENT, _BETAS, "counts", (0.5, 1.0)),
    Method("logit_adjustment_free", _ADJUSTMENT, _BETAS, "counts", options={"keep_sum": ""}),
    Method("logn", ("logn",), (1.0,), "logits"),
    Method("fracal", ("fracal",), (0.5, 1.0, 2.0), "counts"),
)


def methods_of(model: nn.Module) -> tuple[Method, ...]:
    """:data:`SOFTMAX_METHODS` or :data:`SIGMOID_METHODS`, as the model classifies.

    Raises:
        ValueError: if it has no TDE predictor.
    """
    sigmoid = any(predictor.use_sigmoid_ce for predictor in tde_predictors(model))
    return SIGMOID_METHODS if sigmoid else SOFTMAX_METHODS


def describe(settings: Settings) -> str:
    """The strengths above 0 in words, such as "tde 1 + tau_norm 0.5, joint"."""
    values = dataclasses.asdict(settings)
    if settings.region == settings.class_:
        values = {"tde": values.pop("class_"), **values}
        del values["region"]
    steps = {name: value for name, value in values.items() if isinstance(value, float) and value}
    words = " + ".join(f"{name.rstrip('_')} {value:g}" for name, value in steps.items())
    if not words:
        return FACTUAL
    how = [settings.background] if settings.background != "exempt" else []
    if settings.keep_sum != "tde":
        how.append(f"sum {settings.keep_sum or 'free'}")
    return ", ".join([words, *how])
