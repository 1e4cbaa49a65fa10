"""What is in a generated set of shapes: which classes, which objects in which image.

Why it is so: :mod:`lvis_tde.data.synthetic`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .records import (
    SPLITS,
    annotation_record,
    apportion,
    federate,
    image_record,
    write_annotations,
)
from .shape_rendering import BASE_HUES, SHAPES, VARIANTS, Appearance, draw_scene

__all__ = ["MAX_CLASSES", "VERSION", "write_set"]

# Raise it with every change of what is generated: sets of another version are not reused.
VERSION = 2
_MAX_FAMILIES = len(SHAPES) * len(BASE_HUES)
MAX_CLASSES = _MAX_FAMILIES * len(VARIANTS)


def _choose_classes(rng: np.random.Generator, count: int) -> list[Appearance]:
    """Appearances by rank of frequency: one of each family first, then others of the families."""
    families = [(shape, hue) for shape in SHAPES for hue in BASE_HUES]
    # A third of the classes lead a family, as long as that leaves members enough for the rest.
    num_families = min(_MAX_FAMILIES, -(-count // 3))
    heads, others = [], []
    for index in rng.permutation(len(families))[:num_families]:
        members = [Appearance(*families[int(index)], variant) for variant in VARIANTS]
        heads.append(members.pop(rng.integers(len(members))))
        others += members
    return heads + [others[i] for i in rng.permutation(len(others))[: count - num_families]]


def _deal(rng: np.random.Generator, weights: np.ndarray, num_images: int, low: int, high: int):
    """Class ranks of the objects of each image; how often each rank occurs is exact, not drawn."""
    sizes = rng.integers(low, high + 1, size=num_images)
    counts = apportion(weights, int(sizes.sum()))
    ranks = rng.permutation(np.repeat(np.arange(len(weights)), counts))
    return np.split(ranks, np.cumsum(sizes)[:-1])


def write_set(folder: Path, parameters: dict[str, Any]) -> None:
    """Draw all images of a set and write its files.

    Args:
        folder: where; made here.
        parameters: the arguments of :func:`~lvis_tde.data.synthetic.make_synthetic_lvis`, checked.
    """
    seed, low_high = parameters["seed"], parameters["objects_per_image"]
    side = parameters["image_size"]
    looks = _choose_classes(np.random.default_rng([seed, len(SPLITS)]), parameters["num_classes"])
    # Ids follow the alphabet, as in LVIS, so that they tell nothing about frequency.
    names = sorted(look.name for look in looks)
    category_ids = np.array([names.index(look.name) + 1 for look in looks])
    zipf = (1 + np.arange(len(looks)) + parameters["zipf_shift"]) ** -parameters["zipf_exponent"]

    contents, first_image = {}, 1
    for index, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, index])
        weights = zipf if split == "train" else np.ones(len(looks))
        scenes = _deal(rng, weights, parameters[f"num_{split}"], *low_high)
        (folder / split).mkdir(parents=True)
        images = []
        annotations: list[dict[str, Any]] = []
        for offset, ranks in enumerate(scenes):
            image_id = first_image + offset
            scene = draw_scene([seed, index, offset], [looks[r] for r in ranks], side)
            # Full chroma resolution: hue is what tells some classes apart.
            Image.fromarray(scene.image).save(
                folder / split / f"{image_id:012d}.jpg", quality=92, subsampling=0
            )
            image, labels = federate(rng, category_ids[ranks], parameters)
            images.append(image_record(image_id, split, (side, side), **image))
            for position in labels:
                category_id = int(category_ids[ranks[position]])
                record = annotation_record(scene.polygons[position], image_id, category_id)
                annotations.append({"id": len(annotations) + 1, **record})
        contents[split] = images, annotations
        first_image += len(images)

    definitions = [f"a {name.replace('_', ' ')}, drawn by a random generator" for name in names]
    write_annotations(
        folder,
        list(zip(names, definitions)),
        contents,
        title="Synthetic long-tailed set",
        version=f"{VERSION}",
        parameters=parameters,
    )
