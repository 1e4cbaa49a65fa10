"""Configuration keys of this package: ``MODEL.TDE``, and ``MODEL.TDE_MASK`` beside it."""

from __future__ import annotations

from detectron2.config import CfgNode

__all__ = ["add_tde_config", "use_tde_on_softmax"]

_TDE_HEADS = {
    "StandardROIHeads": "TDEROIHeads",
    "CascadeROIHeads": "TDECascadeROIHeads",
    "Res5ROIHeads": "TDERes5ROIHeads",
}


def add_tde_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.TDE`` with the defaults for LVIS (paper section 5.1), and ``MODEL.TDE_MASK``."""
    cfg.MODEL.TDE = node = CfgNode()
    # Normalization of features and weights: "cosine", "capsule" or "deconfound"; "none" keeps the
    # linear classifier of a trained softmax model.
    node.NORM = "deconfound"
    # Number of heads K; it must divide the size of the box head's output.
    node.NUM_HEADS = 2
    # Inverse temperature tau of the logits.
    node.TAU = 16.0
    # gamma, added to the norm of the weights under "deconfound".
    node.GAMMA = 1 / 32
    # Strength alpha of the removal at inference; 0 turns TDE off. Not used in training.
    node.ALPHA = 1.5
    # Keep the factual ratio of foreground to background at inference.
    node.BACKGROUND_EXEMPT = True
    # Momentum mu of the running mean of the foreground features; a step weighs 1 - mu.
    node.MEAN_MOMENTUM = 0.9998
    # Faster post-processing for many classes, with the same detections; False runs upstream's.
    node.FAST_NMS = True
    # Re-estimate the mean from this many batches at the end of training; 0 keeps the running mean.
    node.PRECISE_MEAN = 0
    # Removed, and ignored with a warning: the mean's weight followed the learning rate under it.
    cfg.register_deprecated_key("MODEL.TDE.MEAN_MOMENTUM_LR_SCALED")

    cfg.MODEL.TDE_MASK = node = CfgNode()
    # Factor on the cosine between a mask feature and a class filter (Seesaw Loss: 20).
    node.TEMPERATURE = 20.0
    # Added to both norms before the division.
    node.EPSILON = 1e-6


def tde_options(cfg: CfgNode) -> dict:
    """The predictor's arguments from ``MODEL.TDE``, or the defaults where there is no such node."""
    if "TDE" not in cfg.MODEL:
        cfg = CfgNode({"MODEL": {}})
        add_tde_config(cfg)
    options = {key.lower(): value for key, value in cfg.MODEL.TDE.items()}
    del options["precise_mean"]  # of the training loop
    return options


def use_tde_on_softmax(cfg: CfgNode, num_heads: int = 1) -> None:
    """Turns the config of a softmax detector into one that puts TDE on its trained weights.

    The classifier stays what it is (``MODEL.TDE.NORM: "none"``). A config that has TDE heads
    already is left as it is.

    Args:
        cfg: changed in place.
        num_heads: K, a divisor of the box head's output size.

    Raises:
        ValueError: if there are no TDE heads for the config's ROI heads.
    """
    name = cfg.MODEL.ROI_HEADS.NAME
    if name in _TDE_HEADS.values():
        return
    if name not in _TDE_HEADS:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is {name!r}; TDE is known to replace {', '.join(_TDE_HEADS)}. "
            "For other heads use lvis_tde.modeling.swap.swap_box_predictor(model, norm='none') and "
            "lvis_tde.calibration.estimate.estimate_feature_mean(model, loader) in your own code."
        )
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NAME = _TDE_HEADS[name]
    cfg.MODEL.TDE.NORM = "none"
    cfg.MODEL.TDE.NUM_HEADS = num_heads
    if frozen:
        cfg.freeze()
