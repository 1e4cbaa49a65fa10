"""Generated sets that behave like LVIS: glyphs of a color emoji font in scenes.

How they were chosen. Everything below stands for a property of LVIS, or for what a person can tell
apart, and was fixed before any two methods were compared on these sets; nothing was tuned on a
result. What came of it stands in ``docs/generated_set.md``.

* **Classes** are things that anybody names when seeing them (a slice of pizza, an owl), with
  Unicode's names. They come in Unicode's families (mammals, fruit, vehicles, tools): a set takes up
  to 12 members of a family, more only where the families are too few, and the members of each are
  spread over all ranks of frequency, so that the look-alikes of a rare class are frequent ones, as
  in LVIS. Glyphs that are mirror images of each other or the same up to a small turn are not two
  classes.
* **Training images per class** are quantiles of the counts of LVIS v1's 1,203 classes: 28 / 38 / 34
  % are rare / common / frequent, and rare and common classes have exactly as many training images
  as LVIS's have. Only the counts above 100 are compressed, as far as the number of images demands.
* **Images** have 4.3 classes each on average (LVIS: 3.6), many of them few and some many, and
  several instances of a class in three cases of ten, which then stand together. 80 % of a class's
  images show its home scene (kitchen, garden, street, ...), so that the same things occur together
  and a rare class is found beside frequent ones. Up to two further glyphs of families that no class
  covers are in an image: LVIS's images, too, are full of things that are not in its list.
* **Objects** are turned by up to 25 degrees, mirrored, stretched, differently lit, shifted in hue,
  cut off by the border and hidden by each other up to one half in all. Their size, the square root
  of the area of the upright glyph's box, is between 0.13 and 0.45 of the image's and uniform in its
  logarithm; further instances of a class differ from the first by up to a fifth, and in images that
  are too crowded all are smaller. That is larger than in LVIS, since at these resolutions smaller
  glyphs are not told apart by anybody. Images have one long side, lying or standing, and most of
  them the aspect ratio 4:3, as COCO's.
* **Federated annotation.** Each image lists classes that are truly absent; detections of classes
  neither annotated nor listed are not judged. Where a class has several instances in an image, with
  probability 0.25 one of them stays unannotated and the class is listed as not exhaustively
  annotated.
* **Calibration and val.** Each class is in equally many images, so that a rare class has as many
  objects to be measured on as a frequent one. ``calib`` is a draw of its own, for choosing
  inference settings such as alpha without val. It holds more objects of rare classes than train
  does, which a real project would not have; it must be used for nothing but a few scalars.
* ``frequency``, ``image_count`` and ``instance_count`` are those of train in every split, as in
  LVIS.

The font's file is part of the set: its hash is in ``parameters.json`` and in the annotation files,
and another version of the font makes another set. Python, NumPy and Pillow may be of any version;
OpenCV before 4.13 traces some outlines differently, by less than a pixel.

Layout: ``<root>/synthetic_lvis/glyphs_<size>_seed<seed>/{train,calib,val}/<12 digits>.jpg`` and
``annotations/<split>.json`` beside them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .generation.arguments import real, whole
from .generation.glyph_files import MAX_CLASSES, VERSION, choose_vocabulary, write_set
from .generation.glyph_font import CREDIT, GlyphFont, find_font
from .generation.records import SPLITS
from .generation.target import materialize, register_splits

__all__ = ["CREDIT", "SIZES", "find_font", "make_glyph_lvis", "register_glyph_lvis"]

SIZES: dict[str, dict[str, int]] = {
    # For two CPU cores, and for a GPU with LVIS's number of classes.
    "small": {
        "num_train": 3000,
        "num_calib": 400,
        "num_val": 1000,
        "num_classes": 200,
        "image_size": 160,
        "num_negatives": 40,
    },
    "lvis": {
        "num_train": 20000,
        "num_calib": 3000,
        "num_val": 6000,
        "num_classes": 1203,
        "image_size": 320,
        "num_negatives": 100,
    },
}
# An image has room for so much of a small vocabulary.
_MAX_SHARE = 2 / 3


def make_glyph_lvis(
    root: str | os.PathLike,
    *,
    size: str = "small",
    seed: int = 0,
    font: str | os.PathLike | None = None,
    num_train: int | None = None,
    num_calib: int | None = None,
    num_val: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    num_negatives: int | None = None,
    classes_per_image: float = 4.3,
    not_exhaustive_prob: float = 0.25,
    jobs: int = 2,
    overwrite: bool = False,
) -> Path:
    """Generate the set, or find it already generated.

    The set appears under its final name only when it is complete. A run that was killed leaves a
    hidden folder ``.glyphs_<size>_seed<seed>.*`` beside it, which may be deleted.

    Args:
        root: folder that will hold ``synthetic_lvis/``, as ``DETECTRON2_DATASETS`` does.
        size: a key of :data:`SIZES`, which gives what is left None below.
        seed: everything random follows from it; equal arguments and the same font file give equal
            annotations, bit for bit, and images equal up to the JPEG library.
        font: font file; by default Noto Color Emoji is looked for on the system.
        num_train: number of train images.
        num_calib: number of calibration images.
        num_val: number of val images.
        num_classes: between 2 and 1232.
        image_size: long side of an image in pixels.
        num_negatives: classes listed as absent per image (fewer where fewer are absent).
        classes_per_image: on average.
        not_exhaustive_prob: probability that a class with several objects in an image is not
            exhaustively annotated.
        jobs: processes to draw in; the set does not depend on it.
        overwrite: replace a set that was generated with other arguments.

    Returns:
        The folder ``<root>/synthetic_lvis/glyphs_<size>_seed<seed>``.

    Raises:
        ValueError: if an argument is out of range, if no font is found, if Pillow cannot draw it in
            color or it lacks a glyph, or if the folder holds a set generated with other arguments
            and ``overwrite`` is False.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    if whole("jobs", jobs) < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    given = {
        "num_train": num_train,
        "num_calib": num_calib,
        "num_val": num_val,
        "num_classes": num_classes,
        "image_size": image_size,
        "num_negatives": num_negatives,
    }
    parameters: dict[str, Any] = {
        "version": VERSION,
        "seed": whole("seed", seed),
        **{
            key: whole(key, SIZES[size][key] if value is None else value)
            for key, value in given.items()
        },
        "classes_per_image": real("classes_per_image", classes_per_image),
        "not_exhaustive_prob": real("not_exhaustive_prob", not_exhaustive_prob),
    }
    _check(parameters)
    glyphs = GlyphFont(find_font(font))
    vocabulary = choose_vocabulary(parameters["seed"], parameters["num_classes"])
    glyphs.check(glyph.codepoint for part in vocabulary for glyph in part)
    parameters["font_sha256"] = glyphs.sha256
    return materialize(
        _folder(root, size, seed),
        parameters,
        lambda folder: write_set(folder, parameters, glyphs, jobs),
        overwrite=overwrite,
    )


