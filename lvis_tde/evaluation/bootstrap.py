"""Intervals for LVIS metrics: images are drawn anew, with replacement, and matches are kept.

Efron's bootstrap by image (1979) with percentile intervals, which Hesterberg (The American
Statistician, 2015) widens for small samples: plain percentiles of few images are too narrow, and
the images that show a rare class are few. Detections are matched within their
image, so an image that is drawn twice is one whose detections and ground truths weigh two: only
precision and recall are computed again, by the arithmetic of
:func:`~lvis_tde.evaluation.accumulate.accumulate`, for the area "all".

Names: B resamples, I images, D detections that count, H hits: detections that match something at
one of T = 10 IoU thresholds, C categories.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from .accumulate import running_sums, sums_are_exact, thresholds_reached
from .native import Matches
from .result import FREQUENCIES, IOU_THRESHOLDS
from .seeds import student

__all__ = [
    "BOOTSTRAPPED",
    "Resampler",
    "images_shown",
    "interval",
    "intervals",
    "report_resamples",
    "resampled",
]

BOOTSTRAPPED = ("AP", "AP50", "AP75", "APr", "APc", "APf")

# Numbers in one array of a block of resamples: 8 MB, with which caches do best.
_BLOCK = 1 << 20


def report_resamples(num_images: int) -> int:
    """How many resamples a report has time for: 1000 up to 2000 images, 200 from 10,000 on.

    Args:
        num_images: of the set. LVIS's val has 19,809, whose 200 resamples take half a minute a
            task.
    """
    return max(200, min(1000, 2_000_000 // max(1, num_images)))


class Resampler:
    """Average precision of each category under any weights of the images."""

    def __init__(self, matches: Matches):
        """
        Args:
            matches: of one set of detections.
        """
        self.num_images, self.num_categories = matches.num_images, matches.num_categories
        counts = ~matches.ignore[:, 0]
        self._truth_images, labels = matches.truth_images[counts], matches.truth_labels[counts]
        # Ground truths are sorted by category: of each the place of its first.
        self._with_truth, self._truth_start = np.unique(labels, return_index=True)

        order = np.lexsort((-matches.scores, matches.labels))
        position = np.empty(len(order), dtype=np.int64)
        position[order] = np.arange(len(order))
        starts = np.searchsorted(matches.labels, np.arange(self.num_categories))

        row, threshold = np.nonzero(matches.matched[:, :, 0])
        at = position[matches.candidates[row]]
        label = matches.labels[matches.candidates[row]]
        # By threshold, category and rank.
        by = np.lexsort((at, threshold))
        row, threshold, at, label = row[by], threshold[by], at[by], label[by]
        self._true = ~matches.ignored[row, threshold, 0]
        exempt = matches.exempt[order, 0]
        counted = np.flatnonzero(~exempt)
        self._images = matches.images[order][counted]
        self._ends = np.searchsorted(counted, at + 1)
        self._starts = np.searchsorted(counted, starts[label])
        self._hit_images = matches.images[order][at]
        # Nearly every hit is one of the detections that count as a true or a false positive; these
        # are true positives that would not be false ones, and ignored hits that would.
        self._odd = np.flatnonzero(self._true == exempt[at])
        self._odd_sign = np.where(self._true[self._odd], 1.0, -1.0)
        self._odd_before = np.searchsorted(self._odd, np.arange(len(at) + 1))
        lane = threshold * self.num_categories + label
        self._lanes, self._lane_start = np.unique(lane, return_index=True)
        self._length = np.diff(self._lane_start, append=len(lane))
        # What weights need whose sums are rounded: where categories begin among what counts, hits
        # that would count as false, and the lanes with ignored ones of these.
        self._category_start = np.searchsorted(counted, starts)
        self._beside = self._true & exempt[at]
        cleared = ~self._true & ~exempt[at]
        self._cleared = [
            (hits, self._starts[hits.start], self._ends[hits][cleared[hits]] - 1)
            for hits in map(slice, self._lane_start.tolist(), [*self._lane_start[1:], len(lane)])
            if cleared[hits].any()
        ]
        # Later lanes are lower, so a maximum that runs backwards begins anew in each.
        self._offset = -2.0 * np.repeat(np.arange(len(self._lanes)), self._length)

    @property
    def block(self) -> int:
        """Resamples at once that keep the memory within bounds."""
        each = len(self._images) + len(self._ends) + len(self._truth_images)
        return max(1, _BLOCK // (each + self.num_images + 10 * self.num_categories))

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """
        Args:
            weights: (B, I) float64, >= 0, of the images.

        Returns:
            (B, T, C) float64 in [0, 1]; NaN where there is nothing to be found.
        """
        num = len(weights)
        num_gt = np.zeros((num, self.num_categories))
        if len(self._truth_start):
            of_truth = weights[:, self._truth_images]
            num_gt[:, self._with_truth] = np.add.reduceat(of_truth, self._truth_start, axis=1)
        shape = (num, len(IOU_THRESHOLDS) * self.num_categories)
        precision = np.zeros(shape)
        if len(self._ends):
            precision[:, self._lanes] = self._of_lanes(weights, num_gt)
        absent = np.tile(num_gt == 0, len(IOU_THRESHOLDS))
        precision[absent] = np.nan
        return precision.reshape(num, len(IOU_THRESHOLDS), self.num_categories)

    def _of_lanes(self, weights: np.ndarray, num_gt: np.ndarray) -> np.ndarray:
        exact = sums_are_exact(weights, len(self._images) + len(self._ends))
        of_hit = weights[:, self._hit_images]
        true = running_sums(np.where(self._true, of_hit, 0.0), self._lane_start, exact)
        detected = self._differences(weights, of_hit) if exact else self._anew(weights, of_hit)
        # As in accumulate; what weighs nothing has no precision.
        of_hit *= np.spacing(1)
        detected += of_hit
        curve = true / np.maximum(detected, np.finfo(np.float64).tiny, out=detected)
        curve += self._offset
        curve = np.maximum.accumulate(curve[:, ::-1], axis=1)[:, ::-1] - self._offset
        total = np.repeat(num_gt[:, self._lanes % self.num_categories], self._length, axis=1)
        reached = np.where(true > 0, thresholds_reached(true, total), 0)
        newly = np.diff(reached, axis=1, prepend=0)
        newly[:, self._lane_start] = reached[:, self._lane_start]
        return np.add.reduceat(curve * newly, self._lane_start, axis=1) / 101

    def _differences(self, weights: np.ndarray, of_hit: np.ndarray) -> np.ndarray:
        """True and false positives up to each hit, from weights whose sums are exact."""
        counted = _sums(weights[:, self._images])
        detected = counted[:, self._ends] - counted[:, self._starts]
        if len(self._odd):
            odd = _sums(of_hit[:, self._odd] * self._odd_sign)[:, self._odd_before]
            detected += odd[:, 1:]
            detected -= np.repeat(odd[:, self._lane_start], self._length, axis=1)
        return detected

    def _anew(self, weights: np.ndarray, of_hit: np.ndarray) -> np.ndarray:
        """The same from any weights: a difference would be nothing beside a heavy image."""
        weights = weights[:, self._images]
        before = np.zeros((len(weights), weights.shape[1] + 1))
        before[:, 1:] = running_sums(weights, self._category_start, False)
        detected = np.where(self._ends > self._starts, before[:, self._ends], 0.0)
        for hits, start, cleared in self._cleared:
            ends = self._ends[hits]
            part = weights[:, start : ends[-1]].copy()
            part[:, cleared - start] = 0.0
            detected[:, hits] = _sums(part)[:, ends - start]
        if self._beside.any():
            beside = np.where(self._beside, of_hit, 0.0)
            detected += running_sums(beside, self._lane_start, False)
        return detected


def _sums(values: np.ndarray) -> np.ndarray:
    """(B, N) to (B, N + 1): sums of the first 0 ... N."""
    out = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=out[:, 1:])
    return out


def _draw(weights: np.ndarray, resamples: int, seed: int, block: int) -> Iterator[np.ndarray]:
    """Weights of the images: how often each was drawn, the same for any block, times its own.

    Yields:
        (<= block, I) float64.
    """
    rng, there = np.random.default_rng(seed), np.flatnonzero(weights)
    for start in range(0, resamples, block):
        out = np.zeros((min(block, resamples - start), len(weights)))
        for row in out:
            drawn = rng.integers(0, len(there), len(there)) if len(there) else there
            row[there] = np.bincount(drawn, minlength=len(there))
        yield out * weights


def resampled(
    resamplers: Sequence[Resampler],
    frequencies: Sequence[str],
    resamples: int,
    seed: int,
    image_weights: np.ndarray | None = None,
) -> list[dict[str, np.ndarray]]:
    """Metrics of each resample, the same images for all detectors.

    Args:
        resamplers: of the same images, one a detector.
        frequencies: C letters out of r, c, f.
        resamples: B.
        seed: of the draws.
        image_weights: (I,) of the images; None for 1. One of weight 0 is not drawn.

    Returns:
        For each detector :data:`BOOTSTRAPPED` to (B,) percent and "per_category" to (B, C) AP,
        NaN where a resample shows none of the categories.
    """
    block = min(one.block for one in resamplers)
    parts: list[list[np.ndarray]] = [[] for _ in resamplers]
    if image_weights is None:
        image_weights = np.ones(resamplers[0].num_images)
    for weights in _draw(image_weights, resamples, seed, block):
        for part, one in zip(parts, resamplers):
            precision = one.average_precision(weights)
            # AP, AP50 and AP75 of each category are all that is kept.
            part.append(np.stack([precision.mean(1), precision[:, 0], precision[:, 5]], axis=1))
    return [_metrics(np.concatenate(part), frequencies) for part in parts]


def _metrics(precision: np.ndarray, frequencies: Sequence[str]) -> dict[str, np.ndarray]:
    names = np.array(frequencies)
    out = {name: _mean(precision[:, i]) for i, name in enumerate(("AP", "AP50", "AP75"))}
    for frequency in FREQUENCIES:
        out[f"AP{frequency}"] = _mean(precision[:, 0, names == frequency])
    out["per_category"] = precision[:, 0]
    return {name: values * 100 for name, values in out.items()}


def _mean(values: np.ndarray) -> np.ndarray:
    """Means over the categories that a resample shows, NaN without any."""
    shown = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(shown, values, 0.0).sum(1) / shown.sum(1)


def interval(values: np.ndarray, metric: float, num_images: int) -> tuple[float, float]:
    """The 95 % interval about a metric: what other sets of as many images would have given.

    A resample repeats images and lacks classes, so its AP is another on average, by up to a point
    where classes have few images. That offset is taken off. A higher AP has more of it, so it does
    not cancel in a difference of two.

    Args:
        values: (B,) of the resamples, NaN where undefined.
        metric: of all images, or a difference of two.
        num_images: that show what it is about.

    Returns:
        Low and high; NaN without any value.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    tail = 0.0
    if num_images > 1:
        wide = math.sqrt(num_images / (num_images - 1)) * student(num_images - 1)
        tail = 100 * NormalDist().cdf(-wide)
    offset = values.mean() - metric
    low, high = np.percentile(values, [tail, 100 - tail]) - offset
    return float(low), float(high)


