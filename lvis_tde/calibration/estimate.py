"""TDE for a trained model: the feature mean is all that a softmax detector lacks.

The mean is a plain average over training batches that stream through the frozen model: no momentum
and no learning rate, since nothing moves. Only its direction is used, so the direction is what
decides when to stop.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, distributed, nn

from ..layers.functional import multi_head_normalize
from .replay import box_branch_only
from .settings import tde_predictors

__all__ = ["MeanEstimate", "angle_between", "estimate_feature_mean"]

logger = logging.getLogger(__name__)

# Batches between two looks at the angle: each costs a synchronization of device and processes.
_PERIOD = 10


def angle_between(first: Tensor, second: Tensor, num_heads: int = 1) -> Tensor:
    """Angle between two means as TDE sees them: head by head.

    Args:
        first, second: (D,) means.
        num_heads: K, a divisor of D.

    Returns:
        Tensor: (K,) float64, in degrees; 90 where one of the two is zero, 0 where both are.
    """
    u, v = (
        multi_head_normalize(mean.double(), num_heads).unflatten(-1, (num_heads, -1))
        for mean in (first, second)
    )
    # Exact for small angles too, where the arc cosine loses half of the digits.
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)))


@dataclass(frozen=True)
class MeanEstimate:
    """What :func:`estimate_feature_mean` found.

    Attributes:
        means: (D,) fp32 mean of each TDE predictor: one, or one a cascade stage.
        angle: degrees between the means of the even and of the odd batches, the largest over
            stages and heads. The error of the mean of all is about half of it.
        converged: whether ``angle`` fell below the tolerance.
        num_batches: batches used by each process.
        num_foreground: foreground regions used, for each predictor, over all processes.
        num_left_out: foreground regions with features that are not finite, likewise.
    """

    means: tuple[Tensor, ...]
    angle: float
    converged: bool
    num_batches: int
    num_foreground: tuple[int, ...]
    num_left_out: tuple[int, ...]


class _Sums:
    """Sum and count of a predictor's foreground features, for even and odd batches."""

    def __init__(self, predictor):
        self.predictor = predictor
        mean = predictor.feature_mean.mean
        # Columns: features, used, left out.
        self.local = torch.zeros(2, len(mean) + 2, dtype=torch.float64, device=mean.device)
        self.half = 0

    def losses(self, predictions, proposals) -> dict:
        """In the place of the predictor's own: it is where features meet labels."""
        features = predictions[2]
        labels = torch.cat([p.gt_classes for p in proposals])
        foreground = (labels >= 0) & (labels < self.predictor.num_classes)
        usable = foreground & torch.isfinite(features).all(dim=1)
        row = self.local[self.half]
        row[:-2] += features[usable].double().sum(0)
        row[-2] += usable.sum()
        row[-1] += (foreground & ~usable).sum()
        return {}

    def total(self) -> Tensor:
        """(2, D + 2) over all processes."""
        total = self.local.clone()
        if comm.get_world_size() > 1:
            distributed.all_reduce(total)
        return total

    def angle(self, total: Tensor) -> float:
        angles = angle_between(total[0, :-2], total[1, :-2], self.predictor.cls_score.num_heads)
        return float(angles.max()) if bool((total[:, -2] > 0).all()) else math.inf


@contextlib.contextmanager
def _frozen(model: nn.Module):
    """Training mode, since it alone matches labels, with frozen statistics and no dropout."""
    before = [(module, module.training) for module in model.modules()]
    fixed = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    try:
        model.train()
        for module, _ in before:
            if isinstance(module, fixed):
                module.eval()
        yield
    finally:
        for module, training in before:
            module.train(training)


@torch.no_grad()
def estimate_feature_mean(
    model: nn.Module,
    loader: Iterable[list[dict]],
    *,
    max_batches: int = 500,
    tolerance: float = 2.0,
    min_batches: int = 20,
) -> MeanEstimate:
    """Sets the running means of a trained model from training batches.

    The regions are those that training samples: the proposals of the region proposal network,
    matched with the ground truth; those of a cascade are matched anew in every stage. Nothing of
    the model changes but its running means. Over several processes, each with batches of its own,
    all get the mean over all.

    Args:
        model: with TDE predictors and trained weights, such as a softmax detector's under
            ``MODEL.TDE.NORM: "none"``. Its mode is restored.
        loader: training batches with ground truth; every process needs as many.
        max_batches: most batches a process uses, >= 2.
        tolerance: stop when the means of even and odd batches are at most so many degrees apart;
            0 uses ``max_batches``.
        min_batches: do not stop before so many.

    Returns:
        MeanEstimate: the means, which the model now has, and how sure they are.

    Raises:
        ValueError: if the model has no TDE predictor, an argument is out of its range, or no batch
            had a foreground region.
    """
    if max_batches < 2:
        raise ValueError(f"max_batches={max_batches} must be at least 2, one for each half.")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance} must not be negative (degrees).")
    sums = [_Sums(predictor) for predictor in tde_predictors(model)]
    start = logged = time.monotonic()
    count, angle, converged = 0, math.inf, False
    totals: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(EventStorage(1))
        stack.enter_context(_frozen(model))
        stack.enter_context(box_branch_only(model))
        for one in sums:
            one.predictor.losses = one.losses
            stack.callback(delattr, one.predictor, "losses")
        for batch in itertools.islice(loader, max_batches):
            for one in sums:
                one.half = count % 2
            model(batch)
            count += 1
            if count % _PERIOD:
                continue
            totals = [one.total() for one in sums]
            angle = max(one.angle(total) for one, total in zip(sums, totals))
            now = time.monotonic()
            if now - logged > 10:
                logged = now
                _log_progress(count, max_batches, angle, tolerance, now - start)
            if count >= min_batches and angle <= tolerance:
                converged = True
                break
    if count % _PERIOD or not totals:
        totals = [one.total() for one in sums]
        angle = max(one.angle(total) for one, total in zip(sums, totals))
        converged = count >= min_batches and angle <= tolerance
    sides = [total.sum(0) for total in totals]
    counts = [tuple(int(side[i]) for side in sides) for i in (-2, -1)]
    if not all(counts[0]):
        raise ValueError(
            f"{count} batches had {counts[0]} foreground regions for the box predictors: a mean "
            "needs some in each. Check the annotations, and that MODEL.WEIGHTS is a trained model."
        )
    for one, side in zip(sums, sides):
        one.predictor.feature_mean.mean.copy_(side[:-2] / side[-2])
    means = tuple(one.predictor.feature_mean.mean.clone() for one in sums)
    return MeanEstimate(means, angle, converged, count, *counts)


def _log_progress(count: int, most: int, angle: float, tolerance: float, seconds: float) -> None:
    # The angle falls with the square root of the batches: a forecast of where it gets small enough.
    needed = most
    if tolerance > 0 and math.isfinite(angle):
        needed = min(most, math.ceil(count * max(1.0, (angle / tolerance) ** 2)))
    logger.info(
        "%d batches (at most %d), halves %.2f degrees apart, ETA %.0f s",
        count,
        most,
        angle,
        seconds / count * (needed - count),
    )