def register_glyph_lvis(
    root: str | os.PathLike, *, size: str = "small", seed: int = 0
) -> dict[str, str]:
    """Register the splits of a generated set with Detectron2; calling it again changes nothing.

    Args:
        root: as given to :func:`make_glyph_lvis`.
        size: as given to :func:`make_glyph_lvis`.
        seed: as given to :func:`make_glyph_lvis`.

    Returns:
        The dataset name of each split: ``{"train": "glyph_lvis_small_seed0_train", "calib": ...,
        "val": ...}``.

    Raises:
        ValueError: if the set has not been generated.
    """
    return register_splits(
        _folder(root, size, seed),
        f"glyph_lvis_{size}_seed{seed}",
        f"call make_glyph_lvis first, or run tools/make_synthetic_lvis.py --kind glyphs "
        f"--size {size} --root {root} --seed {seed}",
    )


def _folder(root: str | os.PathLike, size: str, seed: int) -> Path:
    return Path(root) / "synthetic_lvis" / f"glyphs_{size}_seed{seed}"


def _check(parameters: dict[str, Any]) -> None:
    num_classes = parameters["num_classes"]
    if not 2 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"num_classes must be in [2, {MAX_CLASSES}], got {num_classes}")
    if parameters["image_size"] < 48:
        raise ValueError(
            f"image_size must be at least 48 pixels, got {parameters['image_size']}: glyphs in "
            "smaller images are not told apart"
        )
    for key in ("seed", "num_negatives"):
        if parameters[key] < 0:
            raise ValueError(f"{key} must be >= 0, got {parameters[key]}")
    if not 0 <= parameters["not_exhaustive_prob"] <= 1:
        value = parameters["not_exhaustive_prob"]
        raise ValueError(f"not_exhaustive_prob must be in [0, 1], got {value}")
    most = min(10.0, _MAX_SHARE * num_classes)
    if not 0.1 <= parameters["classes_per_image"] <= most:
        value = parameters["classes_per_image"]
        raise ValueError(f"classes_per_image must be in [0.1, {most:g}], got {value}")
    for split in SPLITS:
        count = parameters[f"num_{split}"]
        if round(count * parameters["classes_per_image"]) < num_classes:
            raise ValueError(
                f"num_{split}={count} images with {parameters['classes_per_image']:g} classes each "
                f"cannot show each of {num_classes} classes: raise num_{split} or lower num_classes"
            )
