"""Which image shows best what a change of settings does: chosen by a rule, never by hand.

Both sides, before the change and after, are judged on what a picture shows: detections of at least
:data:`SCORE` from the highest score down, without those that overlap a shown one by an IoU of 0.5
or more, so that each place has one name. :data:`RULE` says the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

__all__ = ["RULE", "SCORE", "Choice", "Names", "Scene", "choose_scene", "is_right"]

SCORE = 0.2
RULE = (
    f"Both sides show their detections of at least {SCORE:g}, of those that overlap (IoU 0.5) the "
    "one with the highest score. Candidates are the objects of rare classes in all val images that "
    "a shown detection names rightly (IoU 0.5) after and that no detection of at least "
    f"{SCORE:g}, shown or not, names rightly before. Chosen is the one in whose image most names "
    "are right, less those that are wrong, on both sides together; of equals the one with the "
    "higher score after, then the lower image id."
)


@dataclass(frozen=True)
class Names:
    """Detections of one side in one image, from the highest score down.

    Attributes:
        boxes: (N, 4) x0, y0, x1, y1.
        classes: (N,) integer.
        scores: (N,), descending, at least :data:`SCORE`.
        rows: (N,) where each was in what they were made from.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray) -> Names:
        """Those with a score of at least :data:`SCORE`.

        Args:
            boxes: (D, 4) x0, y0, x1, y1.
            classes: (D,) integer.
            scores: (D,).
        """
        rows = np.argsort(-scores, kind="stable")
        rows = rows[scores[rows] >= SCORE]
        return cls(boxes[rows], classes[rows], scores[rows], rows)

    def shown(self) -> Names:
        """Without those that overlap one with a higher score that is shown."""
        overlap = _overlap(self.boxes, self.boxes)
        kept: list[int] = []
        for i in range(len(self.scores)):
            if not overlap[i, kept].any():
                kept.append(i)
        return Names(self.boxes[kept], self.classes[kept], self.scores[kept], self.rows[kept])


@dataclass(frozen=True)
class Scene:
    """One image: its objects, and what is detected before and after.

    Attributes:
        image_id: of the image.
        boxes: (G, 4) x0, y0, x1, y1 of the objects.
        classes: (G,) integer.
        before: what is detected as trained, say.
        after: what is detected with other settings.
    """

    image_id: int
    boxes: np.ndarray
    classes: np.ndarray
    before: Names
    after: Names

    def found(self, names: Names) -> np.ndarray:
        """(G,) bool, whether one of the detections has an object's class and place."""
        return np.asarray(is_right(self, names).any(axis=1))

    def num_changed(self) -> int:
        """Number of objects that only one side shows with their names."""
        return int((self.found(self.before.shown()) ^ self.found(self.after.shown())).sum())


@dataclass(frozen=True)
class Choice:
    """What the rule chose, and how typical it is.

    Attributes:
        scene: the image; None if there is no candidate.
        subject: which of its objects it was chosen for.
        num_objects: objects of the classes in question in all images.
        only_after: those of them that are found after alone: the candidates.
        only_before: those that are found before alone, by the same rule with the sides changed.
    """

    scene: Scene | None
    subject: int
    num_objects: int
    only_after: int
    only_before: int


def is_right(scene: Scene, names: Names) -> np.ndarray:
    """(G, N) bool, whether a detection has an object's class and overlaps it by 0.5 or more."""
    same = scene.classes[:, None] == names.classes[None]
    return same & _overlap(scene.boxes, names.boxes)


def choose_scene(scenes: Sequence[Scene], classes: Collection[int]) -> Choice:
    """Follow :data:`RULE`.

    Args:
        scenes: all images.
        classes: those that are rare, or other ones in their place.

    Returns:
        The choice, without a scene if no object is a candidate.
    """
    ranked, counts = [], [0, 0, 0]
    for index, scene in enumerate(scenes):
        asked = np.isin(scene.classes, list(classes))
        shown = before, after = scene.before.shown(), scene.after.shown()
        only_after = asked & scene.found(after) & ~scene.found(scene.before)
        only_before = asked & scene.found(before) & ~scene.found(scene.after)
        for i, some in enumerate((asked, only_after, only_before)):
            counts[i] += int(some.sum())
        for subject in np.flatnonzero(only_after).tolist():
            right = [is_right(scene, side).any(axis=0) for side in shown]
            clear = sum(int(r.sum()) - int((~r).sum()) for r in right)
            score = after.scores[is_right(scene, after)[subject]].max()
            ranked.append((-clear, -score, scene.image_id, subject, index))
    if not ranked:
        return Choice(None, -1, *counts)
    *_, subject, index = min(ranked)
    return Choice(scenes[index], subject, *counts)


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    boxes = [Boxes(torch.as_tensor(b, dtype=torch.float32).reshape(-1, 4)) for b in (first, second)]
    return pairwise_iou(*boxes).numpy() >= 0.5
