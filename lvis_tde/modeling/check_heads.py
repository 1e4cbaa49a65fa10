"""Settings that the built model would not look at."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import nn

from .image_classifier import ImageClassifier
from .strengths import Strengths

__all__ = ["check_heads"]

_PLAIN_LOSS = "cross_entropy"


def check_heads(model: nn.Module, cfg: CfgNode) -> None:
    """Refuses losses and steps of a config for which its model has no predictor.

    Args:
        model: as built.
        cfg: what it was built from.

    Raises:
        ValueError: naming the key, its value and the one that is meant.
    """
    sigmoids = cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE", False)
    loss = cfg.MODEL.get("TDE", {}).get("LOSS", _PLAIN_LOSS)
    if isinstance(model, ImageClassifier):
        if loss != _PLAIN_LOSS:
            raise ValueError(
                f"MODEL.TDE.LOSS is {loss!r}, a loss of boxes: that of a classifier of images is "
                "MODEL.IMAGE_CLASSIFIER.LOSS."
            )
        if sigmoids:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is True, but a classifier of images has a "
                "softmax: leave it False."
            )
        return
    if sigmoids:
        _check_sigmoids(model)
    if any(isinstance(module, Strengths) for module in model.modules()):
        return
    steps = cfg.MODEL.get("POSTHOC", {})
    unused = {f"MODEL.POSTHOC.{key}": v for key, v in steps.items() if not isinstance(v, str) and v}
    if loss != _PLAIN_LOSS:
        unused["MODEL.TDE.LOSS"] = loss
    if unused:
        key, value = next(iter(unused.items()))
        raise ValueError(
            f"{key} is {value!r}, but MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} has no TDE "
            "predictor, which is what would use it. Set that to TDEROIHeads or its like (with "
            "MODEL.TDE.NORM none it keeps a linear classifier); for a trained softmax model "
            "tools/estimate_feature_mean.py writes such a config."
        )


def _check_sigmoids(model: nn.Module) -> None:
    # Detectron2 0.6 would build and train a softmax without a word.
    for module in model.modules():
        if isinstance(module, FastRCNNOutputLayers) and not getattr(
            module, "use_sigmoid_ce", False
        ):
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is True, but this Detectron2 has no "
                f"sigmoids in {type(module).__name__}. Set MODEL.ROI_HEADS.NAME to TDEROIHeads "
                "or its like, with MODEL.TDE.NORM none and MODEL.TDE.ALPHA 0 for a plain model."
            )
