"""Names and frequency groups of the classes of a registered data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import lvis_v0_5_categories, lvis_v1_categories

from .frequency import LVIS_BOUNDS, frequency_group

__all__ = ["ClassInfo", "class_info"]


@dataclass(frozen=True)
class ClassInfo:
    """Names of the classes, and "r", "c" or "f" of each where it is known."""

    names: Sequence[str]
    frequency: Sequence[str] | None


def class_info(dataset: str, num_classes: int) -> ClassInfo:
    """Names and frequency groups from a dataset's metadata.

    Args:
        dataset: registered name.
        num_classes: C of the model.

    Returns:
        ClassInfo: without groups where neither the metadata nor Detectron2's LVIS tables know them.

    Raises:
        ValueError: if the metadata has no class names, or not as many as the model has classes.
    """
    metadata = MetadataCatalog.get(dataset)
    names = metadata.get("thing_classes")
    if names is None:
        raise ValueError(
            f"The metadata of {dataset!r} has no class names (thing_classes), so detections cannot "
            "be named. Use a registered dataset in the config, such as lvis_v1_val, or give your "
            "annotation file with --test-data JSON IMAGES; checkpoints of this release know them."
        )
    if len(names) != num_classes:
        raise ValueError(
            f"Dataset {dataset!r} has {len(names)} class names, but the model has {num_classes} "
            "classes: name the dataset that it was trained on."
        )
    frequency = metadata.get("class_frequency")
    if frequency is None:
        counts = metadata.get("class_image_count") or _lvis_counts(names)
        if counts is not None:
            counts = sorted(counts, key=lambda record: record["id"])
            fewest, most = metadata.get("bounds", (LVIS_BOUNDS[0] + 1, LVIS_BOUNDS[1]))
            bounds = fewest - 1, most
            frequency = [frequency_group(record["image_count"], bounds) for record in counts]
    return ClassInfo(names, frequency)


def _lvis_counts(names: Sequence[str]) -> list[dict] | None:
    # Detectron2 0.6 has the groups of LVIS, but no counts and nothing of both in its metadata.
    for module in (lvis_v1_categories, lvis_v0_5_categories):
        records = sorted(module.LVIS_CATEGORIES, key=lambda record: record["id"])
        if [record["synonyms"][0] for record in records] == list(names):
            most = {"r": 10, "c": 100, "f": 101}
            return [{"id": r["id"], "image_count": most[r["frequency"]]} for r in records]
    return None
