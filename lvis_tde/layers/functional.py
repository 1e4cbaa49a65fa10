"""The method as pure functions (Tang, Huang, Zhang, NeurIPS 2020, sections 3 and 4).

Shape shorthand in this package:

    R: number of regions of interest (RoIs), all images of the batch together
    C: number of foreground classes; background is the last index, C
    D: feature size of the classifier input
    K: number of heads; a head sees Dk = D / K consecutive features

Naming convention:

    features: raw classifier input, (R, D)
    xh, wh: normalized features (R, D) and weights (C + 1, D), head by head
    mean: running mean of the raw foreground features, (D,); only its direction counts
    d: the direction of ``mean``, head by head, (D,)
    logits: factual logits y, the total effect
    tde_logits: logits without the indirect effect of the momentum, t = y - y0
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Offsets of the features' and of the weights' norms; None stands for the hyper-parameter gamma.
_OFFSETS: dict[str, tuple[float, float | None]] = {
    "cosine": (0.0, 0.0),
    "capsule": (1.0, 0.0),
    "deconfound": (0.0, None),
}

# The linear classifier of a softmax detector: features and weights as they are, with a bias.
NO_NORM = "none"

NORMS = (*_OFFSETS, NO_NORM)

# Constants of the authors' implementation, too small to matter except against its own numbers:
# added to the norms in the factual logits (not in the cosine to the mean), and the least share of
# the foreground's probability. Zeros are handled where they occur, not by these.
EPS = 1e-9
FLOOR = 1e-10


def check_norm(norm: str) -> str:
    """Returns ``norm``.

    Raises:
        ValueError: if it is not one of ``NORMS``.
    """
    if norm not in NORMS:
        raise ValueError(f"Unknown norm {norm!r}: choose one of {', '.join(NORMS)}.")
    return norm


def check_num_heads(num_features: int, num_heads: int) -> int:
    """Returns ``num_heads``.

    Raises:
        ValueError: if it is not a positive divisor of ``num_features``.
    """
    if num_heads < 1 or num_features % num_heads:
        raise ValueError(
            f"num_heads={num_heads} does not divide the feature size {num_features}: every head "
            "takes an equal share of the features."
        )
    return num_heads


def check_alpha(alpha: float) -> float:
    """Returns ``alpha`` as a float.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha} must be finite and not negative (0 turns TDE off).")
    return float(alpha)


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision loses small norms and means: fp16 and bf16 become fp32, the rest stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def autocast_off(x: Tensor) -> contextlib.AbstractContextManager:
    """Full precision for what follows, on the device of ``x``.

    Norms and cosines in half precision would cost the differences between rare classes.
    """
    # A tensor without storage computes nothing, and its device knows no autocast.
    if x.is_meta:
        return contextlib.nullcontext()
    return torch.autocast(device_type=x.device.type, enabled=False)


