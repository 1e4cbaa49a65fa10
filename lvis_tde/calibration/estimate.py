"""TDE for a trained model: the feature mean is all that a softmax detector lacks.

The mean is a plain average over training batches that stream through the frozen model: no momentum
and no learning rate, since nothing moves. Only its direction is used, so that decides when to stop.
The same pass gives mean and deviation of each class's logit, for LogN, and the mean of each class.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..layers.functional import multi_head_normalize
from ..progress import Progress
from .regions import labels_of, regions_of_training
from .settings import tde_predictors
from .sums import ClassSums, FeatureSums, LogitSums

__all__ = [
    "MAX_BATCHES",
    "MeanEstimate",
    "angle_between",
    "check_stopping",
    "estimate_feature_mean",
]

logger = logging.getLogger(__name__)

# Batches between two looks at the angle: each costs a synchronization of device and processes.
_PERIOD = 10
# Unless said otherwise.
MAX_BATCHES = 500


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
        num_without_mean: classes without a mean, likewise; empty if none was asked for.
    """

    means: tuple[Tensor, ...]
    angle: float
    converged: bool
    num_batches: int
    num_foreground: tuple[int, ...]
    num_left_out: tuple[int, ...]
    num_without_mean: tuple[int, ...] = ()


class _Halves:
    """The foreground features of a predictor, those of even and of odd batches apart."""

    def __init__(self, predictor, class_means: bool):
        self.predictor = predictor
        self.classes = ClassSums(predictor) if class_means else None
        mean = predictor.feature_mean.mean
        self._half, self._other = FeatureSums.zeros_like(mean), FeatureSums.zeros_like(mean)
        self._logits = LogitSums(predictor)

    def next_batch(self) -> None:
        self._half, self._other = self._other, self._half

    def losses(self, _, predictions, truth, *__, **___) -> dict:
        """In the place of the predictor's own: where features meet proposals, or labels."""
        labels = labels_of(truth)
        self._logits.add(predictions[0])
        self._half.add(predictions[-1], (labels >= 0) & (labels < self.predictor.num_classes))
        if self.classes is not None:
            self.classes.add(predictions[-1], labels)
        return {}

    def waits(self) -> bool:
        """Whether a class that training images have, as far as is known, has no region yet."""
        return self.classes is not None and self.classes.unseen()

    def logits(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the logits over all batches and processes."""
        return self._logits.moments()

    def total(self) -> tuple[FeatureSums, float]:
        """Sums over all batches and processes, and degrees between the two halves."""
        first, second = self._half.over_processes(), self._other.over_processes()
        angle = math.inf
        if first.count > 0 and second.count > 0:
            heads = self.predictor.cls_score.num_heads
            angle = float(angle_between(first.features, second.features, heads).max())
        return first + second, angle


def check_stopping(max_batches: int, tolerance: float) -> None:
    """Raises a ValueError if :func:`estimate_feature_mean` would not take one of them."""
    if max_batches < 2:
        raise ValueError(f"max_batches={max_batches} must be at least 2, one for each half.")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance} must not be negative (degrees).")


@torch.no_grad()
def estimate_feature_mean(
    model: nn.Module,
    loader: Iterable[list[dict]],
    *,
    max_batches: int = MAX_BATCHES,
    tolerance: float = 2.0,
    min_batches: int = 20,
    class_means: bool = False,
) -> MeanEstimate:
    """Sets the running means of a trained model from training batches, and its logits' statistics.

    The regions are those that training samples: the proposals of the region proposal network,
    matched with the ground truth; those of a cascade are matched anew in every stage. The mean is
    over their foreground, the statistics of the logits are over all of them. Nothing else of the
    model changes. Over several processes, each with batches of its own, all get those over all.

    Args:
        model: with TDE predictors and trained weights, such as a softmax detector's under
            ``MODEL.TDE.NORM: "none"``, perhaps wrapped for several processes. It may be in the
            middle of its training: the mode of each module is restored.
        loader: training batches with ground truth; every process needs as many.
        max_batches: most batches a process uses, >= 2.
        tolerance: stop when even and odd batches' means are so near, in degrees; 0 uses all.
        min_batches: do not stop before so many.
        class_means: the mean of each class, too; then do not stop before each class was seen that
            the model's statistics know of, without any not before ``max_batches``.

    Returns:
        MeanEstimate: the means, which the model now has, and how sure they are.

    Raises:
        ValueError: if the model has no TDE predictor, an argument is out of its range, or no batch
            had a foreground region.
    """
    check_stopping(max_batches, tolerance)
    if isinstance(model, DistributedDataParallel):
        model = model.module
    halves = [_Halves(predictor, class_means) for predictor in tde_predictors(model)]
    progress, note, needed = Progress("estimate", max_batches), "", max_batches
    count = 0
    with regions_of_training(model, [(one.predictor, one.losses) for one in halves]):
        for batch in itertools.islice(loader, max_batches):
            model(batch)
            count += 1
            for one in halves:
                one.next_batch()
            progress.step(count, needed=needed, note=note)
            if count % _PERIOD or count == max_batches:
                continue
            angle = max(angle for _, angle in (one.total() for one in halves))
            needed = _needed(count, max_batches, angle, tolerance)
            note = f"halves {angle:.2f} degrees apart"
            if count >= min_batches and angle <= tolerance:
                waiting = [one.waits() for one in halves]  # of all, as every process asks
                if not any(waiting):
                    break
                needed, note = max_batches, "waiting for the rarest classes"
    sums, angles = zip(*(one.total() for one in halves))
    angle = max(angles)
    num_foreground = tuple(int(one.count) for one in sums)
    if not all(num_foreground):
        raise ValueError(
            f"{count} batches had {num_foreground} foreground regions for the box predictors: a "
            "mean needs some in each. Check the annotations, and that the weights are trained."
        )
    for one, total in zip(halves, sums):
        one.predictor.feature_mean.mean.copy_(total.features / total.count)
        one.predictor.statistics.set_logits(*one.logits())
        if one.classes is not None:
            one.predictor.statistics.set_class_means(*one.classes.means())
    return MeanEstimate(
        means=tuple(one.predictor.feature_mean.mean.clone() for one in halves),
        angle=angle,
        converged=count >= min_batches and angle <= tolerance,
        num_batches=count,
        num_foreground=num_foreground,
        num_left_out=tuple(int(one.left_out) for one in sums),
        num_without_mean=tuple(
            int((one.classes.counts() == 0).sum()) for one in halves if one.classes is not None
        ),
    )


def _needed(count: int, most: int, angle: float, tolerance: float) -> int:
    """Batches that are expected to be enough: the angle falls with the square root of them."""
    if tolerance <= 0 or not math.isfinite(angle):
        return most
    return min(most, math.ceil(count * max(1.0, (angle / tolerance) ** 2)))
