"""Measures of post-hoc settings that need regions and their classes alone, no average precision.

Shape shorthand: R regions of objects, C classes. ``shares`` are (R, C): the probability of each
class given that the region shows an object. ``labels`` are (R,) in [0, C). Larger is better.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MEASURES", "balanced_accuracy", "balanced_likelihood", "equal_false_shares", "shares"]


def shares(probabilities: Tensor) -> Tensor:
    """(R, C) of (R, C + 1) probabilities, whose last column is no class."""
    classes = probabilities[:, :-1]
    return classes / classes.sum(1, keepdim=True).clamp(min=torch.finfo(classes.dtype).tiny)


def _by_class(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Means over the regions of each class that has some."""
    values = values.double()
    sums = values.new_zeros(num_classes, *values.shape[1:]).index_add_(0, labels, values)
    counts = labels.bincount(minlength=num_classes)
    shape = (-1, *(1 for _ in values.shape[1:]))
    return (sums / counts.view(shape))[counts > 0]


def balanced_accuracy(shares: Tensor, labels: Tensor, counts: Tensor) -> float:
    """Percent of the regions that the right class wins, averaged over classes."""
    right = (shares.argmax(1) == labels).double()
    return 100 * float(_by_class(right, labels, shares.shape[1]).mean())


def balanced_likelihood(shares: Tensor, labels: Tensor, counts: Tensor) -> float:
    """Logarithm of the right class's share, averaged over classes."""
    right = shares.gather(1, labels[:, None])[:, 0]
    tiny = torch.finfo(shares.dtype).tiny
    return float(_by_class(right.clamp(min=tiny).log(), labels, shares.shape[1]).mean())


def equal_false_shares(shares: Tensor, labels: Tensor, counts: Tensor) -> float:
    """Minus the steepness of false shares over training images; 0 where frequency plays no part.

    The false share of a class is its mean share over regions of the other classes, each of which
    counts alike. Right shares, which a model knows by heart on its training images, play no part.
    Steepness is that of a straight line through the logarithms of both.
    """
    num_classes = shares.shape[1]
    false = shares.double().scatter(1, labels[:, None], 0.0)
    of_class = _by_class(false, labels, num_classes).sum(0)
    logs = of_class.clamp(min=torch.finfo(torch.float64).tiny).log()
    x = counts.double().log()
    x = x - x.mean()
    return -abs(float((x * logs).sum() / x.square().sum()))


MEASURES = {
    "balanced accuracy": balanced_accuracy,
    "balanced likelihood": balanced_likelihood,
    "equal false shares": equal_false_shares,
}
