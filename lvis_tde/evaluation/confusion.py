"""What a detector takes the objects of rare classes for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as mask_utils

from .detections import Detections
from .ground_truth import GroundTruth, to_rle
from .image_sizes import check_sizes
from .selection import check, detection_rles, within_limits

_MIN_IOU = 0.5
OUTCOMES = ("itself", "another rare class", "a common class", "a frequent class", "nothing")
RANKS = ("among the first n of its class", "later in its class", "not as its class")


@dataclass
class Confusions:
    """Outcomes of the objects of rare classes.

    Attributes:
        outcomes: how many objects had each of ``OUTCOMES``.
        pairs: (name of the class, name of what it was taken for) to how many objects, other
            classes only. A name that two classes share has the id behind it.
        frequencies: name of a class in ``pairs`` to its frequency.
        ranks: how many objects had each of ``RANKS``: where the best detection of their own class
            that is on them stands among all detections of that class, of which n is the number of
            objects. AP is made of this alone: whether another class scores higher on the object
            plays no part in it.
    """

    outcomes: Counter = field(default_factory=Counter)
    pairs: Counter = field(default_factory=Counter)
    frequencies: dict[str, str] = field(default_factory=dict)
    ranks: Counter = field(default_factory=Counter)


def rare_confusions(truth: GroundTruth, detections: Detections, max_dets: int = 300) -> Confusions:
    """Look up the highest-scoring detection on each object of a rare class.

    A detection is on an object if the IoU of their boxes is at least 0.5. All categories take
    part, also those that the federated rule leaves out of AP: the object is known to be of another
    class. Ranks within a class are by that rule.

    Args:
        truth: ground truth.
        detections: detections.
        max_dets: most detections per image, -1 for no limit.

    Returns:
        Counts over all objects of rare classes.

    Raises:
        ValueError: see :func:`lvis_tde.evaluation.evaluate_lvis`.
    """
    out = Confusions()
    frequency = np.array([c["frequency"] for c in truth.categories])
    names = [c.get("name", str(c["id"])) for c in truth.categories]
    often = Counter(names)
    # Two classes of one name are two, whose ids tell them apart.
    names = [
        name if often[name] == 1 else f"{name} ({c['id']})"
        for name, c in zip(names, truth.categories)
    ]
    rare = np.flatnonzero((frequency[truth.labels] == "r") & ~truth.ignore)
    images, labels = check(truth, detections)
    keep = within_limits(images, labels, detections.scores, max_dets, None)
    wanted = np.zeros(len(truth.image_ids), dtype=np.bool_)
    wanted[truth.images[rare]] = True
    index = np.flatnonzero(keep & wanted[images])
    index = index[np.lexsort((-detections.scores[index], images[index]))]
    boxes, objects = _boxes(truth, detections, index, images), _objects(truth, rare)
    out.ranks = _ranks(truth, detections, rare, objects, np.flatnonzero(keep), images, labels)
    kinds = {"r": OUTCOMES[1], "c": OUTCOMES[2], "f": OUTCOMES[3]}
    begins = np.searchsorted(images[index], truth.images[rare])
    ends = np.searchsorted(images[index], truth.images[rare], side="right")
    for i, box, begin, end in zip(rare.tolist(), objects, begins.tolist(), ends.tolist()):
        iou = np.zeros((0, 1))
        if end > begin:
            iou = mask_utils.iou(boxes[begin:end], box[None], [0])
        hits = np.flatnonzero(iou[:, 0] >= _MIN_IOU)
        if not len(hits):
            out.outcomes[OUTCOMES[4]] += 1
            continue
        predicted, label = labels[index[begin + hits[0]]], truth.labels[i]
        if predicted == label:
            out.outcomes[OUTCOMES[0]] += 1
            continue
        out.outcomes[kinds[frequency[predicted]]] += 1
        out.pairs[names[label], names[predicted]] += 1
        out.frequencies[names[predicted]] = str(frequency[predicted])
        out.frequencies[names[label]] = "r"
    return out


def _boxes(
    truth: GroundTruth, detections: Detections, index: np.ndarray, images: np.ndarray
) -> np.ndarray:
    """(K, 4) of some detections; those of their masks where they have none."""
    boxes = detections.boxes[index].astype(np.float64)
    bare = np.flatnonzero(~detections.has_box[index])
    if len(bare):
        rles = detection_rles(detections, index[bare], truth, images[index[bare]])
        boxes[bare] = mask_utils.toBbox(rles)
    return boxes


def _objects(truth: GroundTruth, index: np.ndarray) -> np.ndarray:
    """(K, 4) boxes of some objects; those of their masks where they have none."""
    boxes = [truth.boxes[i] for i in index.tolist()]
    bare = [(n, i) for n, i in enumerate(index.tolist()) if boxes[n] is None]
    check_sizes(truth, np.array([i for _, i in bare], dtype=np.int64), truth.images[:0])
    for n, i in bare:
        height, width = truth.image_sizes[truth.images[i]].tolist()
        owner = f"annotation {truth.annotation_ids[i]!r}"
        boxes[n] = mask_utils.toBbox(to_rle(truth.segmentations[i], height, width, owner))
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _ranks(
    truth: GroundTruth,
    detections: Detections,
    rare: np.ndarray,
    boxes_of_rare: np.ndarray,
    index: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
) -> Counter:
    """The ``ranks`` of :class:`Confusions`.

    Args:
        truth, detections: all of them.
        rare: objects of rare classes.
        boxes_of_rare: their boxes.
        index: detections within the limits.
        images, labels: of all detections.
    """
    out: Counter = Counter()
    objects = np.bincount(truth.labels[rare], minlength=len(truth.category_ids))
    index = index[objects[labels[index]] > 0]
    index = index[truth.judged(images[index], labels[index])]
    index = index[np.lexsort((-detections.scores[index], labels[index]))]
    rank = np.arange(len(index)) - np.searchsorted(labels[index], labels[index])
    cells = labels[index] * len(truth.image_ids) + images[index]
    order = np.argsort(cells, kind="stable")
    cells, rank = cells[order], rank[order]
    boxes = _boxes(truth, detections, index[order], images)
    for i, box in zip(rare.tolist(), boxes_of_rare):
        cell = truth.labels[i] * len(truth.image_ids) + truth.images[i]
        begin, end = np.searchsorted(cells, (cell, cell + 1))
        hits = np.zeros(0, dtype=np.int64)
        if end > begin:
            iou = mask_utils.iou(boxes[begin:end], box[None], [0])[:, 0]
            hits = np.flatnonzero(iou >= _MIN_IOU)
        if not len(hits):
            out[RANKS[2]] += 1
        else:
            # In a cell ranks ascend.
            early = rank[begin + hits[0]] < objects[truth.labels[i]]
            out[RANKS[0] if early else RANKS[1]] += 1
    return out
