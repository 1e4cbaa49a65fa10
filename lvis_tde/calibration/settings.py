"""What may be changed on a trained model, and how it is changed for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn

from ..layers.functional import check_alpha
from ..modeling.fast_rcnn import TDEFastRCNNOutputLayers

__all__ = ["settings", "tde_predictors"]


def tde_predictors(model: nn.Module) -> list[TDEFastRCNNOutputLayers]:
    """The TDE predictors of a model, one for every cascade stage.

    Raises:
        ValueError: if there is none.
    """
    found = [m for m in model.modules() if isinstance(m, TDEFastRCNNOutputLayers)]
    if not found:
        raise ValueError(
            "The model has no TDE predictor: set MODEL.ROI_HEADS.NAME to TDEROIHeads, "
            "TDECascadeROIHeads or TDERes5ROIHeads, or in a LazyConfig the box predictor's "
            "_target_ to TDEFastRCNNOutputLayers; tools/estimate_feature_mean.py does so for a "
            "trained model."
        )
    return found


@contextlib.contextmanager
def settings(
    model: nn.Module | Sequence[TDEFastRCNNOutputLayers],
    *,
    alpha: float | None = None,
    alpha_region: float | None = None,
) -> Iterator[list[TDEFastRCNNOutputLayers]]:
    """Sets what is done after training on every predictor of a model while it is open.

    Args:
        model: with TDE predictors, or such predictors.
        alpha: strength of the removal, finite and >= 0; None leaves each predictor its own.
        alpha_region: of sigmoids, the strength of what all classes share, likewise.

    Yields:
        The predictors.

    Raises:
        ValueError: if there is no TDE predictor, or a value is out of its range.
    """
    predictors = tde_predictors(model) if isinstance(model, nn.Module) else list(model)
    before = [(one.alpha, one.calibrated_alpha, one.alpha_region) for one in predictors]
    if alpha is not None:
        alpha = check_alpha(alpha)
    try:
        for predictor in predictors:
            if alpha is not None:
                # Who sets it here has chosen it.
                predictor.alpha = predictor.calibrated_alpha = alpha
            if alpha_region is not None:
                predictor.alpha_region = alpha_region
        yield predictors
    finally:
        for predictor, values in zip(predictors, before):
            predictor.alpha, predictor.calibrated_alpha, predictor.alpha_region = values
