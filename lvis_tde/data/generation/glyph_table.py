"""The vocabulary of the glyph sets, and how often LVIS has its classes.

``glyphs.csv`` names 1,232 glyphs that may be classes and 71 that may not (arrows, colored dots and
marks: the family ``distractor``). Names and families are those of Unicode's list of emoji up to
version 14; of glyphs that look the same up to a mirror image or a turn by 30 degrees (hands to the
left and to the right, phases of the moon, clock faces) one is kept at most. The names are in the
file because those in Python's ``unicodedata`` depend on Python's version.

``lvis_v1_image_counts.txt`` has the number of training images of each of the 1,203 classes of LVIS
v1, most frequent first (Gupta, Dollar, Girshick, CVPR 2019).
"""

from __future__ import annotations

import csv
from importlib import resources
from typing import NamedTuple

import numpy as np

__all__ = ["DISTRACTOR", "SCENES", "THINGS", "Glyph", "lvis_image_counts", "read_glyphs"]

DISTRACTOR = "distractor"
# Where the members of a family are at home: what is in one scene occurs together.
SCENES: dict[str, tuple[str, ...]] = {
    "kitchen": ("asian_food", "dishware", "drink", "prepared_food", "sweets"),
    "garden": ("flower", "fruit", "insect", "plant", "vegetable"),
    "meadow": ("bird", "mammal", "reptile"),
    "shore": ("boat", "sea_animal", "weather"),
    "street": ("aircraft", "building", "place", "traffic_sign", "vehicle", "warning_sign"),
    "home": ("clothing", "household", "keepsake", "time"),
    "office": ("book", "camera", "computer", "mail", "money", "office", "writing"),
    "workshop": ("craft", "landscape", "science", "tool"),
    "playground": ("festival", "flag", "game", "instrument", "sound", "sport"),
    "crowd": (
        "animal_face",
        "body_part",
        "emotion",
        "face_affection",
        "face_concerned",
        "face_costume",
        "face_negative",
        "face_neutral",
        "face_sleepy",
        "face_smiling",
        "face_tongue",
        "face_unwell",
        "hand_fingers_closed",
        "hand_fingers_open",
        "hand_fingers_partial",
        "hand_single_finger",
        "hands",
        "heart",
        "person",
        "person_activity",
        "person_fantasy",
        "person_gesture",
        "person_role",
        "person_sport",
        "person_symbol",
    ),
    "screen": ("letter_button", "player_button", "religion", "symbol", "zodiac"),
}
# Families of things that anybody names; the last two scenes, faces and signs, are for sets that
# need more classes than these have.
THINGS = tuple(
    family for scene, families in SCENES.items() for family in families
    if scene not in ("crowd", "screen")
)  # fmt: skip


class Glyph(NamedTuple):
    """A glyph that may be drawn: its code point, its name in LVIS's style and its family."""

    codepoint: int
    name: str
    family: str


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def read_glyphs() -> list[Glyph]:
    """All glyphs, distractors included, in the order of the file."""
    rows = csv.DictReader(_text("glyphs.csv").splitlines())
    return [Glyph(int(row["codepoint"], 16), row["name"], row["family"]) for row in rows]


def lvis_image_counts(num_classes: int, total: int) -> np.ndarray:
    """Training images per class like those of LVIS v1, in a set of fewer images.

    Evenly spaced quantiles of LVIS's counts, so that the shares of rare, common and frequent
    classes are LVIS's own. Counts up to 100, LVIS's bound of frequent classes, stay as they are;
    above it ``n`` becomes ``100 * (n / 100) ** p``, with the largest ``p <= 1`` that keeps the sum
    below ``total``. Where even ``p = 0`` is too much, the counts are bent at 10 instead, or at 1.

    Args:
        num_classes: number of classes.
        total: largest sum, at least ``num_classes``: the number of pairs of an image and a class
            in it.

    Returns:
        (num_classes,) int64, decreasing, at least 1 each.

    Raises:
        ValueError: if ``total`` is below ``num_classes``.
    """
    if total < num_classes:
        raise ValueError(
            f"{total} pairs of image and class are too few for {num_classes} classes: ask for more "
            "images or fewer classes"
        )
    lvis = [int(word) for word in _text("lvis_v1_image_counts.txt").split()]
    quantiles = [lvis[(2 * i + 1) * len(lvis) // (2 * num_classes)] for i in range(num_classes)]
    for bend in (100, 10, 1):
        # Plain Python numbers: NumPy's powers differ in the last digit from CPU to CPU.
        for percent in range(100, -1, -1):
            counts = [n if n <= bend else round(bend * (n / bend) ** (percent / 100))
                      for n in quantiles]  # fmt: skip
            if sum(counts) <= total:
                return np.array(counts, dtype=np.int64)
    raise AssertionError(total)