def intervals(
    samples: Mapping[str, np.ndarray],
    metrics: Mapping[str, float],
    shown: Mapping[str, int],
) -> dict[str, tuple[float, float]]:
    """:func:`interval` of each of :data:`BOOTSTRAPPED`; ``shown`` has the numbers of images."""
    return {name: interval(samples[name], metrics[name], shown[name]) for name in BOOTSTRAPPED}


def images_shown(
    matches: Matches, frequencies: Sequence[str], image_weights: np.ndarray | None = None
) -> tuple[dict[str, int], np.ndarray]:
    """How many images show what a metric is about; one of weight 0 is not there.

    Returns:
        For each of :data:`BOOTSTRAPPED`, and (C,) for each category.
    """
    counts = ~matches.ignore[:, 0]
    if image_weights is not None:
        counts &= image_weights[matches.truth_images] > 0
    images, labels = matches.truth_images[counts], matches.truth_labels[counts]
    names = np.array(frequencies)[labels]
    shown = dict.fromkeys(BOOTSTRAPPED, len(np.unique(images)))
    for frequency in FREQUENCIES:
        shown[f"AP{frequency}"] = len(np.unique(images[names == frequency]))
    cells = np.unique(labels * matches.num_images + images) // max(1, matches.num_images)
    return shown, np.bincount(cells, minlength=matches.num_categories)
