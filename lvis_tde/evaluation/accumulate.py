"""Precision and recall from matches, by the arithmetic of ``LVISEval.accumulate``.

Precision is highest where a true positive has just been added, so its envelope needs to be known
at true positives only: at most one per ground truth, however many detections there are.

Names: D detections, K those of them that can match (candidates), C categories, T = 10 thresholds,
A = 4 areas.
"""

from __future__ import annotations

import numpy as np

from .result import RECALL_THRESHOLDS

_AND_NO_MORE = np.append(RECALL_THRESHOLDS, np.inf)


def accumulate(
    labels: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray,
    exempt: np.ndarray,
    candidates: np.ndarray,
    matched: np.ndarray,
    ignored: np.ndarray,
    num_gt: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision at 101 recalls, and recall.

    Args:
        labels: (D,) int64, [0, C), ascending; within a category by image, then by descending
            score.
        scores: (D,) float.
        weights: (D,) float64, >= 0, of the images of the detections. A detection of weight two
            counts as two of one score behind each other.
        exempt: (D, A) bool: does not count as a false positive if it matches nothing.
        candidates: (K,) ascending, from :func:`lvis_tde.evaluation.matching.match`.
        matched: (K, T, A) bool, likewise.
        ignored: (K, T, A) bool, likewise.
        num_gt: (C, A) float64, ground truths to be found, each with its image's weight.

    Returns:
        Precision (T, 101, C, A) and recall (T, C, A), float64; -1 where there is nothing to be
        found.
    """
    num_cats, num_areas = num_gt.shape
    num_thresholds = matched.shape[1]
    exact = sums_are_exact(weights, len(weights))
    order = np.lexsort((-scores, labels))
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    by_position = np.argsort(position[candidates])
    candidates, position = candidates[by_position], position[candidates[by_position]]
    matched, ignored = matched[by_position], ignored[by_position]
    label, weight = labels[candidates], weights[candidates]
    category_start = np.searchsorted(labels, np.arange(num_cats))
    candidate_start = np.searchsorted(label, np.arange(num_cats))

    shape = (num_thresholds, len(RECALL_THRESHOLDS), num_cats, num_areas)
    precision, recall = np.full(shape, -1.0), np.full((num_thresholds, num_cats, num_areas), -1.0)
    for area in range(num_areas):
        present = np.flatnonzero(num_gt[:, area])
        if not len(present):
            continue
        # As if nothing matched; the candidates' matches are taken out below.
        unmatched = np.where(exempt[order, area], 0.0, weights[order])
        base = running_sums(unmatched, category_start, exact)[position]
        would_be_false = unmatched[position]
        for threshold in range(num_thresholds):
            hit = matched[:, threshold, area]
            # What weighs nothing reaches no recall.
            tp = np.flatnonzero(hit & ~ignored[:, threshold, area] & (weight > 0))
            tp_label = label[tp]
            start = np.searchsorted(tp_label, np.arange(num_cats + 1))
            true = running_sums(weight[tp], start[:-1], exact)
            cleared = np.where(hit, would_be_false, 0.0)
            if exact:
                fp = base[tp] - running_sums(cleared, candidate_start, exact)[tp]
            else:
                # A difference of rounded sums is nothing where a heavy image is taken out.
                false = unmatched.copy()
                false[position] -= cleared
                fp = running_sums(false, category_start, exact)[position[tp]]
            # As the official 1e-16 beside weights of one, whatever the weight.
            curve = _envelope(true / (fp + true + np.spacing(1) * weight[tp]), tp_label)
            reached = thresholds_reached(true, num_gt[tp_label, area])
            # Of each category those reached by its true positives, one after the other.
            last = np.zeros(num_cats, dtype=np.int64)
            last[tp_label] = reached
            newly = np.diff(reached, prepend=0)
            first = start[:-1][np.diff(start) > 0]
            newly[first] = reached[first]
            lane = np.zeros((len(present), len(RECALL_THRESHOLDS)))
            lane[np.arange(len(RECALL_THRESHOLDS)) < last[present, None]] = np.repeat(curve, newly)
            found = np.zeros(num_cats)
            some = start[1:] > start[:-1]
            found[some] = true[start[1:][some] - 1]
            # Sums of fractions in another order may be a little more.
            of_all = found[present] / num_gt[present, area]
            recall[threshold, present, area] = np.minimum(of_all, 1.0)
            precision[threshold, :, present, area] = lane
    return precision, recall


def sums_are_exact(weights: np.ndarray, number: int) -> bool:
    """Whether so many weights, or fewer, add up without rounding: whole numbers, not too large.

    Args:
        weights: float64, >= 0.
        number: of terms.
    """
    whole = np.array_equal(np.floor(weights), weights)
    return whole and float(weights.max(initial=0.0)) * number < 2**53


def running_sums(values: np.ndarray, starts: np.ndarray, exact: bool) -> np.ndarray:
    """Running sums that begin anew with each category.

    Args:
        values: (..., N) float64, >= 0, by category.
        starts: (C,) where each category begins, ascending from 0.
        exact: :func:`sums_are_exact`.

    Returns:
        (..., N) float64; what one category weighs never rounds the sums of another.
    """
    ends = np.append(starts[1:], values.shape[-1])
    if exact:
        total = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
        np.cumsum(values, axis=-1, out=total[..., 1:])
        return total[..., 1:] - np.repeat(total[..., starts], ends - starts, axis=-1)
    sums = np.empty_like(values)
    for start, end in zip(starts.tolist(), ends.tolist()):
        np.cumsum(values[..., start:end], axis=-1, out=sums[..., start:end])
    return sums


def thresholds_reached(true: np.ndarray, num_gt: np.ndarray) -> np.ndarray:
    """How many of the 101 recall thresholds are reached.

    Args:
        true: float64, >= 0, weight of the true positives so far.
        num_gt: of the same shape, of what is to be found.

    Returns:
        int64 of the same shape, in [1, 101]. Recall 0 is reached by the first detection, whose
        envelope is that of the first true positive.
    """
    recall = true / np.maximum(num_gt, np.finfo(np.float64).tiny)
    if not np.array_equal(np.floor(true), true):
        # Sums of fractions of one order are not those of another.
        recall *= 1 + 1e-12
    # As searchsorted finds it, in a sixth of the time: the place but for rounding, then exactly.
    reached = (100 * recall).astype(np.int64)
    for _ in range(2):
        reached += _AND_NO_MORE[reached] <= recall
    return reached


def _envelope(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Maximum of each value and those after it within its category.

    Args:
        values: (N,) float64.
        labels: (N,) ascending.

    Returns:
        (N,) float64.
    """
    # Ranks offset by category make one running maximum stop at the borders, without rounding.
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    offset = -labels * (len(order) + 1)
    best = np.maximum.accumulate((rank + offset)[::-1])[::-1] - offset
    return values[order[best]]
