"""What batches add up to, over all processes: features of the foreground, of classes; logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.utils import comm
from torch import Tensor, distributed

__all__ = ["ClassSums", "FeatureSums", "LogitSums"]


@dataclass
class FeatureSums:
    """What one half of the batches adds up to for one predictor, on its device.

    Attributes:
        features: (D,) float64 sum over the foreground regions with finite features.
        count: () float64, these regions.
        left_out: () float64, the other foreground regions.
    """

    features: Tensor
    count: Tensor
    left_out: Tensor

    @classmethod
    def zeros_like(cls, mean: Tensor) -> FeatureSums:
        zeros = torch.zeros_like(mean, dtype=torch.float64)
        return cls(zeros, zeros.new_zeros(()), zeros.new_zeros(()))

    def add(self, features: Tensor, foreground: Tensor) -> None:
        usable = foreground & torch.isfinite(features).all(dim=1)
        self.features += features[usable].double().sum(0)
        self.count += usable.sum()
        self.left_out += (foreground & ~usable).sum()

    def __add__(self, other: FeatureSums) -> FeatureSums:
        return FeatureSums(
            self.features + other.features,
            self.count + other.count,
            self.left_out + other.left_out,
        )

    def over_processes(self) -> FeatureSums:
        total = FeatureSums(self.features.clone(), self.count.clone(), self.left_out.clone())
        if comm.get_world_size() > 1:
            for one in (total.features, total.count, total.left_out):
                distributed.all_reduce(one)
        return total


class LogitSums:
    """Logits of the foreground classes over all training regions, also those of background.

    These are the regions over which the authors of LogN keep their running statistics.
    """

    def __init__(self, predictor):
        like = predictor.statistics.logit_mean
        self._sums = torch.zeros(2, len(like), dtype=torch.float64, device=like.device)
        self._count = self._sums.new_zeros(())

    def add(self, logits: Tensor) -> None:
        """Adds (R, C + 1) or (R, C) logits; rows that are not finite are left out."""
        rows = torch.isfinite(logits).all(dim=1)
        logits = logits[rows, : self._sums.shape[1]].double()  # without the background
        self._sums[0] += logits.sum(0)
        self._sums[1] += logits.square().sum(0)
        self._count += len(logits)

    def moments(self) -> tuple[Tensor, Tensor]:
        sums, count = self._sums.clone(), self._count.clone()
        if comm.get_world_size() > 1:
            for one in (sums, count):
                distributed.all_reduce(one)
        mean, square = sums / count
        return mean, (square - mean.square()).clamp(min=0).sqrt()


class ClassSums:
    """Features of each class, and of the background, over its training regions.

    Those that are not finite are left out.
    """

    def __init__(self, predictor):
        self._known = predictor.statistics
        like = self._known.class_means
        self._sums = like.new_zeros((len(like) + 1, like.shape[1]), dtype=torch.float64)
        self._counts = self._sums.new_zeros(len(self._sums))
        self._squares = self._sums.new_zeros(len(self._sums))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Adds (R, D) features with their (R,) labels; C is the background, others do not count."""
        rows = (labels >= 0) & (labels < len(self._counts)) & torch.isfinite(features).all(dim=1)
        features, labels = features[rows].double(), labels[rows]
        self._sums.index_add_(0, labels, features)
        self._counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        self._squares.index_add_(0, labels, features.square().sum(1))

    def counts(self) -> Tensor:
        """(C,) regions of each class, over all processes."""
        return self._over_processes(self._counts)[:-1]

    def unseen(self) -> bool:
        """Whether a class that training images have has no region yet, in any process.

        True if nothing is known of the images.
        """
        known = self._known
        return not known.num_images > 0 or bool(
            ((self.counts() == 0) & (known.instances > 0)).any()
        )

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """(C, D) of the classes and (D,) of the background, over all processes; zeros for none.

        And the cosine of a region of a class to its mean, both from the background's: the length of
        the mean over the root of the mean square of the regions', on average over the regions.
        """
        counts = self._over_processes(self._counts)
        each = counts.clamp(min=1)
        means = self._over_processes(self._sums) / each[:, None]
        squares = self._over_processes(self._squares) / each
        means, center = means[:-1], means[-1]
        regions = counts[:-1]
        # Without a background the step is from the mean of all classes.
        start = center if counts[-1] > 0 else means.sum(0) / (regions > 0).sum().clamp(min=1)
        # E |x - c|^2, from E x and E |x|^2.
        squares = squares[:-1] - 2 * means @ start + start.square().sum()
        cosine = (means - start).norm(dim=1) / squares.clamp(min=1e-12).sqrt()
        return means, center, (cosine.clamp(max=1) * regions).sum() / regions.sum().clamp(min=1)

    def _over_processes(self, sums: Tensor) -> Tensor:
        total = sums.clone()
        if comm.get_world_size() > 1:
            distributed.all_reduce(total)
        return total
