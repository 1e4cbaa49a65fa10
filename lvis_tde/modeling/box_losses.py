"""Losses of the box classifier that were made for long tails, as pure functions.

Shape shorthand: R regions, C foreground classes.

    logits: (R, C + 1), the background last; computed in fp32 at least
    labels: (R,) int64 in [0, C]; C is the background

Every loss is a scalar: summed over regions and divided by R, 0 without regions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers.functional import at_least_fp32

__all__ = ["balanced_softmax_loss", "equalization_loss_v2", "joint_logits", "seesaw_loss"]


def balanced_softmax_loss(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Balanced softmax (Ren et al., NeurIPS 2020, eq. 4) over the classes, beside a background.

    Without a background it is the authors' loss, the cross entropy of ``z_i + log n_i``. The
    background has no count of images: its probability is that of the plain softmax, and the rest is
    dealt to the classes by their balanced softmax, as in background-exempted inference.

    Args:
        logits, labels: see above.
        counts: (C,) training images of each class, finite; one that was never seen counts as seen
            once.
    """
    logits = at_least_fp32(logits)
    classes = logits[:, :-1]
    foreground = classes.logsumexp(-1, keepdim=True)
    total = logits.logsumexp(-1, keepdim=True)
    balanced = (classes + counts.to(logits).clamp(min=1).log()).log_softmax(-1)
    log_probs = torch.cat([balanced + (foreground - total), logits[:, -1:] - total], dim=-1)
    return F.nll_loss(log_probs, labels, reduction="sum") / max(len(labels), 1)


def seesaw_loss(
    logits: Tensor, labels: Tensor, samples: Tensor, p: float = 0.8, q: float = 2.0
) -> Tensor:
    """Seesaw loss (Wang et al., CVPR 2021, section 3), with its objectness branch.

    The last logit is that of "background" against "any class"; the softmax is over the classes
    alone, and learns from foreground regions alone. In it class i weighs ``(n_i / n_y)^p`` beside
    the true class y where that is below 1, times ``(p_i / p_y)^q`` where that is above 1.

    Args:
        logits, labels: see above.
        samples: (C,) regions of each class that were seen so far.
        p: of the mitigation factor, >= 0; 0 is none.
        q: of the compensation factor, >= 0; 0 is none.
    """
    logits = at_least_fp32(logits)
    background = labels == logits.shape[1] - 1
    objectness = F.binary_cross_entropy_with_logits(
        logits[:, -1], background.to(logits), reduction="sum"
    )
    classes, truth = logits[~background, :-1], labels[~background, None]
    seen = samples.to(logits).clamp(min=1).log()
    log_weights = p * (seen - seen[truth]).clamp(max=0)
    # The authors' floor of the divisor.
    probs = classes.detach().softmax(-1)
    ratio = probs / probs.gather(1, truth).clamp(min=1e-2)
    log_weights = (log_weights + q * ratio.clamp(min=1).log()).scatter(1, truth, 0.0)
    named = F.cross_entropy(classes + log_weights, truth[:, 0], reduction="sum")
    return (objectness + named) / max(len(labels), 1)


def joint_logits(logits: Tensor) -> Tensor:
    """Logits of one softmax over classes and background that give :func:`seesaw_loss`'s scores.

    Those are ``sigmoid(z_C)`` for the background and ``(1 - sigmoid(z_C)) softmax(z)_i`` for the
    classes, whose logits stay what they are.

    Args:
        logits: (R, C + 1), see :func:`seesaw_loss`.
    """
    background = logits[:, :-1].logsumexp(-1, keepdim=True) + logits[:, -1:]
    return torch.cat([logits[:, :-1], background], dim=-1)


def equalization_loss_v2(
    logits: Tensor,
    labels: Tensor,
    gradients: Tensor,
    *,
    gamma: float = 12.0,
    mu: float = 0.8,
    alpha: float = 4.0,
) -> tuple[Tensor, Tensor]:
    """EQL v2 (Tan et al., CVPR 2021, section 4): sigmoids, weighted by their gradients so far.

    Of a class whose positive gradients are few beside its negative ones the negative ones weigh
    less, ``1 / (1 + exp(-gamma (ratio - mu)))``, and the positive ones more. The background is a
    sigmoid of its own, of weight 1.

    Args:
        logits, labels: see above.
        gradients: (2, C) absolute positive and negative gradients so far; all zero is the start,
            where every weight is 1.
        gamma, mu, alpha: of the weights; the authors' values.

    Returns:
        tuple: the loss, and (2, C) the gradients of these regions.
    """
    logits = at_least_fp32(logits)
    targets = F.one_hot(labels, logits.shape[1]).to(logits)
    known = gradients.to(logits)
    ratio = known[0] / (known[1] + 1e-10)
    mapped = torch.where(known.any(), torch.sigmoid(gamma * (ratio - mu)), 1.0)
    negative = torch.cat([mapped, mapped.new_ones(1)])
    weights = torch.where(targets.bool(), 1 + alpha * (1 - negative), negative)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weights
    slopes = ((logits.detach().sigmoid() - targets).abs() * weights)[:, :-1]
    positive = (slopes * targets[:, :-1]).sum(0)
    return losses.sum() / max(len(labels), 1), torch.stack([positive, slopes.sum(0) - positive])
