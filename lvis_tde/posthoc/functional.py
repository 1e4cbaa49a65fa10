"""The steps as pure functions, each with its formula, its source and its neutral value.

``z`` are the logits, ``w_i`` and ``b_i`` weight and bias of class i, ``n_i`` the number of training
images of class i and ``pi_i = n_i / sum n``. A class that was never seen counts as seen once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .margins import (
    apply_affine,
    check_classes,
    fractal_power,
    frequency_margin,
    full_precision,
    logit_adjustment_margin,
    logn_affine,
    norcal_margin,
    split_pull,
    subtract_products,
    tau_norm_affine,
)


def tde(
    logits: Tensor,
    cosine: Tensor,
    pull: Tensor,
    region: float,
    class_: float,
    *,
    background: bool = True,
) -> Tensor:
    """Total direct effect with a strength for each of the two parts of the removed term.

    ``t_i = z_i - sum_k c_k (region m_k + class_ (g_ik - m_k))`` with ``c_k = xh_k . d_k``,
    ``g_ik = tau / K d_k . wh_ik`` and ``m_k`` the mean of ``g_ik`` over the foreground: the region
    part is equal for all classes, the class part is the rest. With both strengths alpha it is
    ``z - alpha c . g``, the paper's TDE. A softmax with its background exempt is blind to the
    region part; a sigmoid is not.

    Source: Tang, Huang, Zhang, NeurIPS 2020, section 3.4; the two strengths are this package's.
    Needs: the running mean of the features, and nothing of the training set. Neutral: 0 and 0.

    Args:
        logits: (R, C + 1), or (R, C) without background, any floating type.
        cosine: (R, K), from :func:`lvis_tde.layers.functional.cosine_to_mean`.
        pull: (C + 1, K), or (C, K) without background, from
            :func:`lvis_tde.layers.functional.weight_pull`, times the classifier's scale.
        region, class_: strengths, >= 0.
        background: the last column is the background, which the mean leaves out.

    Returns:
        Tensor: logits of the same shape, fp32 at least.

    Raises:
        ValueError: if a strength is negative or not finite, or the shapes do not go together.
    """
    check_classes(logits, len(pull) - background, background)
    pull = split_pull(full_precision(pull), region, class_, background)
    return subtract_products(full_precision(logits), cosine, pull)


def tau_norm(
    logits: Tensor,
    weight: Tensor,
    tau: float,
    *,
    bias: Tensor | None = None,
    background: bool = True,
) -> Tensor:
    """Tau-normalization of the classifier's weights.

    ``b_i + w_i . x s / ||w_i||^tau`` with s the mean of ``||w_i||^tau`` over the foreground, which
    keeps the temperature. A weight of zero stays zero.

    Source: Kang et al., ICLR 2020, whose code has neither s nor a bias: it multiplies the features
    by ``w_i / ||w_i||^tau``, which ranks the same. Needs: nothing. Neutral: tau 0.

    Args:
        logits: (R, C + 1), or (R, C) without background, any floating type: ``w_i . x + b_i``.
        weight: (C + 1, D), or (C, D) without background: the weights as they enter the logits, so
            of a cosine classifier the normalized ones.
        tau: strength, >= 0; 1 makes all norms equal.
        bias: (C + 1,), or (C,) without background; None for none.
        background: the last column is the background, which stays.

    Returns:
        Tensor: logits of the same shape, fp32 at least.

    Raises:
        ValueError: if tau is negative or not finite, or the shapes do not go together.
    """
    if weight.dim() != 2 or len(weight) != logits.shape[-1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, expected one row for each of the "
            f"{logits.shape[-1]} columns of the logits."
        )
    check_classes(logits, len(weight) - background, background)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, expected ({len(weight)},).")
    rows = slice(-1) if background else slice(None)
    norms = torch.linalg.vector_norm(weight[rows].detach().double(), dim=-1)
    factor, margin = tau_norm_affine(norms, tau, None if bias is None else bias[rows].detach())
    return apply_affine(logits, factor, margin, background)


def logit_adjustment(
    logits: Tensor, counts: Tensor | Sequence[float], beta: float, *, background: bool = True
) -> Tensor:
    """Post-hoc logit adjustment, ``z_i - beta log pi_i``.

    Source: Menon et al., ICLR 2021 (whose code adds 1e-12 to ``pi^beta``); with beta 1 it is the PC
    softmax of Hong et al. (LADE), CVPR 2021. Needs: counts. Neutral: beta 0.

    Sigmoids need :func:`keep_sum` after it: a constant on a class does not change the ranking of
    the class's own detections.

    Args:
        logits: (R, C + 1), or (R, C) without background, any floating type.
        counts: (C,) numbers of training images (or instances); 0 counts as 1.
        beta: strength, >= 0.
        background: the last column is the background, which stays.

    Returns:
        Tensor: logits of the same shape, fp32 at least.

    Raises:
        ValueError: if beta or a count is negative or not finite, a count is a fraction of one, or
            there is not one count a class.
    """
    margin = logit_adjustment_margin(counts, beta)
    return apply_affine(logits, None, margin, background)


def norcal(logits: Tensor, counts: Tensor | Sequence[float], gamma: float) -> Tensor:
    """Normalized calibration: ``p_i = e^{z_i} / n_i^gamma``, divided by the sum over all columns.

    Source: Pan et al., NeurIPS 2021 (its best variant, on exponentials, background joint).
    Needs: counts. Neutral: gamma 0.

    Args:
        logits: (R, C + 1), any floating type; background is the last column.
        counts: (C,) numbers of training images; 0 counts as 1 (the authors' code gives NaN).
        gamma: strength, >= 0.

    Returns:
        Tensor: (R, C + 1) probabilities, fp32 at least, rows sum to 1.

    Raises:
        ValueError: see :func:`logit_adjustment`.
    """
    return apply_affine(logits, None, norcal_margin(counts, gamma), True).softmax(-1)


def logn(
    logits: Tensor,
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
    *,
    strength: float = 1.0,
    background: bool = True,
) -> Tensor:
    """Logit normalization, ``(z_i - (mu_i - min_j mu_j)) / sigma_i``.

    Source: Zhao et al., IJCV 2024, which has no strength: with one, it is
    ``(z_i - strength (mu_i - min_j mu_j)) / sigma_i^strength``. Needs: one pass over the training
    data. Neutral: equal means and deviations of 1, or strength 0.

    Args:
        logits: (R, C + 1), or (R, C) without background, any floating type.
        mean, std: (C,) mean and standard deviation of the logits of each foreground class over
            the training regions. Deviations below ``sqrt(1e-11)`` count as that, the authors'
            least: a class of constant logit gets a very large or very small one.
        strength: >= 0; 1 is the paper's.
        background: the last column is the background, which stays.

    Returns:
        Tensor: logits of the same shape, fp32 at least.

    Raises:
        ValueError: if the lengths differ, a number is not finite, or a deviation is negative.
    """
    return apply_affine(logits, *logn_affine(mean, std, strength), background)


def fracal(
    logits: Tensor,
    counts: Tensor | Sequence[float],
    dimension: Tensor | Sequence[float],
    strength: float,
    *,
    total: float | None = None,
) -> Tensor:
    """Fractal calibration: ``p = softmax(z_i - log10(C pi_i))``, then ``p_i / Phi_i^strength``.

    The probabilities are divided by their sum again; the background has margin 0 and Phi 1.

    Source: Alexandridis et al., CVPR 2025. Needs: counts, and the centers of the boxes of the
    training set (:func:`fractal_dimension`). Neutral: strength 0 with equal counts; with strength 0
    alone the margin stays.

    Args:
        logits: (R, C + 1), any floating type; background is the last column.
        counts: (C,) numbers of training images or instances; 0 counts as 1 (the authors' code
            gives NaN).
        dimension: (C,) fractal dimensions Phi, >= 1.
        strength: lambda, >= 0 (2 in the authors' configs).
        total: what counts are divided by; their sum if None. The authors' configs divide counts of
            images by the number of all training images.

    Returns:
        Tensor: (R, C + 1) probabilities, fp32 at least, rows sum to 1.

    Raises:
        ValueError: see :func:`logit_adjustment`; also if a dimension is below 1.
    """
    margin = frequency_margin(counts, total)
    # The division as a margin: the softmax divides by the sum as well.
    power = fractal_power(dimension, strength, len(margin)).to(margin)
    return apply_affine(logits, None, margin - power, True).softmax(-1)
