"""What a detector takes the objects of rare classes for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as mask_utils

from .detections import Detections
from .ground_truth import GroundTruth
from .selection import check, detection_rles, within_limits

_MIN_IOU = 0.5
OUTCOMES = ("itself", "another rare class", "a common class", "a frequent class", "nothing")


@dataclass
class Confusions:
    """Outcomes of the objects of rare classes.

    Attributes:
        outcomes: how many objects had each of ``OUTCOMES``.
        pairs: (name of the class, name of what it was taken for) to how many objects, other
            classes only.
        frequencies: name of a class in ``pairs`` to its frequency.
    """

    outcomes: Counter = field(default_factory=Counter)
    pairs: Counter = field(default_factory=Counter)
    frequencies: dict[str, str] = field(default_factory=dict)


def rare_confusions(truth: GroundTruth, detections: Detections, max_dets: int = 300) -> Confusions:
    """Look up the highest-scoring detection on each object of a rare class.

    A detection is on an object if the IoU of their boxes is at least 0.5. All categories take
    part, also those that the federated rule leaves out of AP: the object is known to be of another
    class.

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
    rare = np.flatnonzero((frequency[truth.labels] == "r") & ~truth.ignore)
    images, labels = check(truth, detections)
    keep = within_limits(images, labels, detections.scores, max_dets, None)
    wanted = np.zeros(len(truth.image_ids), dtype=np.bool_)
    wanted[truth.images[rare]] = True
    index = np.flatnonzero(keep & wanted[images])
    index = index[np.lexsort((-detections.scores[index], images[index]))]
    boxes = detections.boxes[index].astype(np.float64)
    bare = np.flatnonzero(~detections.has_box[index])
    if len(bare):
        rles = detection_rles(detections, index[bare], truth, images[index[bare]])
        boxes[bare] = mask_utils.toBbox(rles)
    kinds = {"r": OUTCOMES[1], "c": OUTCOMES[2], "f": OUTCOMES[3]}
    begins = np.searchsorted(images[index], truth.images[rare])
    ends = np.searchsorted(images[index], truth.images[rare], side="right")
    for i, begin, end in zip(rare.tolist(), begins.tolist(), ends.tolist()):
        iou = np.zeros((0, 1))
        if end > begin:
            box = np.array([truth.boxes[i]], dtype=np.float64)
            iou = mask_utils.iou(boxes[begin:end], box, [0])
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
