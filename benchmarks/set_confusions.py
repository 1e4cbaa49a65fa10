"""What a detector takes the objects of a set for, by group of frequency and by family."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils

from .set_statistics import families, groups, percent

__all__ = ["OUTCOMES", "confusions", "confusion_shares", "most_confused"]

MIN_IOU = 0.5
# Of the class that an object is taken for: itself, a group, or none.
OUTCOMES = ("right", "r", "c", "f", "nothing")


def confusions(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], min_score: float
) -> list[tuple[Any, Any]]:
    """What every annotated object is taken for.

    A detection belongs to the object that its box overlaps most, if by an IoU of 0.5 or more; an
    object is taken for the class of its detection of highest score. All classes take part, also
    those that the federated rule leaves out of AP: the object is known to be of another class.

    Args:
        truth: content of an annotation file.
        detections: ``image_id, category_id, bbox`` (x, y, width, height) and ``score`` of each.
        min_score: detections of lower scores are left out.

    Returns:
        Category id of each object and of what it is taken for, None where no detection is on it.
    """
    objects, found = defaultdict(list), defaultdict(list)
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    for detection in detections:
        if detection["score"] >= min_score:
            found[detection["image_id"]].append(detection)
    result = []
    for image, here in objects.items():
        some = sorted(found[image], key=lambda d: -d["score"])
        taken: dict[int, Any] = {}
        if some:
            boxes = [np.array([x["bbox"] for x in xs], dtype=np.float64) for xs in (some, here)]
            overlap = mask_utils.iou(*boxes, [0] * len(here))
            for row, (best, iou) in enumerate(zip(overlap.argmax(1).tolist(), overlap.max(1))):
                if iou >= MIN_IOU:
                    taken.setdefault(best, some[row]["category_id"])
        result += [(a["category_id"], taken.get(i)) for i, a in enumerate(here)]
    return result


def confusion_shares(
    truth: Mapping[str, Any], pairs: Sequence[tuple[Any, Any]]
) -> dict[str, dict[str, float | None]]:
    """Shares of outcomes by group of the object's class.

    Args:
        truth: content of the annotation file.
        pairs: as from :func:`confusions`.

    Returns:
        "r", "c" and "f" to the number of ``objects``, each of :data:`OUTCOMES` in percent of them,
        and, of the objects taken for another class, ``family``: percent of the same family, and
        ``family by chance``: what it would be if the other class were drawn from the classes that
        are predicted wrongly, as often as they are. None without families.
    """
    group, family = groups(truth), families(truth)
    wrong = [p for p in pairs if p[1] is not None and p[0] != p[1]]
    predicted = Counter(predicted for _, predicted in wrong)
    table: dict[str, dict[str, float | None]] = {}
    for own in ("r", "c", "f"):
        some = [pair for pair in pairs if group[pair[0]] == own]
        outcomes = Counter(_outcome(pair, group) for pair in some)
        missed = [pair for pair in wrong if group[pair[0]] == own]
        same = sum(family[a] == family[b] for a, b in missed) if family else 0
        chance = sum(
            sum(n for b, n in predicted.items() if b != a and family[b] == family[a])
            / sum(n for b, n in predicted.items() if b != a)
            for a, _ in missed
        ) if family else 0  # fmt: skip
        table[own] = {
            "objects": len(some),
            **{outcome: percent(outcomes[outcome], len(some)) for outcome in OUTCOMES},
            "family": percent(same, len(missed)) if family else None,
            "family by chance": percent(chance, len(missed)) if family else None,
        }
    return table


def _outcome(pair: tuple[Any, Any], group: Mapping[Any, str]) -> str:
    own, predicted = pair
    if predicted is None:
        return "nothing"
    return "right" if predicted == own else group[predicted]


def most_confused(
    truth: Mapping[str, Any], pairs: Sequence[tuple[Any, Any]], number: int = 10
) -> list[tuple[str, str, int]]:
    """Names of a rare class and of what its objects are most often taken for, and how many."""
    names = {c["id"]: c["name"].replace("_", " ") for c in truth["categories"]}
    group = groups(truth)
    wrong = Counter(p for p in pairs if p[1] not in (None, p[0]) and group[p[0]] == "r")
    named = [(names[a], names[b], n) for (a, b), n in wrong.items()]
    return sorted(named, key=lambda row: (-row[2], *row[:2]))[:number]
