"""Losses of the box classifier with what they have seen so far, and what they ask of inference.

Shape shorthand: R regions, C foreground classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from detectron2.utils import comm
from torch import Tensor, distributed
from torch.nn import functional as F

from .box_losses import balanced_softmax_loss, equalization_loss_v2, seesaw_loss
from .statistics import ExactBuffers

__all__ = [
    "BOX_LOSSES",
    "BalancedSoftmax",
    "BoxLoss",
    "EqualizationLossV2",
    "SeesawLoss",
    "build_box_loss",
]


class BoxLoss(ExactBuffers):
    """A loss with what it has seen so far, which is part of checkpoints.

    What it has seen moves under gradients alone, and is that of all processes together.

    Attributes:
        scores (str): what makes scores of its logits beside softmax or sigmoids: "", "objectness"
            (:func:`~.box_losses.joint_logits`), or "sigmoid": each class's is multiplied with what
            that of the background leaves.
    """

    scores = ""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of (R, C + 1) logits and (R,) labels."""
        raise NotImplementedError


class BalancedSoftmax(BoxLoss):
    """:func:`balanced_softmax_loss`.

    Attributes:
        counts (Tensor): (C,) fp32 training images of each class; zeros until the first step.
    """

    counts: Tensor

    def __init__(self, num_classes: int, get_class_counts: Callable[[], Tensor] | None):
        """
        Args:
            num_classes: C.
            get_class_counts: gives (C,) training images of each class; called before the first
                step, so that a model can be built for inference where they are not known.
        """
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_classes))
        self.get_class_counts = get_class_counts
        self._counted = False

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not self._counted:
            self._count()
        return balanced_softmax_loss(logits, labels, self.counts)

    def _count(self) -> None:
        if self.get_class_counts is not None:
            counts = torch.as_tensor(self.get_class_counts())
            if len(counts) != len(self.counts):
                raise ValueError(
                    f"get_class_counts gives {len(counts)} counts for {len(self.counts)} classes."
                )
            wrong = ~(counts.isfinite() & (counts >= 0))
            if wrong.any():
                first = int(wrong.nonzero()[0])
                raise ValueError(
                    f"get_class_counts gives {counts[first].item()} training images for class "
                    f"{first}: counts must be finite and not negative. A config's are the "
                    "class_image_count of DATASETS.TRAIN; --train-data JSON IMAGES counts anew."
                )
            self.counts.copy_(counts)
        if not self.counts.any():
            raise ValueError(
                "The balanced softmax needs the training images of each class: "
                "get_class_counts is None, and no checkpoint has told them."
            )
        self._counted = True


class SeesawLoss(BoxLoss):
    """:func:`seesaw_loss`.

    Attributes:
        samples (Tensor): (C,) fp64 regions of each class that were seen, those of all processes;
            the authors count those of one process alone.
    """

    scores = "objectness"
    samples: Tensor

    def __init__(self, num_classes: int, p: float = 0.8, q: float = 2.0):
        """
        Args:
            num_classes: C.
            p, q: see :func:`seesaw_loss`.

        Raises:
            ValueError: if one of them is negative or not finite.
        """
        super().__init__()
        self.p = _finite("seesaw_p", p, 0.8, least=0)
        self.q = _finite("seesaw_q", q, 2.0, least=0)
        self.register_buffer("samples", torch.zeros(num_classes, dtype=torch.float64))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen = F.one_hot(labels, logits.shape[1])[:, :-1].sum(0)
            self.samples += _over_processes(seen.to(self.samples))
        return seesaw_loss(logits, labels, self.samples, self.p, self.q)


class EqualizationLossV2(BoxLoss):
    """:func:`equalization_loss_v2`.

    Attributes:
        gradients (Tensor): (2, C) fp32 positive and negative gradients so far.
    """

    scores = "sigmoid"
    gradients: Tensor

    def __init__(self, num_classes: int, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0):
        """
        Args:
            num_classes: C.
            gamma, mu, alpha: see :func:`equalization_loss_v2`; alpha is >= 0.

        Raises:
            ValueError: if one of them is not finite, or alpha is negative.
        """
        super().__init__()
        self.weights = {
            "gamma": _finite("eqlv2_gamma", gamma, 12.0),
            "mu": _finite("eqlv2_mu", mu, 0.8),
            "alpha": _finite("eqlv2_alpha", alpha, 4.0, least=0),
        }
        self.register_buffer("gradients", torch.zeros(2, num_classes))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss, found = equalization_loss_v2(logits, labels, self.gradients, **self.weights)
        if torch.is_grad_enabled():
            found = _over_processes(found.to(self.gradients))
            # A diverged step ends the training; it should not spoil what was seen before.
            self.gradients += torch.where(torch.isfinite(found).all(), found, 0.0)
        return loss


def _over_processes(values: Tensor) -> Tensor:
    """The sum over all processes, in place; each of them has to call it."""
    if comm.get_world_size() > 1:
        distributed.all_reduce(values)
    return values


def _finite(name: str, value: float, authors: float, least: float = -math.inf) -> float:
    if not (math.isfinite(value) and value >= least):
        limit = "" if least == -math.inf else f" and at least {least:g}"
        raise ValueError(
            f"{name}={value} (MODEL.TDE.{name.upper()}) must be finite{limit}; its authors have "
            f"{authors:g}."
        )
    return float(value)


BOX_LOSSES = ("cross_entropy", "balanced_softmax", "seesaw", "eqlv2")


def build_box_loss(
    name: str,
    num_classes: int,
    *,
    use_sigmoid_ce: bool = False,
    use_fed_loss: bool = False,
    get_class_counts: Callable[[], Tensor] | None = None,
    **options: float,
) -> BoxLoss | None:
    """
    Args:
        name: one of :data:`BOX_LOSSES`.
        num_classes: C.
        use_sigmoid_ce, use_fed_loss: of the predictor.
        get_class_counts: see :class:`BalancedSoftmax`.
        **options: arguments of the losses: ``seesaw_p``, ``eqlv2_gamma`` and so on; those of others
            are ignored.

    Returns:
        None for "cross_entropy", which is the predictor's own.

    Raises:
        ValueError: for an unknown name, or one that does not go with sigmoids or a softmax.
    """
    if name not in BOX_LOSSES:
        raise ValueError(f"loss={name!r} (MODEL.TDE.LOSS) is none of {', '.join(BOX_LOSSES)}.")
    if name == "cross_entropy":
        return None
    if use_sigmoid_ce != (name == "eqlv2"):
        raise ValueError(
            f"loss={name!r} (MODEL.TDE.LOSS) needs use_sigmoid_ce={not use_sigmoid_ce} "
            "(MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE)."
        )
    if use_fed_loss:
        raise ValueError(
            f"loss={name!r} (MODEL.TDE.LOSS) weighs classes of its own: set use_fed_loss "
            "(MODEL.ROI_BOX_HEAD.USE_FED_LOSS) to False."
        )
    own = {k.removeprefix(f"{name}_"): v for k, v in options.items() if k.startswith(f"{name}_")}
    if name == "balanced_softmax":
        return BalancedSoftmax(num_classes, get_class_counts)
    if name == "seesaw":
        return SeesawLoss(num_classes, **own)
    return EqualizationLossV2(num_classes, **own)
