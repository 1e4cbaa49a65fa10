"""The background keeps its probability, the classes share the rest: whole, in place, in parts."""

from __future__ import annotations

import torch
from torch import Tensor

from .margins import check_classes, full_precision

# What is softmaxed at a time: with many classes fresh memory for all costs more than arithmetic.
_ROWS_AT_A_TIME, _NUMBERS_AT_A_TIME = 64, 1 << 16


def exempt(logits: Tensor, adjusted: Tensor) -> Tensor:
    """Background-exempted probabilities, ``p_C`` and ``(1 - p_C) q_i / (1 - q_C)``.

    With ``p = softmax(logits)`` and ``q = softmax(adjusted)``: an adjustment deals the probability
    of foreground among the classes and leaves that of background. Only how the foreground's
    adjusted logits differ from each other counts.

    Source: Tang, Huang, Zhang, NeurIPS 2020, section 4.3. :func:`lvis_tde.exempt_background` also
    has the authors' least share of 1e-10 a class; this has none. Neutral: ``adjusted`` equal to
    ``logits`` up to a constant, within rounding.

    Args:
        logits: (R, C + 1) factual logits, any floating type; background is the last column.
        adjusted: (R, C + 1) adjusted logits; the last column is not used.

    Returns:
        Tensor: (R, C + 1) probabilities, fp32 at least, rows sum to 1.

    Raises:
        ValueError: if the shapes differ or there is no foreground class.
    """
    if logits.shape != adjusted.shape:
        raise ValueError(
            f"Two tensors of one shape (R, C + 1) expected, got {tuple(logits.shape)} and "
            f"{tuple(adjusted.shape)}."
        )
    check_classes(logits, logits.shape[-1] - 1, True)
    return exempt_in_place(full_precision(logits), full_precision(adjusted).clone())


def rows_at_a_time(logits: Tensor) -> int:
    """How many rows to work on together, so that what is made on the way stays small."""
    return max(_ROWS_AT_A_TIME, _NUMBERS_AT_A_TIME // max(logits.shape[-1], 1))


def exempt_in_place(logits: Tensor, adjusted: Tensor) -> Tensor:
    """:func:`exempt` that overwrites ``adjusted``, and makes no other tensor of its size."""
    if torch.is_grad_enabled() or torch.jit.is_tracing():
        return _exempt(logits, adjusted)
    rows = rows_at_a_time(logits)
    for some, own in zip(logits.split(rows), adjusted.split(rows)):
        _exempt(some, own, out=own)
    return adjusted


def exempt_direct(logits: Tensor, cosine: Tensor, pull: Tensor, floor: float) -> Tensor:
    """:func:`exempt` of TDE alone without gradients; makes no tensor of its size but the result.

    Args:
        logits: (R, C + 1) factual logits, fp32 at least; background is the last column.
        cosine, pull: (R, K) and (C + 1, K), see :func:`tde`; ``pull`` times its strength.
        floor: least share of a class, see :func:`lvis_tde.exempt_background`.
    """
    probs, columns = torch.empty_like(logits), pull.t()
    rows = rows_at_a_time(logits)
    parts = (one.split(rows) for one in (logits, cosine, probs))
    for some, own_cosine, out in zip(*parts):
        _exempt(some, torch.addmm(some, own_cosine, columns, alpha=-1), floor, out)
    return probs


def _exempt(
    logits: Tensor, adjusted: Tensor, floor: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """:func:`exempt`, to ``out``, which may be ``adjusted``; overwrites ``adjusted`` anyway."""
    # q_i / (1 - q_C) is the softmax over the foreground alone: no division, so no 0 / 0.
    adjusted[:, -1] = -torch.inf
    shares = adjusted.softmax(-1)
    if floor:
        shares = shares + floor
    probs = logits.softmax(-1)
    foreground = probs[:, :-1].sum(-1, keepdim=True) / (1 + floor)
    out = torch.mul(shares, foreground, out=out)
    out[:, -1:] = probs[:, -1:]
    return out
