"""The optimizer of a yacs config: Detectron2's SGD, or AdamW with the same groups of parameters."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

__all__ = ["build_optimizer"]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that ``SOLVER.OPTIMIZER`` names.

    Under AdamW ``SOLVER.MOMENTUM`` is beta1, the momentum of its gradients, and beta2 is 0.999;
    learning rate, weight decay, which is decoupled, their exceptions for biases and norms, and the
    clipping of gradients are those of the other ``SOLVER`` keys. An AdamW step does not depend on
    the size of the gradients, so it wants a far smaller ``BASE_LR`` than SGD.

    Args:
        cfg: without the key it is "SGD".
        model: whose parameters are trained.

    Raises:
        ValueError: if there is no such optimizer.
    """
    solver = cfg.SOLVER
    name = solver.get("OPTIMIZER", "SGD")
    if name == "SGD":
        return build_sgd(cfg, model)
    if name != "ADAMW":
        raise ValueError(f'SOLVER.OPTIMIZER is {name!r}: choose "SGD" or "ADAMW".')
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return optimizer(
        groups,
        lr=solver.BASE_LR,
        betas=(solver.MOMENTUM, 0.999),
        weight_decay=solver.WEIGHT_DECAY,
    )
