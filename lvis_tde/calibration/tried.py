"""What was measured of settings, on disk, so that nothing is measured twice."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch import nn

from ..data.classification.sets import ClassificationSet
from ..data.files import write_text
from ..posthoc import Settings
from .image_sweep import TASK

__all__ = ["Tried", "as_json", "key_of", "shared"]

logger = logging.getLogger(__name__)


def shared(value: Any) -> Any:
    """The main process's value in all processes."""
    return comm.all_gather(value)[0] if comm.get_world_size() > 1 else value


def as_json(value: Any) -> Any:
    """Numbers, words, and mappings and lists of them, with None for NaN."""
    if isinstance(value, Mapping):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(one) for one in value]
    return None if value != value else value


def key_of(recipe, model: nn.Module, dataset: str, **options: Any) -> str:
    """A digest of all that a metric depends on beside the settings.

    Args:
        recipe: of the model; its config decides what a test does to an image, and whether the
            model is optimized for inference matters, too.
        model: its weights, means and statistics count, its strengths do not.
        dataset: registered name; its annotations and images count, its name does not, unless there
            is nothing else to know it by.
        options: whatever else matters, as JSON has it.
    """
    fast = str(recipe.inference_dtype) if recipe.fast else None
    digest = hashlib.sha256(json.dumps([options, fast], sort_keys=True).encode())
    for name, value in model.state_dict().items():
        # Strengths in checkpoints, which a setting replaces.
        if name.rpartition(".")[2] not in ("_extra_state", "strengths"):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    neutral = recipe.clone()
    neutral.set_posthoc(Settings())
    neutral.weights = neutral.output_dir = neutral.device = ""
    neutral.train_sets, neutral.test_sets, neutral.calibration_sets = (), (), ()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        neutral.save(path)
        digest.update(path.read_bytes())
    for part in _content(dataset):
        digest.update(part)
    return digest.hexdigest()


def _content(dataset: str) -> Iterator[bytes]:
    """What tells a data set from others, those of its name among them."""
    known = MetadataCatalog.get(dataset)
    path = known.get("json_file")
    if path and os.path.isfile(path):
        yield Path(path).read_bytes()
        yield os.path.realpath(known.get("image_root") or "").encode()
        return
    images = DatasetCatalog.get(dataset) if known.get("evaluator_type") == TASK else None
    if not isinstance(images, ClassificationSet):
        yield dataset.encode()
        return
    yield repr((images.classes, known.get("class_image_count"), known.get("bounds"))).encode()
    yield images.labels.tobytes() + images.image_ids.tobytes()
    if images.images is not None:
        yield np.ascontiguousarray(images.images).tobytes()
    for file in images.files or ():
        found = os.stat(file)
        yield f"{file} {found.st_size} {found.st_mtime_ns}\n".encode()


class Tried:
    """Settings and what was found for each, kept in a file that is whole at any time.

    All processes know the same: the main one reads and writes.

    Attributes:
        found: settings to what was found, such as metrics in percent; of numbers, and of mappings
            and lists of them.
    """

    def __init__(self, path: str | os.PathLike[str], key: str):
        """
        Args:
            path: of a JSON file, perhaps of an earlier run.
            key: what is known under another key is forgotten.
        """
        self._path, self._key = Path(path), key
        self.found: dict[Settings, Any] = {}
        if comm.is_main_process() and self._path.is_file():
            self.found = self._read()
        self.share()

    def _read(self) -> dict[Settings, Any]:
        try:
            content = json.loads(self._path.read_text("utf-8"))
            if content["key"] != self._key:
                logger.info(
                    "%s is of other weights, images or options: measuring anew.", self._path
                )
                return {}
            found = {Settings(**one["settings"]): _load(one["found"]) for one in content["tried"]}
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be used (%s): measuring anew.", self._path, error)
            return {}
        logger.info("%d settings are known from %s.", len(found), self._path)
        return found

    def add(self, settings: Settings, found: Any) -> None:
        """Remembers, and on the main process writes."""
        self.found[settings] = copy.deepcopy(found)
        if comm.is_main_process():
            tried = [
                {"settings": dataclasses.asdict(one), "found": as_json(value)}
                for one, value in self.found.items()
            ]
            write_text(self._path, json.dumps({"key": self._key, "tried": tried}, indent=1) + "\n")

    def share(self) -> None:
        """All processes know what the main one knows."""
        self.found = shared(self.found)


def _load(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _load(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_load(one) for one in value]
    return math.nan if value is None else value
