"""A generated long-tailed set in LVIS v1 format, small enough to train on a CPU.

How it was chosen. Every number below stands for a property of LVIS and was fixed before any two
methods were compared on this version of the set; none was tuned on a result.

* **Classes.** 54, in 18 families (6 shapes x 3 hues) of up to four members: plain, with the hue
  shifted by 35 degrees, with dark stripes, with a dark rim. One random member of each family takes
  one of the first 18 ranks of frequency; the other ranks go to random other members. So each tail
  class is a head class with a detail changed, and the confusion of tail with head that LVIS shows
  (its rare classes are mostly finer or unusual kinds of frequent ones) exists here too. The heads
  have all kinds of details, so that none of them betrays the tail. Hue, light, size, outline and
  aspect ratio vary per object. A small network trained on balanced crops names 96 % of the objects
  rightly: what the tail lacks is examples, not distinctness. (In a first version all heads were
  plain. It was replaced because a small classifier of object crops confused tail classes with
  each other rather than with heads; the detectors' results on it played no part.)
* **Train frequencies.** Instance counts follow the Zipf-Mandelbrot law ``(rank + 8) ** -3``. With
  1200 images of 2 to 6 objects this gives 37 / 44 / 19 % rare / common / frequent classes by LVIS's
  rule (1-10, 11-100, more images), near LVIS v0.5's 37 / 37 / 26 %, and a ratio of more than 200
  between the objects of the first and the last class. A pure Zipf law with as many rare classes
  spends more than half of all objects on two classes.
* **Calibration and val.** Classes are uniform, so that a rare class has as many objects to be
  measured on as a frequent one (about 44 in val), and the noise of AP_r is that of AP_f. ``calib``
  is a draw of its own, for choosing inference settings such as alpha without val. It holds more
  objects of rare classes than train does, which a real project would not have; it must be used for
  nothing but a few scalars.
* **Federated annotation.** Each image lists 16 classes that are truly absent; detections of
  classes neither annotated nor listed are not judged. Where a class has several objects in an
  image, with probability 0.25 one of them stays unannotated and the class is listed as not
  exhaustively annotated. All other objects are annotated: an object is placed such that at least
  half of it is seen, so none has to be dropped.
* ``frequency``, ``image_count`` and ``instance_count`` are those of train in every split, as in
  LVIS.

Layout: ``<root>/synthetic_lvis/seed<seed>/{train,calib,val}/<12 digits>.jpg`` and
``annotations/<split>.json`` beside them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .generation.records import SPLITS
from .generation.shape_files import MAX_CLASSES, VERSION, write_set
from .generation.target import materialize, register_splits


def make_synthetic_lvis(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    num_train: int = 1200,
    num_calib: int = 240,
    num_val: int = 600,
    num_classes: int = 54,
    image_size: int = 128,
    objects_per_image: tuple[int, int] = (2, 6),
    zipf_exponent: float = 3.0,
    zipf_shift: float = 8.0,
    num_negatives: int = 16,
    not_exhaustive_prob: float = 0.25,
    overwrite: bool = False,
) -> Path:
    """Generate the set, or find it already generated.

    The set appears under its final name only when it is complete. A run that was killed leaves a
    hidden folder ``.seed<seed>.*`` beside it, which the next one removes.

    Args:
        root: folder that will hold ``synthetic_lvis/``, as ``DETECTRON2_DATASETS`` does.
        seed: everything random follows from it; equal arguments give equal files, bit for bit.
        num_train: number of train images.
        num_calib: number of calibration images.
        num_val: number of val images.
        num_classes: between 2 and 72.
        image_size: height and width in pixels.
        objects_per_image: smallest and largest number of objects in an image.
        zipf_exponent: ``s`` of the train frequencies ``(rank + q) ** -s``.
        zipf_shift: ``q``; 0 is the pure Zipf law.
        num_negatives: classes listed as absent per image (fewer where fewer are absent).
        not_exhaustive_prob: probability that a class with several objects in an image is not
            exhaustively annotated.
        overwrite: replace a set that was generated with other arguments.

    Returns:
        The folder ``<root>/synthetic_lvis/seed<seed>``.

    Raises:
        ValueError: if an argument is out of range, or if the folder holds a set generated with
            other arguments and ``overwrite`` is False.
    """
    parameters = {
        "version": VERSION,
        "seed": int(seed),
        "num_train": int(num_train),
        "num_calib": int(num_calib),
        "num_val": int(num_val),
        "num_classes": int(num_classes),
        "image_size": int(image_size),
        "objects_per_image": [int(n) for n in objects_per_image],
        "zipf_exponent": float(zipf_exponent),
        "zipf_shift": float(zipf_shift),
        "num_negatives": int(num_negatives),
        "not_exhaustive_prob": float(not_exhaustive_prob),
    }
    _check(parameters)
    target = Path(root) / "synthetic_lvis" / f"seed{seed}"
    return materialize(
        target, parameters, lambda folder: write_set(folder, parameters), overwrite=overwrite
    )


def register_synthetic_lvis(
    root: str | os.PathLike, *, seed: int = 0, prefix: str = "synthetic_lvis"
) -> dict[str, str]:
    """Register the splits of a generated set with Detectron2; calling it again changes nothing.

    Args:
        root: as given to :func:`make_synthetic_lvis`.
        seed: as given to :func:`make_synthetic_lvis`.
        prefix: beginning of the dataset names.

    Returns:
        The dataset name of each split: ``{"train": "synthetic_lvis_seed0_train", "calib": ...,
        "val": ...}``.

    Raises:
        ValueError: if the set has not been generated.
    """
    return register_splits(
        Path(root) / "synthetic_lvis" / f"seed{seed}",
        f"{prefix}_seed{seed}",
        f"call make_synthetic_lvis first, or run tools/make_synthetic_lvis.py --root {root} "
        f"--seed {seed}",
    )


def _check(parameters: dict[str, Any]) -> None:
    low, high = parameters["objects_per_image"]
    if not 1 <= low <= high:
        raise ValueError(f"objects_per_image must be 1 <= low <= high, got {(low, high)}")
    if not 2 <= parameters["num_classes"] <= MAX_CLASSES:
        raise ValueError(
            f"num_classes must be in [2, {MAX_CLASSES}], got {parameters['num_classes']}"
        )
    if parameters["seed"] < 0:
        raise ValueError(f"seed must be >= 0, got {parameters['seed']}")
    for split in SPLITS:
        count = parameters[f"num_{split}"]
        if count * low < parameters["num_classes"]:
            raise ValueError(
                f"num_{split}={count} images with {low} objects or more cannot show each of "
                f"{parameters['num_classes']} classes: raise num_{split} or lower num_classes"
            )
    for key in ("zipf_exponent", "zipf_shift", "num_negatives"):
        if not parameters[key] >= 0:
            raise ValueError(f"{key} must be >= 0, got {parameters[key]}")
    if not 0 <= parameters["not_exhaustive_prob"] <= 1:
        value = parameters["not_exhaustive_prob"]
        raise ValueError(f"not_exhaustive_prob must be in [0, 1], got {value}")
