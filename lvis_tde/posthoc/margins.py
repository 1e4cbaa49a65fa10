"""What each step does to the logit of a class: a factor and a margin, both (C,) in float64.

They depend on the classes alone, so the steps of a composition fold into one factor and one margin.
Powers and logarithms of (C,) cost nothing in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Of the authors of LogN: the least variance of a class's logit.
_LEAST_VARIANCE = 1e-11


def full_precision(x: Tensor) -> Tensor:
    """Half precision does not tell rare classes apart: fp16 and bf16 become fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_strength(name: str, value: float) -> float:
    """Returns ``value`` as a float.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value} must be finite and not negative (0 turns it off).")
    return float(value)


def check_vector(
    name: str, values: Tensor | Sequence[float], num_classes: int | None, least: float = -math.inf
) -> Tensor:
    """``values`` as a (C,) tensor in float64.

    Raises:
        ValueError: if it has another shape, or a number that is not finite or below ``least``.
    """
    vector = torch.as_tensor(values, dtype=torch.float64)
    if vector.dim() != 1 or not len(vector) or num_classes not in (None, len(vector)):
        wanted = "(C,)" if num_classes is None else f"({num_classes},)"
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}, expected {wanted}: one number a foreground "
            "class, none for the background."
        )
    wrong = ~(vector.isfinite() & (vector >= least))
    if wrong.any():
        first = int(wrong.nonzero()[0])
        limit = "" if least == -math.inf else f" and at least {least:g}"
        raise ValueError(f"{name}[{first}]={vector[first]} must be finite{limit}.")
    return vector


def check_counts(counts: Tensor | Sequence[float], num_classes: int | None = None) -> Tensor:
    """Counts as (C,) in float64, a class that was never seen counted once.

    Zero has no logarithm; the authors' codes give inf or NaN there.

    Raises:
        ValueError: on another length, or counts that are negative, not finite or fractions of one.
    """
    vector = check_vector("counts", counts, num_classes, least=0)
    fractions = (vector > 0) & (vector < 1)
    if fractions.any():
        first = int(fractions.nonzero()[0])
        raise ValueError(
            f"counts[{first}]={vector[first]} is a fraction: pass the numbers of images or "
            "instances, not frequencies."
        )
    return vector.clamp(min=1)


def tau_norm_affine(
    norms: Tensor, tau: float, bias: Tensor | Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Factor ``f_i = s / ||w_i||^tau`` and margin ``b_i (1 - f_i)``; a weight of zero has f 1."""
    norms = check_vector("norms of the weight", norms, None, least=0)
    # Relative to the largest, so that equal norms give 1 without rounding.
    lengths = (norms / norms.max()) ** check_strength("tau", tau)
    factor = torch.where(norms > 0, lengths.mean() / lengths, 1.0)
    if bias is None:
        return factor, torch.zeros_like(factor)
    return factor, check_vector("bias", bias, len(factor)).to(factor) * (1 - factor)


def logit_adjustment_margin(counts: Tensor | Sequence[float], beta: float) -> Tensor:
    """``-beta log pi_i`` with ``pi = n / sum n``."""
    vector = check_counts(counts)
    return -check_strength("beta", beta) * (vector / vector.sum()).log()


def norcal_margin(counts: Tensor | Sequence[float], gamma: float) -> Tensor:
    """``-gamma log n_i``."""
    return -check_strength("gamma", gamma) * check_counts(counts).log()