def may_overwrite() -> bool:
    """Whether results may be written into given memory: no gradient, trace or compiler follows."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


def multi_head_normalize(x: Tensor, num_heads: int, offset: float = 0.0) -> Tensor:
    """Divides every head's slice by its own Euclidean norm plus ``offset``.

    One formula serves the three normalizations: ``offset`` is 0 for the cosine, 1 for capsule
    features and gamma for de-confound weights (paper section 3.3, multi-head strategy in 4.1).

    Args:
        x: (..., D) of any floating type; computed in fp32 at least.
        num_heads: K, a divisor of D.
        offset: added to the norm, >= 0.

    Returns:
        Tensor: (..., D). A slice of zeros stays zero, with a finite gradient.

    Raises:
        ValueError: if ``num_heads`` does not divide D.
    """
    check_num_heads(x.shape[-1], num_heads)
    slices = at_least_fp32(x).unflatten(-1, (num_heads, -1))
    length = torch.linalg.vector_norm(slices, dim=-1, keepdim=True)
    return (slices / torch.where(length > 0, length + offset, 1.0)).flatten(-2)


def normalize_features(features: Tensor, num_heads: int, norm: str) -> Tensor:
    """Normalized features ``xh``, (R, D), by the table of section 3.3; "none" changes nothing."""
    if check_norm(norm) == NO_NORM:
        return at_least_fp32(features)
    return multi_head_normalize(features, num_heads, _OFFSETS[norm][0] + EPS)


def normalize_weight(weight: Tensor, num_heads: int, norm: str, gamma: float) -> Tensor:
    """Normalized weights ``wh``, (C + 1, D), by the table of section 3.3; "none" leaves them."""
    if check_norm(norm) == NO_NORM:
        return at_least_fp32(weight)
    return multi_head_normalize(weight, num_heads, _weight_offset(norm, gamma))


def _weight_offset(norm: str, gamma: float) -> float:
    offset = _OFFSETS[norm][1]
    return (gamma if offset is None else offset) + EPS


def project_on_mean(x: Tensor, mean: Tensor, num_heads: int) -> Tensor:
    """Projection of every head's slice on the mean's direction, ``x_k . d_k``.

    Args:
        x: (R, D), any floating type; computed in fp32 at least.
        mean: (D,) running mean of the foreground features.
        num_heads: K, a divisor of D.

    Returns:
        Tensor: (R, K); 0 where the mean's slice is 0.
    """
    x = at_least_fp32(x)
    d = multi_head_normalize(mean, num_heads).to(x.dtype)
    # One matrix-vector product a head: ten times faster than one thin matrix product.
    with autocast_off(x):
        heads = zip(x.chunk(num_heads, dim=-1), d.chunk(num_heads))
        return torch.stack([x_k @ d_k for x_k, d_k in heads], dim=-1)


def cosine_to_mean(features: Tensor, mean: Tensor, num_heads: int, norm: str) -> Tensor:
    """``xh_k . d_k``: the cosine itself, in [-1, 1], unless ``norm`` is "capsule" or "none".

    Args:
        features: (R, D) raw classifier input, any floating type.
        mean, num_heads: see :func:`project_on_mean`.
        norm: the classifier's normalization.

    Returns:
        Tensor: (R, K), fp32 at least; 0 where the features or the mean are 0.
    """
    offset = None if check_norm(norm) == NO_NORM else _OFFSETS[norm][0]
    return _normalized_projection(features, mean, num_heads, offset)


def weight_pull(weight: Tensor, mean: Tensor, num_heads: int, norm: str, gamma: float) -> Tensor:
    """``d_k . wh_{i,k}``: how far each class's weights point along the mean.

    Args:
        weight: (C + 1, D) raw weights, any floating type.
        mean, num_heads: see :func:`project_on_mean`.
        norm, gamma: the classifier's normalization.

    Returns:
        Tensor: (C + 1, K), fp32 at least; 0 where the weights or the mean are 0.
    """
    offset = None if check_norm(norm) == NO_NORM else _weight_offset(norm, gamma)
    return _normalized_projection(weight, mean, num_heads, offset)


def _normalized_projection(x: Tensor, mean: Tensor, num_heads: int, offset: float | None) -> Tensor:
    """Projection first, then the division: K numbers of a row are divided in place of D."""
    x = at_least_fp32(x)
    projection = project_on_mean(x, mean, num_heads)
    if offset is None:
        return projection
    length = torch.linalg.vector_norm(x.unflatten(-1, (num_heads, -1)), dim=-1)
    return projection / torch.where(length > 0, length + offset, 1.0)


def counterfactual(cosine: Tensor, pull: Tensor, *, scale: float, alpha: float) -> Tensor:
    """Counterfactual logits ``y0``: what the momentum's direction alone predicts (section 3.4).

    ``y0_i = scale * sum_k alpha * (xh_k . d_k) * (d_k . wh_{i,k})`` has rank K, so it costs
    R x K x C operations, not a second R x D x C product.

    Args:
        cosine: (R, K) ``xh_k . d_k``, from :func:`cosine_to_mean`.
        pull: (C + 1, K) ``d_k . wh_{i,k}``, from :func:`weight_pull`.
        scale: tau / K.
        alpha: strength of the removal, >= 0.

    Returns:
        Tensor: (R, C + 1).
    """
    return F.linear(cosine, pull * (scale * alpha))


def tde_logits(features: Tensor, classifier, feature_mean: Tensor, alpha: float) -> Tensor:
    """Total direct effect ``t = y - y0`` (paper section 3.4).

    Args:
        features: (R, D) raw classifier input, any floating type.
        classifier: a :class:`~lvis_tde.CosineMultiHeadClassifier` with D inputs.
        feature_mean: (D,) running mean of the foreground features. Zero means no TDE.
        alpha: strength of the removal, >= 0. 0 returns the factual logits.

    Returns:
        Tensor: (R, C + 1), fp32 at least, also under autocast.

    Raises:
        ValueError: if ``feature_mean`` has another size than the classifier's input, or ``alpha``
            is negative or not finite.
    """
    check_alpha(alpha)
    if feature_mean.shape != (classifier.in_features,):
        raise ValueError(
            f"feature_mean has shape {tuple(feature_mean.shape)}, but the classifier takes "
            f"{classifier.in_features} features."
        )
    return classifier(features) - classifier.indirect_effect(features, feature_mean, alpha)


def exempt_background(logits: Tensor, tde_logits: Tensor) -> Tensor:
    """Background-exempted probabilities (paper section 4.3).

    TDE redistributes the probability among the foreground classes and leaves the ratio of
    foreground to background as the factual logits have it: background gets ``p_C`` and
    foreground i gets ``(1 - p_C) * q_i / (1 - q_C)`` with ``p = softmax(logits)`` and
    ``q = softmax(tde_logits)``.

    Args:
        logits: (R, C + 1) factual logits; background is the last column.
        tde_logits: (R, C + 1) total direct effect.

    Returns:
        Tensor: (R, C + 1) probabilities in [0, 1], fp32 at least. Rows sum to 1 within C * 1e-10:
            every foreground class has the floor of 1e-10 of the authors' implementation.

    Raises:
        ValueError: if the shapes differ or there is no foreground class.
    """
    if logits.shape != tde_logits.shape or logits.shape[-1] < 2:
        raise ValueError(
            f"Expected two tensors of one shape (R, C + 1) with C >= 1, got "
            f"{tuple(logits.shape)} and {tuple(tde_logits.shape)}."
        )
    p = F.softmax(at_least_fp32(logits), dim=-1)
    # q_i / (1 - q_C) is the softmax over the foreground alone: no division, so no 0 / 0.
    share = F.softmax(at_least_fp32(tde_logits)[..., :-1], dim=-1)
    foreground = p[..., :-1].sum(-1, keepdim=True)
    return torch.cat([(share + FLOOR) * (foreground / (1 + FLOOR)), p[..., -1:]], dim=-1)
