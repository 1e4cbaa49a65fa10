"""Losses of image classifiers on long-tailed training sets, as pure functions.

Shape shorthand: N images of the batch, C classes.

    logits: (N, C), any floating type; computed in fp32 at least
    labels: (N,) int64 in [0, C)
    counts: (C,) training images of each class; one that was never seen counts as seen once

A loss is one number an image, (N,), so that any of them goes with any weights of the classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers.functional import at_least_fp32

__all__ = ["LOSSES", "ImageLoss", "balanced_softmax", "cross_entropy", "effective_weights"]
__all__ += ["focal", "ldam", "ldam_margins"]

LOSSES = ("cross_entropy", "focal", "ldam", "balanced_softmax")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log p_y`` of the softmax, (N,)."""
    return F.cross_entropy(at_least_fp32(logits), labels, reduction="none")


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """``-(1 - p_y)^gamma log p_y``, (N,) (Lin et al., ICCV 2017, on a softmax)."""
    losses = cross_entropy(logits, labels)
    # The power has no finite slope at 0 for gamma below 1.
    missing = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
    return missing**gamma * losses


def balanced_softmax(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Cross entropy of ``logits + log n``, (N,) (Ren et al., NeurIPS 2020)."""
    logits = at_least_fp32(logits)
    return cross_entropy(logits + _seen(counts, logits).log(), labels)


def ldam_margins(counts: Tensor, largest: float = 0.5) -> Tensor:
    """``n_i^-1/4``, (C,) fp32 at least, scaled so that the smallest class has ``largest``."""
    margins = _seen(counts) ** -0.25
    return margins * (largest / margins.max())


def ldam(
    logits: Tensor, labels: Tensor, counts: Tensor, margin: float = 0.5, scale: float = 30.0
) -> Tensor:
    """Cross entropy with a margin on the cosine of the true class (Cao et al., NeurIPS 2019).

    Args:
        logits: (N, C) cosines times ``scale``, so that training and inference have the same ones.
        labels, counts: see above.
        margin: the largest, that of the smallest class.
        scale: factor on the cosines.

    Returns:
        Tensor: (N,).
    """
    logits = at_least_fp32(logits)
    taken = scale * ldam_margins(_seen(counts, logits), margin)[labels]
    return cross_entropy(logits.scatter_add(1, labels[:, None], -taken[:, None]), labels)


def effective_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Inverse of each class's effective number of images, ``(1 - beta^n) / (1 - beta)``.

    Cui et al., CVPR 2019; scaled to a mean of 1.

    Args:
        counts: (C,).
        beta: in [0, 1); 0 gives equal weights.

    Returns:
        Tensor: (C,), fp32 at least.
    """
    seen = _seen(counts)
    # 1 - beta^n without the rounding of beta near 1.
    number = torch.ones_like(seen) if beta == 0 else -torch.expm1(seen * math.log(beta))
    weights = 1 / number
    return weights / weights.mean()


def _seen(counts: Tensor, like: Tensor | None = None) -> Tensor:
    """
    Raises:
        ValueError: if there is not one number a column of ``like``.
    """
    if like is not None and len(counts) != like.shape[1]:
        raise ValueError(f"{len(counts)} counts for logits of {like.shape[1]} classes.")
    dtype = torch.promote_types(counts.dtype, torch.float32) if like is None else like.dtype
    return counts.to(dtype).clamp(min=1)


@dataclass(frozen=True)
class ImageLoss:
    """A loss by name, with its parameters, averaged over the batch.

    Attributes:
        name: one of ``LOSSES``.
        focal_gamma: of :func:`focal`, >= 0.
        ldam_margin, ldam_scale: of :func:`ldam`, > 0.
        defer_iter: iteration from which :func:`effective_weights` weigh the classes, as the authors
            of LDAM do late in training (DRW); -1 for never.
        defer_beta: of these weights, in [0, 1).

    Raises:
        ValueError: if a value is out of its range.
    """

    name: str = "cross_entropy"
    focal_gamma: float = 2.0
    ldam_margin: float = 0.5
    ldam_scale: float = 30.0
    defer_iter: int = -1
    defer_beta: float = 0.9999

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise ValueError(f"Unknown loss {self.name!r}: choose one of {', '.join(LOSSES)}.")
        if not 0 <= self.focal_gamma < math.inf:
            raise ValueError(f"focal_gamma={self.focal_gamma} must be finite and not negative.")
        for name in ("ldam_margin", "ldam_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be finite and positive.")
        if not 0 <= self.defer_beta < 1:
            raise ValueError(f"defer_beta={self.defer_beta} must lie in [0, 1).")

    def weighs(self, iteration: int) -> bool:
        """Whether the classes have weights in this iteration."""
        return 0 <= self.defer_iter <= iteration

    def needs_counts(self, iteration: int) -> bool:
        return self.name in ("ldam", "balanced_softmax") or self.weighs(iteration)

    def _known(self, counts: Tensor | None) -> Tensor:
        if counts is None:
            raise ValueError(f"{self} needs counts, the training images of each class.")
        return counts

    def per_image(self, logits: Tensor, labels: Tensor, counts: Tensor | None) -> Tensor:
        """The loss of each image, (N,), unweighted."""
        if self.name == "focal":
            return focal(logits, labels, self.focal_gamma)
        if self.name == "ldam":
            return ldam(logits, labels, self._known(counts), self.ldam_margin, self.ldam_scale)
        if self.name == "balanced_softmax":
            return balanced_softmax(logits, labels, self._known(counts))
        return cross_entropy(logits, labels)

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        counts: Tensor | None = None,
        iteration: int = 0,
        labels_b: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            logits, labels: see above.
            counts: see above; needed where :meth:`needs_counts` says so.
            iteration: of the training, for ``defer_iter``.
            labels_b, weight: of mixup: (N,) second labels, and (N,) shares in [0, 1] of the first.

        Returns:
            Tensor: scalar, the mean over images, weighted by their classes; 0 without images.

        Raises:
            ValueError: if counts are needed and not given, or are of another number of classes.
        """
        classes = None
        if self.weighs(iteration):
            classes = effective_weights(self._known(counts), self.defer_beta).to(
                at_least_fp32(logits).dtype
            )
        parts: list[tuple[Tensor, Tensor | None]] = [(labels, None)]
        if labels_b is not None and weight is not None:
            parts = [(labels, weight), (labels_b, 1 - weight)]
        total = mass = logits.new_zeros((), dtype=at_least_fp32(logits).dtype)
        for of_part, share in parts:
            losses = self.per_image(logits, of_part, counts)
            weights = torch.ones_like(losses) if classes is None else classes[of_part]
            weights = weights if share is None else weights * share
            total = total + (losses * weights).sum()
            mass = mass + weights.sum()
        return total / mass.clamp(min=torch.finfo(mass.dtype).tiny)
