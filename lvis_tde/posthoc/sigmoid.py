"""What only sigmoids have: no class competes with another there, so nothing renormalizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .margins import apply_affine, check_classes, fractal_power, frequency_margin, full_precision

# Newton's method takes 3 to 6 steps on margins; bisection between extreme logits some 50.
_MAX_STEPS = 100
# A traced graph cannot stop early.
_TRACED_STEPS = 16


def keep_sum(logits: Tensor, reference: Tensor) -> Tensor:
    """One shift for each row, such that ``sum_i sigmoid(z_i)`` is that of ``reference``.

    ``z_i + s`` with ``sum_i sigmoid(z_i + s) = sum_i sigmoid(reference_i)``: what an adjustment
    does to the ranking of the classes of a region stays, what it does to how many objects the
    region shows is undone. So a margin for each class moves the ranking of its detections.

    Source: this package. Needs: nothing. Neutral: ``reference`` equal to ``logits``.

    Newton's method on the log odds of the mean probability, kept within the interval that holds
    the solution: ``s`` lies between the least and the greatest ``reference_i - z_i``.

    Args:
        logits: (R, C) adjusted logits without background, any floating type, finite.
        reference: (R, C) logits whose sum is kept.

    Returns:
        Tensor: (R, C) logits, fp32 at least. To gradients the shift is a constant.

    Raises:
        ValueError: if the shapes differ or there is no class.
    """
    if logits.shape != reference.shape:
        raise ValueError(
            f"Two tensors of one shape (R, C) expected, got {tuple(logits.shape)} and "
            f"{tuple(reference.shape)}."
        )
    check_classes(logits, logits.shape[-1], False)
    logits, reference = full_precision(logits), full_precision(reference)
    reference = reference.to(logits.dtype)
    return shifted(logits, shift_to_sum(logits, reference))


@torch.no_grad()
def shift_to_sum(logits: Tensor, reference: Tensor) -> Tensor:
    """The shift of :func:`keep_sum`, (R, 1) in float64, where a large one still has digits."""
    num_classes = logits.shape[1]
    epsilon = torch.finfo(logits.dtype).eps
    probs = reference.sigmoid()
    target = probs.sum(-1, keepdim=True).double()
    # Fresh memory costs more than arithmetic, but a traced graph knows no output arguments.
    fixed = torch.jit.is_tracing()
    buffer = None if fixed else probs
    difference = torch.sub(reference, logits, out=buffer)
    low = difference.amin(-1, keepdim=True).double()
    high = difference.amax(-1, keepdim=True).double()
    low, high = low - low.abs() * epsilon, high + high.abs() * epsilon
    shift = torch.zeros_like(target).clamp(low, high)
    done = torch.zeros_like(target, dtype=torch.bool)
    for _ in range(_TRACED_STEPS if fixed else _MAX_STEPS):
        probs = shifted(logits, shift, buffer).sigmoid_()
        total = probs.sum(-1, keepdim=True).double()
        squares = probs.square_().sum(-1, keepdim=True).double()
        low = torch.where(total < target, shift, low)
        high = torch.where(total > target, shift, high)
        odds = total / (num_classes - total) * ((num_classes - target) / target)
        step = odds.log() * total * (num_classes - total) / (num_classes * (total - squares))
        inside = (low < shift - step) & (shift - step < high)  # not where it is no number
        new = torch.where(inside, shift - step, (low + high) / 2)
        settled = total == target
        # Newton's error is squared by each step: one this small is the last.
        last = (new - shift).abs() <= torch.where(inside, epsilon**0.5, epsilon)
        shift = torch.where(done | settled, shift, new)
        done = done | settled | last
        if not fixed and bool(done.all()):
            break
    return shift


def shifted(logits: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """``logits + shift`` in two parts, so that what comes to lie near zero keeps its digits.

    Args:
        logits: (R, C).
        shift: (R, 1) in float64.
        out: memory for the result.
    """
    coarse = shift.to(logits.dtype)
    return torch.add(logits, coarse, out=out).add_((shift - coarse).to(logits.dtype))


def fracal_sigmoid(
    logits: Tensor,
    counts: Tensor | Sequence[float],
    dimension: Tensor | Sequence[float],
    strength: float,
    *,
    total: float | None = None,
) -> Tensor:
    """Fractal calibration of sigmoids, ``sigmoid(z_i) sigmoid(z_i + m_i)``.

    With ``m_i = -log10(C pi_i) - log10(C Phi_i^strength / sum_j Phi_j^strength)``.

    Source: Alexandridis et al., CVPR 2025. Needs: counts and fractal dimensions. No neutral value:
    also without a margin the probability is squared.

    Args:
        logits: (R, C) without background, any floating type.
        counts, dimension, strength, total: see :func:`fracal`.

    Returns:
        Tensor: (R, C) probabilities, fp32 at least.

    Raises:
        ValueError: see :func:`fracal`.
    """
    margin = fracal_sigmoid_margin(counts, dimension, strength, total)
    return apply_affine(logits, None, margin, False).sigmoid() * full_precision(logits).sigmoid()


def fracal_sigmoid_margin(
    counts: Tensor | Sequence[float],
    dimension: Tensor | Sequence[float],
    strength: float,
    total: float | None = None,
) -> Tensor:
    """``m_i`` of :func:`fracal_sigmoid`, (C,) in float64."""
    margin = frequency_margin(counts, total)
    power = fractal_power(dimension, strength, len(margin)).to(margin).exp()
    return margin - (power * len(power) / power.sum()).log10()
