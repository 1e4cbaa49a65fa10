"""What the training regions of each class look like on average, as evidence beside the classifier.

A classifier's weights of a rare class have been moved by a few positive and very many negative
regions; the mean of the few is an estimate that the others have no part in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .margins import check_classes, check_strength, full_precision


def class_means(
    logits: Tensor,
    features: Tensor,
    means: Tensor,
    strength: float,
    *,
    center: Tensor | None = None,
    similarity: float = 0.0,
    background: bool = True,
) -> Tensor:
    """Cosine similarity to the mean of each class's training features, added to its logit.

    ``z_i + strength (cos(x - c, m_i - c) - similarity)`` with ``m_i`` the mean of class i and ``c``
    that of the background. A class without a mean keeps its logit. With the similarity that a
    region of the class has as a rule, such a region keeps its logit, too, and so sigmoids their
    scale; the order of the classes with a mean does not depend on it.

    Source: the nearest class mean classifier of Kang et al., ICLR 2020, section 4; that it stands
    beside the trained classifier, and not in its place, is this package's. Needs: the means.
    Neutral: 0.

    Args:
        logits: (R, C + 1), or (R, C) without background, any floating type.
        features: (R, D), the classifier's input.
        means: (C, D); a row of zeros is a class that has none.
        strength: logits for a similarity of 1, >= 0.
        center: (D,), the mean of the background; None for the mean of all ``m_i``, where there is
            no background, as in classifiers of images.
        similarity: from -1 to 1.
        background: the last column is the background, which stays.

    Returns:
        Tensor: logits of the same shape, fp32 at least.

    Raises:
        ValueError: if the shapes do not go together, or the strength is out of its range.
    """
    check_classes(logits, len(means), background)
    strength = check_strength("class_means", strength)
    if strength == 0:
        return full_precision(logits).clone()
    directions = mean_directions(means, center)
    usual = usual_similarity(directions, similarity)
    return add_similarity(logits, features, directions, usual, strength, background)


def mean_directions(means: Tensor, center: Tensor | None = None) -> Tensor:
    """(C + 1, D), fp32 at least: each class's direction from the center, and the center, last.

    A direction has length 1, or 0 for a class without a mean.

    Raises:
        ValueError: if ``means`` is not (C, D) or ``center`` not (D,), or a number is not finite.
    """
    if means.dim() != 2 or not means.numel():
        raise ValueError(f"means have shape {tuple(means.shape)}, expected (C, D).")
    if center is not None and center.shape != means.shape[1:]:
        raise ValueError(f"center has shape {tuple(center.shape)}, expected {means.shape[1:]}.")
    kept, known, means = full_precision(means).dtype, means.any(1, keepdim=True), means.double()
    if center is None:
        center = means.sum(0) / known.sum().clamp(min=1)
    center = center.to(means)
    if not (means.isfinite().all() and center.isfinite().all()):
        raise ValueError(
            "means or their center have numbers that are not finite: gather them anew."
        )
    directions = F.normalize((means - center) * known, dim=1)
    return torch.cat([directions, center[None]]).to(kept)


def usual_similarity(directions: Tensor, similarity: float) -> Tensor | None:
    """(C,) what is taken off the similarity to each class: 0 without a mean; None for nothing.

    Raises:
        ValueError: if ``similarity`` is none.
    """
    if not -1 <= similarity <= 1:
        raise ValueError(f"similarity={similarity} must be from -1 to 1, as a cosine is.")
    return similarity * directions[:-1].any(1).to(directions) if similarity else None


def add_similarity(
    logits: Tensor,
    features: Tensor,
    directions: Tensor,
    usual: Tensor | None,
    strength: float,
    background: bool,
) -> Tensor:
    """:func:`class_means` with what the two functions above give; a new tensor.

    Raises:
        ValueError: if the features have another size than the means, or another number of rows
            than the logits.
    """
    if features.shape != (len(logits), directions.shape[1]):
        raise ValueError(
            f"features have shape {tuple(features.shape)}, expected ({len(logits)}, "
            f"{directions.shape[1]}): one row a region, of the size of the classes' means."
        )
    logits = full_precision(logits)
    # A tensor without storage computes nothing, and its device knows no autocast.
    device = "cpu" if logits.is_meta else logits.device.type
    with torch.autocast(device_type=device, enabled=False):
        directions = directions.to(logits)
        from_center = strength * F.normalize(features.to(logits) - directions[-1], dim=1)
        less = None if usual is None else -strength * usual.to(logits)
        similarity = F.linear(from_center, directions[:-1], less)
    return logits + (F.pad(similarity, (0, 1)) if background else similarity)