def logn_affine(
    mean: Tensor | Sequence[float], std: Tensor | Sequence[float], strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Factor ``sigma_i^-strength`` and margin ``-strength (mu_i - min mu) sigma_i^-strength``."""
    mean = check_vector("mean", mean, None)
    std = check_vector("std", std, len(mean), least=0).to(mean)
    factor = std.clamp(min=_LEAST_VARIANCE**0.5) ** -check_strength("strength", strength)
    return factor, -strength * (mean - mean.min()) * factor


def frequency_margin(counts: Tensor | Sequence[float], total: float | None = None) -> Tensor:
    """FRACAL's ``-log10(C pi_i)`` with ``pi = n / total``, ``total`` being ``sum n`` if None."""
    vector = check_counts(counts)
    if total is not None and not 0 < total < math.inf:
        raise ValueError(f"total={total} must be finite and positive.")
    # The product first, so that equal counts give log10(1) without rounding.
    return -(vector * len(vector) / (vector.sum() if total is None else total)).log10()


def fractal_power(
    dimension: Tensor | Sequence[float], strength: float, num_classes: int | None = None
) -> Tensor:
    """FRACAL's ``log Phi_i^strength``."""
    log = check_vector("dimension", dimension, num_classes, least=1).log()
    return check_strength("strength", strength) * log


def with_background(vector: Tensor, value: float, background: bool) -> Tensor:
    """(C + 1,) with ``value`` for the background, or ``vector`` where there is none."""
    return torch.cat([vector, vector.new_full((1,), value)]) if background else vector


def check_classes(logits: Tensor, num_classes: int, background: bool) -> None:
    """
    Raises:
        ValueError: if ``logits`` is not (R, C + 1), or (R, C) without background.
    """
    if logits.dim() != 2 or num_classes < 1 or logits.shape[1] != num_classes + background:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, expected (R, {num_classes + background}): "
            f"{num_classes} classes and {'a background, last' if background else 'no background'}."
        )


def apply_affine(
    logits: Tensor, factor: Tensor | None, margin: Tensor | None, background: bool
) -> Tensor:
    """``factor_i z_i + margin_i`` of the foreground in one pass; always a new tensor.

    Args:
        logits: (R, C + 1), or (R, C) without background, any floating type.
        factor, margin: (C,); None for 1 and 0.
        background: the last column is the background, which stays.

    Returns:
        Tensor: of the shape of ``logits``, fp32 at least.

    Raises:
        ValueError: if the number of classes differs.
    """
    logits = full_precision(logits)
    for vector in (factor, margin):
        if vector is not None:
            check_classes(logits, len(vector), background)
    if margin is not None:
        margin = with_background(margin, 0.0, background).to(logits)
    if factor is None:
        return logits.clone() if margin is None else logits + margin
    factor = with_background(factor, 1.0, background).to(logits)
    return logits * factor if margin is None else torch.addcmul(margin, logits, factor)


def split_pull(pull: Tensor, region: float, class_: float, background: bool) -> Tensor:
    """``pull`` (C + 1, K) with a strength for what all classes share and one for the rest."""
    region, class_ = check_strength("region", region), check_strength("class_", class_)
    if region == class_:
        return pull * class_
    shared = (pull[:-1] if background else pull).mean(0)
    return pull * class_ + shared * (region - class_)


def subtract_products(logits: Tensor, cosine: Tensor, pull: Tensor, own: bool = False) -> Tensor:
    """``logits - cosine @ pull.T`` with one pass for each of the few K, in full precision.

    No matrix product, which autocast would compute in half precision.

    Args:
        logits: (R, C + 1) or (R, C).
        cosine: (R, K).
        pull: (C + 1, K) or (C, K).
        own: ``logits`` may be overwritten.

    Raises:
        ValueError: if the shapes do not go together.
    """
    if (*cosine.shape[:1], *pull.shape[:1]) != logits.shape or cosine.shape[1:] != pull.shape[1:]:
        raise ValueError(
            f"cosine {tuple(cosine.shape)} and pull {tuple(pull.shape)} must be (R, K) and one "
            f"row a column of the logits, which are {tuple(logits.shape)}."
        )
    columns = pull.to(logits).t().contiguous()
    for factor, column in zip(cosine.to(logits).split(1, dim=-1), columns):
        if own:
            logits.addcmul_(factor, column, value=-1)
        else:
            logits, own = torch.addcmul(logits, factor, column, value=-1), True
    return logits
