"""Where classification sets come from: what is on disk, as :class:`ClassificationSet`.

``load_source`` has one noun for all of them: the training images, the test images, and for some a
balanced calibration part beside both.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision import datasets

from ..emoji_lt import load_emoji_lt
from ..frequency import CLASSIFICATION_BOUNDS as BOUNDS
from .lists import read_inat, read_list
from .sets import ClassificationSet

__all__ = ["BOUNDS", "KINDS", "Source", "load_source"]

logger = logging.getLogger(__name__)

# A head of 100 images has no class beyond BOUNDS.
_DIGITS_BOUNDS = (5, 30)
# Images of each class; the rarest has 174.
_DIGITS = {"test": 54, "calib": 20, "train": 100}
_LISTS = "https://github.com/facebookresearch/classifier-balancing/tree/main/data"
# Of each set of lists: prefix of the lists, folder of the images, where these come from.
_LISTED = {
    "imagenet": ("ImageNet_LT", "imagenet", "https://image-net.org/download"),
    "places": ("Places_LT", "places365", "http://places2.csail.mit.edu/download.html"),
}
_RAW = "https://raw.githubusercontent.com/facebookresearch/classifier-balancing/main/data"
_INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018"


class Source(NamedTuple):
    """The parts of a set.

    Attributes:
        train: all training images.
        test: balanced as a rule.
        calib: images beside both, or None where such a part is carved from ``train``.
        bounds: see ``BOUNDS``.
    """

    train: ClassificationSet
    test: ClassificationSet
    calib: ClassificationSet | None = None
    bounds: tuple[int, int] = BOUNDS


def missing(path: str | os.PathLike, url: str, command: str) -> FileNotFoundError:
    """The error for data that are not there: what, where from, and how."""
    return FileNotFoundError(
        f"{path} does not exist. It comes from {url}; {command}. See datasets/README.md; "
        "DETECTRON2_DATASETS names the root folder (now "
        f"{os.environ.get('DETECTRON2_DATASETS', 'datasets')!r})."
    )


def _load_cifar(root: Path, kind: type[datasets.CIFAR10]) -> Source:
    folder = root / kind.base_folder
    names = [name for name, _ in [*kind.train_list, *kind.test_list]] + [kind.meta["filename"]]
    for name in names:
        if not (folder / name).is_file():
            load = f"{kind.__name__}({str(root)!r}, download=True)"
            command = f'python -c "from torchvision.datasets import *; {load}"'
            raise missing(folder / name, kind.url, f"get it with {command}")
    try:
        parts = [kind(str(root), train=train) for train in (True, False)]
    except RuntimeError:
        logger.warning("%s has not the checksums of %s; reading it.", folder, kind.__name__)
        parts = _read_unverified(folder, kind)
    train, test = (
        ClassificationSet(part.targets, part.classes, images=np.asarray(part.data))
        for part in parts
    )
    return Source(train, test)


def _read_unverified(folder: Path, kind: type[datasets.CIFAR10]) -> list[datasets.CIFAR10]:
    """Files in CIFAR's format with other content; torchvision reads what has no checksum."""
    lists = {key: [[n, None] for n, _ in getattr(kind, key)] for key in ("train_list", "test_list")}
    unverified = type(kind.__name__, (kind,), {**lists, "meta": {**kind.meta, "md5": None}})
    try:
        return [unverified(str(folder.parent), train=train) for train in (True, False)]
    except Exception as error:  # whatever unpickling a damaged file gives
        raise ValueError(
            f"{str(folder)!r} is damaged ({type(error).__name__}: {error}): delete it and download "
            f"{kind.url} again"
        ) from error


