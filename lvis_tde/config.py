"""Configuration keys of this package: ``MODEL.TDE``."""

from detectron2.config import CfgNode

__all__ = ["add_tde_config"]


def add_tde_config(cfg: CfgNode) -> None:
    """Adds the node ``MODEL.TDE`` with the defaults for LVIS (paper section 5.1)."""
    cfg.MODEL.TDE = node = CfgNode()
    # Normalisation of features and weights: "cosine", "capsule" or "deconfound"; "none" keeps the
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
    # Momentum mu of the running mean of the foreground features.
    node.MEAN_MOMENTUM = 0.9
    # Weight each step of the mean by the learning rate: momentum 1 - (1 - mu) * lr.
    node.MEAN_MOMENTUM_LR_SCALED = True


def tde_options(cfg: CfgNode) -> dict:
    """The predictor's arguments from ``MODEL.TDE``, or the defaults where there is no such node."""
    if "TDE" not in cfg.MODEL:
        cfg = CfgNode({"MODEL": {}})
        add_tde_config(cfg)
    return {key.lower(): value for key, value in cfg.MODEL.TDE.items()}
