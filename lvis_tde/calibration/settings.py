"""What may be changed on a trained model, and how it is changed for a while."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from ..layers.functional import check_alpha
from ..modeling.strengths import Strengths
from ..posthoc import Settings

__all__ = ["choose", "describe", "settings", "tde_predictors"]


def tde_predictors(model: nn.Module) -> list[Any]:
    """The TDE predictors of a model, of boxes one for every cascade stage, of images one.

    Raises:
        ValueError: if there is none.
    """
    found = [m for m in model.modules() if isinstance(m, Strengths)]
    if not found:
        raise ValueError(
            "The model has no TDE predictor: set MODEL.ROI_HEADS.NAME to TDEROIHeads, "
            "TDECascadeROIHeads or TDERes5ROIHeads, or in a LazyConfig the box predictor's "
            "_target_ to TDEFastRCNNOutputLayers; tools/estimate_feature_mean.py does so for a "
            "trained model."
        )
    return found


def describe(strengths: Settings) -> str:
    """The steps that are on, such as "alpha 1.5, norcal 0.6, joint"; "" without any."""
    parts = {
        name.rstrip("_"): value
        for name, value in dataclasses.asdict(strengths).items()
        if isinstance(value, float) and value > 0
    }
    if strengths.region == strengths.class_ > 0:
        del parts["region"], parts["class"]
        parts = {"alpha": strengths.class_, **parts}
    words = [f"{name} {value:g}" for name, value in parts.items()]
    if words and strengths.background != "exempt":
        words.append(strengths.background)
    if words and strengths.keep_sum != "tde":
        words.append(f"sum {strengths.keep_sum or 'free'}")
    return ", ".join(words)


def choose(
    predictors: Iterable[Any],
    *,
    alpha: float | None = None,
    alpha_region: float | None = None,
    posthoc: Settings | None = None,
) -> None:
    """Sets what :func:`settings` sets, for good."""
    if alpha is not None:
        alpha = check_alpha(alpha)
    for predictor in predictors:
        if posthoc is not None:
            predictor.posthoc = posthoc
        if alpha is not None:
            predictor.alpha = alpha
        if alpha_region is not None:
            predictor.alpha_region = alpha_region
        if alpha is not None or posthoc is not None:
            # Who sets it here has chosen it.
            predictor.calibrated_alpha = predictor.alpha
            predictor.composition()


@contextlib.contextmanager
def settings(
    model: nn.Module | Sequence[Any],
    *,
    alpha: float | None = None,
    alpha_region: float | None = None,
    posthoc: Settings | None = None,
) -> Iterator[list[Any]]:
    """Sets what is done after training on every predictor of a model while it is open.

    Args:
        model: with TDE predictors, or such predictors.
        alpha: strength of the removal, finite and >= 0; None leaves each predictor its own.
        alpha_region: of sigmoids, the strength of what all classes share, likewise.
        posthoc: all strengths, of which ``alpha`` and ``alpha_region`` replace those of TDE.

    Yields:
        The predictors.

    Raises:
        ValueError: if there is no TDE predictor, a value is out of its range, or the settings need
            statistics of the classes that a predictor does not have.
    """
    predictors = tde_predictors(model) if isinstance(model, nn.Module) else list(model)
    before = [(one.posthoc, one.alpha_region, one.calibrated_alpha) for one in predictors]
    try:
        choose(predictors, alpha=alpha, alpha_region=alpha_region, posthoc=posthoc)
        yield predictors
    finally:
        for predictor, (strengths, region, calibrated) in zip(predictors, before):
            predictor.posthoc = strengths
            predictor.alpha_region, predictor.calibrated_alpha = region, calibrated
