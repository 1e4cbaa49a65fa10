"""Configuration keys of this package: ``MODEL.TDE``, ``MODEL.POSTHOC`` and ``MODEL.TDE_MASK``."""

from __future__ import annotations

from detectron2.config import CfgNode

__all__ = ["add_tde_config", "use_tde_on_softmax"]

_TDE_HEADS = {
    "StandardROIHeads": "TDEROIHeads",
    "CascadeROIHeads": "TDECascadeROIHeads",
    "Res5ROIHeads": "TDERes5ROIHeads",
}

_SIGMOID = {
    # Sigmoids in place of the softmax.
    "USE_SIGMOID_CE": False,
    # With sigmoids: only the classes of a batch and some random others count in the loss.
    "USE_FED_LOSS": False,
    # How many classes count, and the power of a class's image count that is its chance.
    "FED_LOSS_NUM_CLASSES": 50,
    "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
}


def add_tde_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.TDE`` with the defaults for LVIS (paper section 5.1), and what is beside it."""
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
    # Strength alpha of the removal at inference; 0 turns TDE off. Not used in training. Sigmoids
    # need far less than a softmax.
    node.ALPHA = 1.5
    # Sigmoids: strength of the part of the removed term that is equal for all classes of a region,
    # so that ALPHA is that of the rest; -1 for ALPHA.
    node.ALPHA_REGION = -1.0
    # Keep the factual ratio of foreground to background at inference, whatever TDE and
    # MODEL.POSTHOC do to the foreground; False is one softmax over both. Sigmoids have none.
    node.BACKGROUND_EXEMPT = True
    # Momentum mu of the running mean of the foreground features; a step weighs 1 - mu.
    node.MEAN_MOMENTUM = 0.9998
    # Faster post-processing for many classes, with the same detections; False runs upstream's.
    node.FAST_NMS = True
    # Re-estimate the mean from this many batches at the end of training; 0 keeps the running mean.
    node.PRECISE_MEAN = 0
    # Removed, and ignored with a warning: the mean's weight followed the learning rate under it.
    cfg.register_deprecated_key("MODEL.TDE.MEAN_MOMENTUM_LR_SCALED")

    # Steps at inference beside TDE, see lvis_tde/posthoc; none is used in training, and 0 is off.
    # All but TAU_NORM need statistics of the classes: tools/estimate_feature_mean.py gathers them.
    cfg.MODEL.POSTHOC = node = CfgNode()
    # tau of the normalization of the classifier's weights (Kang et al., ICLR 2020).
    node.TAU_NORM = 0.0
    # Normalization of each class's logits over the training regions; 1 is Zhao et al., IJCV 2024.
    node.LOGN = 0.0
    # beta of logit adjustment (Menon et al., ICLR 2021).
    node.LOGIT_ADJUSTMENT = 0.0
    # gamma of NorCal (Pan et al., NeurIPS 2021), which has BACKGROUND_EXEMPT False.
    node.NORCAL = 0.0
    # lambda of FRACAL (Alexandridis et al., CVPR 2025), which has BACKGROUND_EXEMPT False.
    node.FRACAL = 0.0
    # Sigmoids: the summed probability that each region keeps: that after TDE alone ("tde"), so that
    # the other steps only move the ranking of its classes, the factual one ("factual"), or none.
    node.KEEP_SUM = "tde"

    # Detectron2 main's keys and defaults, which release 0.6 does not have. They are for TDE heads
    # there: its own predictor knows the softmax alone.
    for key, value in _SIGMOID.items():
        if key not in cfg.MODEL.ROI_BOX_HEAD:
            cfg.MODEL.ROI_BOX_HEAD[key] = value

    cfg.MODEL.TDE_MASK = node = CfgNode()
    # Factor on the cosine between a mask feature and a class filter (Seesaw Loss: 20).
    node.TEMPERATURE = 20.0
    # Added to both norms before the division.
    node.EPSILON = 1e-6


def tde_options(cfg: CfgNode) -> dict:
    """The predictor's arguments from ``MODEL.TDE`` and ``MODEL.POSTHOC``, or their defaults."""
    if "TDE" not in cfg.MODEL:
        cfg = CfgNode({"MODEL": {"ROI_BOX_HEAD": {}}})
        add_tde_config(cfg)
    options = {key.lower(): value for key, value in cfg.MODEL.TDE.items()}
    del options["precise_mean"]  # of the training loop
    # A config of an earlier release, pickled with its model, has no such node.
    posthoc = cfg.MODEL.get("POSTHOC", {})
    options["posthoc"] = {key.lower(): value for key, value in posthoc.items()}
    return options


def use_tde_on_softmax(cfg: CfgNode, num_heads: int = 1) -> None:
    """Turns the config of a softmax detector into one that puts TDE on its trained weights.

    The classifier stays what it is (``MODEL.TDE.NORM: "none"``). With sigmoids alpha is 0, since
    the default is far too much for them. A config that has TDE heads already is left as it is.

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
    if cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE", False):
        # The default is a softmax's, and no strength serves all sigmoids: a sweep chooses.
        cfg.MODEL.TDE.ALPHA = 0.0
    if frozen:
        cfg.freeze()