def _load_emoji(root: Path, variant: str) -> Source:
    folder = root / "emoji_lt" / variant
    if not (folder / "classes.json").is_file():
        profile = "step" if variant.startswith("step") else "exp"
        imbalance, seed = variant[len(profile) :].split("_seed")
        raise missing(
            folder,
            "a color emoji font on this machine",
            "generate it with tools/make_synthetic_lvis.py --kind emoji_lt "
            f"--imbalance {imbalance} --profile {profile} --seed {seed} --root {root}",
        )
    described = json.loads((folder / "classes.json").read_text("utf-8"))
    names = [one["name"] for one in described["classes"]]
    train, calib, test = (
        ClassificationSet(labels, names, images=images)
        for images, labels in (load_emoji_lt(folder, part) for part in ("train", "calib", "test"))
    )
    return Source(train, test, calib)


def _load_digits(root: Path) -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits_lt is the set of scikit-learn, which is not installed: pip install "
            "scikit-learn",
            name=error.name,
        ) from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    whole = ClassificationSet(
        digits.target,
        [str(name) for name in digits.target_names],
        images=np.repeat(images[..., None], 3, axis=3),
    )
    # Writers follow each other in the file, so the parts are drawn, and are the same for all seeds.
    parts: dict[str, list[np.ndarray]] = {part: [] for part in _DIGITS}
    for label in range(len(whole.classes)):
        of_class = np.flatnonzero(whole.labels == label)
        of_class = of_class[np.random.RandomState(label).permutation(len(of_class))]
        for part, chosen in zip(_DIGITS, np.split(of_class, np.cumsum([*_DIGITS.values()]))):
            parts[part].append(chosen)
    sets = {part: whole.part(np.sort(np.concatenate(lists))) for part, lists in parts.items()}
    return Source(**sets, bounds=_DIGITS_BOUNDS)


def _load_lists(root: Path, kind: str) -> Source:
    prefix, folder, url = _LISTED[kind]
    paths = [root / prefix.lower() / f"{prefix}_{part}.txt" for part in ("train", "test", "val")]
    for path in paths:
        if not path.is_file():
            get = f"curl --create-dirs -o {path} {_RAW}/{prefix}/{path.name}"
            raise missing(path, f"{_LISTS}/{prefix}", f"get it with {get}")
    if not (root / folder).is_dir():
        raise missing(
            root / folder, url, f"unpack its images such that the paths in {paths[0]} fit"
        )
    train = read_list(paths[0], root / folder)
    test, calib = (read_list(path, root / folder, train.classes) for path in paths[1:])
    return Source(train, test, calib)


def _load_inat(root: Path) -> Source:
    folder = root / "inat2018"
    paths = [folder / f"{part}2018.json" for part in ("train", "val")]
    for path in [*paths, folder / "train_val2018"]:
        if not path.exists():
            archive = f"{path.name}.tar.gz"
            get = f"mkdir -p {folder} && curl -L {_INAT}/{archive} | tar -xz -C {folder}"
            raise missing(path, f"{_INAT}/{archive}", f"get it with {get}")
    train, test = (read_inat(path, folder) for path in paths)
    if test.classes != train.classes:
        raise ValueError(f"{paths[1]} has other categories than {paths[0]}: download both again")
    return Source(train, test)


def load_source(kind: str, root: str | os.PathLike, variant: str = "") -> Source:
    """What is on disk of a set.

    Args:
        kind: one of ``KINDS``.
        root: folder that ``DETECTRON2_DATASETS`` names.
        variant: for "emoji" the folder in ``emoji_lt/``, such as "exp100_seed0".

    Raises:
        FileNotFoundError: naming the path, where it comes from and the command.
        ValueError: if a file is damaged.
    """
    options = {"variant": variant} if variant else {}
    return KINDS[kind](Path(root), **options)


KINDS: dict[str, Callable[..., Source]] = {
    "cifar10": functools.partial(_load_cifar, kind=datasets.CIFAR10),
    "cifar100": functools.partial(_load_cifar, kind=datasets.CIFAR100),
    "imagenet": functools.partial(_load_lists, kind="imagenet"),
    "places": functools.partial(_load_lists, kind="places"),
    "digits": _load_digits,
    "emoji": _load_emoji,
    "inat2018": _load_inat,
}
