"""Greedy assignment of detections to ground truths, all cells of a data set at once.

A cell is one image and one category. ``lvis`` assigns within a cell: detections by descending
score, each to the free ground truth of highest IoU at or above the threshold; one that counts
comes before one to be ignored, and of equal IoUs the last. Only pairs with IoU >= 0.5 can ever
match, so only those are kept. The n-th such detections of all cells are independent of each other
and are assigned together.

Names: P pairs, T = 10 IoU thresholds, A = 4 areas, G ground truths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .result import IOU_THRESHOLDS

# Bounds the (pairs, T, A) arrays of one step.
_PAIRS = 1 << 15


@dataclass
class Pairs:
    """Pairs of one cell each with IoU >= 0.5.

    Attributes:
        detection: (P,) int64, ascending; detections are numbered by cell, then by descending
            score.
        truth: (P,) int64, ascending within a detection.
        iou: (P,) float64.
    """

    detection: np.ndarray
    truth: np.ndarray
    iou: np.ndarray


def match(
    pairs: Pairs, cell: np.ndarray, ignore: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign greedily.

    Args:
        pairs: candidates.
        cell: (P,) cell of each pair.
        ignore: (G, A) bool, ground truths that an area does not count.

    Returns:
        ``candidates`` (K,) the detections in any pair, ascending; ``matched`` (K, T, A) bool;
        ``ignored`` (K, T, A) bool, matched to a ground truth that does not count.
    """
    candidates, first, of_pair = np.unique(pairs.detection, return_index=True, return_inverse=True)
    shape = (len(candidates), len(IOU_THRESHOLDS), ignore.shape[1])
    matched, ignored = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    taken = np.zeros((len(ignore), *shape[1:]), dtype=np.bool_)

    # A rank in place of the IoU decides ties exactly: the later of equals is the higher.
    by_iou = np.lexsort((pairs.truth, pairs.iou))
    rank = np.empty(len(by_iou), dtype=np.int64)
    rank[by_iou] = np.arange(len(by_iou))

    # How many candidates of the same cell come before: the round in which this one chooses.
    cell_of_candidate = cell[first]
    starts = np.flatnonzero(np.diff(cell_of_candidate, prepend=-1))
    sizes = np.diff(starts, append=len(candidates))
    turn = np.arange(len(candidates)) - np.repeat(starts, sizes)
    order = np.argsort(turn[of_pair], kind="stable")
    rounds = np.concatenate([[0], np.cumsum(np.bincount(turn[of_pair]))]) if len(order) else [0]
    for begin, end in zip(rounds[:-1], rounds[1:]):
        for some in _split(order[begin:end], of_pair):
            _assign(some, pairs, of_pair, rank, by_iou, ignore, taken, matched, ignored)
    return candidates, matched, ignored


def _split(indices: np.ndarray, owner: np.ndarray):
    """Parts of about ``_PAIRS`` that do not tear a detection's pairs apart."""
    while len(indices):
        stop = np.searchsorted(
            owner[indices], owner[indices[min(_PAIRS, len(indices)) - 1]], "right"
        )
        yield indices[:stop]
        indices = indices[stop:]


def _assign(some, pairs, of_pair, rank, by_iou, ignore, taken, matched, ignored) -> None:
    truth, candidate = pairs.truth[some], of_pair[some]
    free = (pairs.iou[some, None] >= IOU_THRESHOLDS)[:, :, None] & ~taken[truth]
    preference = rank[some, None] + np.where(ignore[truth], 0, len(rank))
    keys = np.where(free, preference[:, None, :], -1)
    begins = np.flatnonzero(np.diff(candidate, prepend=-1))
    best = np.maximum.reduceat(keys, begins, axis=0)
    row, threshold, area = np.nonzero(best >= 0)
    chosen = pairs.truth[by_iou[best[row, threshold, area] % len(rank)]]
    owner = candidate[begins][row]
    taken[chosen, threshold, area] = True
    matched[owner, threshold, area] = True
    ignored[owner, threshold, area] = ignore[chosen, area]
