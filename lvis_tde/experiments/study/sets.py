"""The sets of a study: generated ones, one a seed, and given ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...data.generated import KINDS
from ...data.long_tailed import register_long_tailed
from .file import SPLITS, DataSet

__all__ = ["make_set", "num_classes", "register_set"]

_FOLDER = "datasets"


def make_set(data: DataSet, output: Path, seed: int) -> None:
    """Generates the set of a seed below a folder, or finds it there; given sets are there.

    Raises:
        ValueError: it cannot be made, or the folder holds a set of other arguments.
    """
    if data.kind:
        KINDS[data.kind].make(output / _FOLDER, seed=seed, **dict(data.options))


def register_set(data: DataSet, output: Path, seed: int) -> dict[str, str]:
    """Registers the set of a seed with Detectron2; calling it again changes nothing.

    Returns:
        The registered name of each of :data:`~.file.SPLITS`.

    Raises:
        ValueError: a generated set is not there, or a name is not registered.
    """
    if data.kind:
        size = {key: value for key, value in data.options if key == "size"}
        return KINDS[data.kind].register(output / _FOLDER, seed=seed, **size)
    names = {}
    for split, one in zip(SPLITS, data.splits):
        names[split] = one if isinstance(one, str) else _registered(split, *one)
        if names[split] not in DatasetCatalog.list():
            raise ValueError(
                f"set: {split} is {one!r}, which is no registered data set; give its annotation "
                "file and folder of images as [JSON, IMAGES]."
            )
        file = MetadataCatalog.get(names[split]).get("json_file")
        if not file or not Path(file).is_file():
            raise ValueError(f"set: {split} is {one!r}, whose annotation file {file} is missing.")
    return names


def _registered(split: str, file: str, images: str) -> str:
    digest = hashlib.sha256(f"{file}\n{images}".encode()).hexdigest()[:8]
    name = f"study_{Path(file).stem}_{digest}_{split}"
    if name not in DatasetCatalog.list():
        register_long_tailed(name, file, images)
    return name


def num_classes(dataset: str) -> int:
    """Of a registered set; annotations are read only where its metadata do not say it."""
    if MetadataCatalog.get(dataset).get("thing_classes") is None:
        DatasetCatalog.get(dataset)
    return len(MetadataCatalog.get(dataset).thing_classes)
