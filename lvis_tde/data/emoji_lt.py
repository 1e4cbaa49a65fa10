"""``emoji_lt``: a long-tailed classification set of glyphs, with balanced calibration and test.

One glyph in each image, about its middle, turned, stretched, lit and set before a background like
the objects of the detection sets (:mod:`lvis_tde.data.glyphs`), whose classes and families these
are too: class 0 is the most frequent one, and the look-alikes of a rare class are frequent ones.
Training counts fall as in CIFAR-LT, for which this set stands in where nothing can be downloaded.

* ``train`` holds what :func:`long_tailed_counts` says of each class.
* ``calib`` and ``test`` hold equally many images of every class, each a draw of its own: ``calib``
  for choosing epochs and inference settings, ``test`` to be met once.

An image follows from the seed, its split, its class and its number there, and from nothing else: a
set of larger imbalance is a part of one of smaller imbalance.

Layout: ``<root>/emoji_lt/<profile><imbalance>_seed<seed>/{train,calib,test}.npz``, each with
``images`` and ``labels``; ``classes.json`` and ``parameters.json`` beside them.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .generation.arguments import real, whole
from .generation.glyph_files import MAX_CLASSES, VERSION, choose_vocabulary
from .generation.glyph_font import GlyphFont, find_font
from .generation.glyph_rendering import draw_portrait, make_sprite
from .generation.target import materialize

__all__ = ["PROFILES", "SPLITS", "load_emoji_lt", "long_tailed_counts", "make_emoji_lt"]

SPLITS = ("train", "calib", "test")
PROFILES = ("exp", "step")


def long_tailed_counts(
    head: int, num_classes: int, imbalance: float, profile: str = "exp"
) -> np.ndarray:
    """Training images per class, as in CIFAR-LT (Cui et al., CVPR 2019; Cao et al., NeurIPS 2019).

    Args:
        head: images of the most frequent class.
        num_classes: ``C``, at least 2.
        imbalance: ``head`` over the images of the rarest class, at least 1.
        profile: ``"exp"``: class ``i`` has ``int(head / imbalance ** (i / (C - 1)))`` images;
            ``"step"``: the first half of the classes has ``head``, the rest as many as the rarest.

    Returns:
        (C,) int64, never increasing, at least 1 each.

    Raises:
        ValueError: if an argument is out of range, or nothing is left of the rarest class.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}")
    if not 1 <= imbalance < float("inf"):
        raise ValueError(f"imbalance must be a finite number >= 1, got {imbalance}")
    if head < imbalance:
        raise ValueError(
            f"imbalance {imbalance:g} leaves no image of the rarest class where the most frequent "
            f"one has {head}: lower it, or raise train_per_class to {imbalance:g}"
        )
    steps = np.arange(num_classes) / (num_classes - 1)
    if profile == "step":
        steps = np.round(steps)
    # Plain Python numbers: NumPy's powers differ in the last digit from CPU to CPU.
    counts = [int(head / float(imbalance) ** step) for step in steps.tolist()]
    return np.array(counts, dtype=np.int64)


