"""Arithmetic of ``sigmoid_parts``: rankings, directions, optima. Torch and NumPy alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "auc",
    "auc_pooled",
    "auc_within",
    "best",
    "fit_logistic",
    "interpolated",
    "plateau",
    "principal_component",
    "transfer_loss",
    "variation",
]


def auc(positive: Tensor, negative: Tensor) -> float | None:
    """Chance that a positive ranks above a negative, ties counting half; None if there is none.

    Args:
        positive: (P,) scores.
        negative: (N,) scores.
    """
    if not len(positive) or not len(negative):
        return None
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive)
    upto = torch.searchsorted(ordered, positive, right=True)
    return float((below + upto).double().mean() / (2 * len(negative)))


def auc_within(
    scores: Tensor, labels: Tensor, classes: Sequence[int], negative: Tensor
) -> float | None:
    """Mean over classes of their own :func:`auc`; a class without a positive does not count.

    Args:
        scores: (R, C).
        labels: (R,) class that each row shows.
        classes: those that count.
        negative: (R,) bool; of them those that do not show the class are its negatives.
    """
    values = []
    for one in classes:
        mine = labels == one
        values.append(auc(scores[mine, one], scores[negative & ~mine, one]))
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def auc_pooled(
    scores: Tensor, labels: Tensor, classes: Sequence[int], negative: Tensor
) -> float | None:
    """:func:`auc` over all pairs of a row and a class together; see :func:`auc_within`."""
    chosen = torch.tensor(classes)
    mine = labels[:, None] == chosen
    picked = scores[:, chosen]
    return auc(picked[mine], picked[negative[:, None] & ~mine])


def principal_component(x: Tensor) -> Tensor:
    """(D,) unit direction of greatest variance of (N, D)."""
    centered = (x - x.mean(0)).double()
    return torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -1].to(x)


def fit_logistic(features: Tensor, offset: Tensor, labels: Tensor, ridge: float = 1.0) -> Tensor:
    """What features add to a logit in telling true from false: a direction, in logits.

    Logistic regression on ``offset`` and the features; the weights of the features divided by that
    of ``offset``, so that ``offset + features @ direction`` ranks as the fit does.

    Args:
        features: (N, D).
        offset: (N,) logits.
        labels: (N,) bool.
        ridge: penalty of the squared weights of features of unit variance, against a sum over N.

    Returns:
        Tensor: (D,).
    """
    x = features.double()
    scale = x.std(0).clamp(min=1e-6)
    x = (x - x.mean(0)) / scale
    z, target = offset.double(), labels.double()
    parameters = torch.zeros(x.shape[1] + 2, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        weight, slope, bias = parameters[:-2], parameters[-2], parameters[-1]
        logits = x @ weight + (1 + slope) * z + bias
        penalty = ridge * weight.square().sum() / (2 * len(z))
        value = F.binary_cross_entropy_with_logits(logits, target) + penalty
        value.backward()
        return value

    solver.step(loss)
    found = parameters.detach()
    return (found[:-2] / scale / (1 + found[-2])).to(features)


def best(curve: Mapping[float, float]) -> float:
    """The strength of the greatest value; of several the least."""
    return min(curve, key=lambda strength: (-curve[strength], strength))


def plateau(curve: Mapping[float, float], margin: float) -> tuple[float, float]:
    """From where to where the curve is at most ``margin`` below its greatest value.

    Linear between the points; only the stretch around the best of them.

    Args:
        curve: strength to value.
        margin: > 0.
    """
    x = sorted(curve)
    level = max(curve.values()) - margin
    peak = x.index(best(curve))
    ends = []
    for steps in (range(peak, 0, -1), range(peak, len(x) - 1)):
        step = -1 if steps.step < 0 else 1
        end = x[0] if step < 0 else x[-1]
        for i in steps:
            inner, outer = curve[x[i]], curve[x[i + step]]
            if outer < level:
                end = x[i] + (x[i + step] - x[i]) * (inner - level) / (inner - outer)
                break
        ends.append(end)
    return ends[0], ends[1]


def interpolated(curve: Mapping[float, float], strength: float) -> float:
    """Value at a strength, linear between the points and constant beyond them."""
    x = sorted(curve)
    return float(np.interp(strength, x, [curve[i] for i in x]))


def variation(values: Sequence[float]) -> float | None:
    """Coefficient of variation, standard deviation / mean; None if the mean is 0 or unknown."""
    if len(values) < 2 or not statistics.mean(values):
        return None
    return statistics.stdev(values) / statistics.mean(values)


def transfer_loss(curves: Sequence[Mapping[float, float]], units: Sequence[float]) -> float | None:
    """What a model loses with the mean of the other models' optima in place of its own.

    Args:
        curves: strength to AP of each model.
        units: of each model, what a strength of 1 is in the unit in which strengths are carried
            over; all 1 carries over the strength itself.

    Returns:
        Mean loss over the models; None of less than two.
    """
    if len(curves) < 2:
        return None
    optima = [best(curve) * unit for curve, unit in zip(curves, units)]
    losses = []
    for i, curve in enumerate(curves):
        others = [value for j, value in enumerate(optima) if j != i]
        losses.append(max(curve.values()) - interpolated(curve, statistics.mean(others) / units[i]))
    return statistics.mean(losses)