def make_emoji_lt(
    root: str | os.PathLike,
    *,
    num_classes: int = 100,
    image_size: int = 32,
    imbalance: float = 100.0,
    profile: str = "exp",
    train_per_class: int = 500,
    calib_per_class: int = 20,
    test_per_class: int = 100,
    seed: int = 0,
    font: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Generate the set, or find it already generated.

    The set appears under its final name only when it is complete. A run that was killed leaves a
    hidden folder ``.<name>.*`` beside it, which may be deleted.

    Args:
        root: folder that will hold ``emoji_lt/``, as ``DETECTRON2_DATASETS`` does.
        num_classes: between 2 and 1232.
        image_size: height and width in pixels, at least 16.
        imbalance: of the training images, see :func:`long_tailed_counts`; 1 is balanced.
        profile: ``"exp"`` or ``"step"``, see :func:`long_tailed_counts`.
        train_per_class: training images of the most frequent class.
        calib_per_class: calibration images of each class.
        test_per_class: test images of each class.
        seed: everything random follows from it; equal arguments and the same font file give equal
            files with equal releases of NumPy and OpenCV.
        font: font file; by default Noto Color Emoji is looked for on the system.
        overwrite: replace a set that was generated with other arguments.

    Returns:
        The folder ``<root>/emoji_lt/<profile><imbalance>_seed<seed>``.

    Raises:
        ValueError: if an argument is out of range, if no font is found, if Pillow cannot draw it in
            color or it lacks a glyph, or if the folder holds a set generated with other arguments
            and ``overwrite`` is False.
    """
    parameters: dict[str, Any] = {
        "version": VERSION,
        "seed": whole("seed", seed),
        "num_classes": whole("num_classes", num_classes),
        "image_size": whole("image_size", image_size),
        "imbalance": real("imbalance", imbalance),
        "profile": profile,
        "train_per_class": whole("train_per_class", train_per_class),
        "calib_per_class": whole("calib_per_class", calib_per_class),
        "test_per_class": whole("test_per_class", test_per_class),
    }
    _check(parameters)
    glyphs = GlyphFont(find_font(font))
    classes = choose_vocabulary(parameters["seed"], parameters["num_classes"]).classes
    glyphs.check(glyph.codepoint for glyph in classes)
    parameters["font_sha256"] = glyphs.sha256
    return materialize(
        Path(root) / "emoji_lt" / f"{profile}{imbalance:g}_seed{seed}",
        parameters,
        lambda folder: _write(folder, parameters, glyphs),
        overwrite=overwrite,
    )


def load_emoji_lt(folder: str | os.PathLike, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split, in memory.

    Args:
        folder: of the set, as :func:`make_emoji_lt` returns it.
        split: ``"train"``, ``"calib"`` or ``"test"``.

    Returns:
        Images, (N, S, S, 3) uint8 RGB, and labels, (N,) int64 in [0, C), in the order of classes.

    Raises:
        ValueError: if there is no such split, if the set has not been generated, or if its file is
            damaged.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    file = Path(folder) / f"{split}.npz"
    if not file.is_file():
        raise ValueError(
            f"{str(file)!r} does not exist: call make_emoji_lt first, or run "
            "tools/make_synthetic_lvis.py --kind emoji_lt"
        )
    try:
        with np.load(file) as arrays:
            return arrays["images"], arrays["labels"]
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{str(file)!r} is no part of an emoji_lt set ({error}): delete its folder and "
            "generate the set again"
        ) from error


def _check(parameters: dict[str, Any]) -> None:
    num_classes = parameters["num_classes"]
    if not 2 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"num_classes must be in [2, {MAX_CLASSES}], got {num_classes}")
    for key, least in {
        "image_size": 16,
        "seed": 0,
        "calib_per_class": 1,
        "test_per_class": 1,
    }.items():
        if parameters[key] < least:
            raise ValueError(f"{key} must be >= {least}, got {parameters[key]}")
    _counts(parameters)


def _counts(parameters: dict[str, Any]) -> dict[str, np.ndarray]:
    """Images of each class in each split, (C,)."""
    num_classes = parameters["num_classes"]
    train = long_tailed_counts(
        parameters["train_per_class"], num_classes, parameters["imbalance"], parameters["profile"]
    )
    balanced = [np.full(num_classes, parameters[f"{split}_per_class"]) for split in SPLITS[1:]]
    return dict(zip(SPLITS, [train, *balanced]))


def _write(folder: Path, parameters: dict[str, Any], font: GlyphFont) -> None:
    seed, side = parameters["seed"], parameters["image_size"]
    classes = choose_vocabulary(seed, parameters["num_classes"]).classes
    sprites = [make_sprite(font.draw(glyph.codepoint)) for glyph in classes]
    counts = _counts(parameters)
    folder.mkdir()
    for index, split in enumerate(SPLITS):
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts[split])
        images = np.empty((len(labels), side, side, 3), np.uint8)
        numbers = np.concatenate([np.arange(count) for count in counts[split]])
        for i, (label, number) in enumerate(zip(labels.tolist(), numbers.tolist())):
            images[i] = draw_portrait([seed, index, label, number], sprites[label], side)
        # Noise does not compress.
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    names = [
        {
            "name": glyph.name,
            "family": glyph.family,
            "codepoint": f"U+{glyph.codepoint:X}",
            "train_images": int(counts["train"][label]),
        }
        for label, glyph in enumerate(classes)
    ]
    content = {"classes": names, "font_sha256": font.sha256}
    for name, value in {"classes": content, "parameters": parameters}.items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1), "utf-8")
