"""Detections without and with TDE side by side, for images and videos of any source."""

from __future__ import annotations

import functools
import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import lvis_v0_5_categories, lvis_v1_categories
from detectron2.data.detection_utils import read_image
from PIL import Image
from torch import nn

from .calibration.alpha import predict_for_alphas
from .calibration.explain import explain_detections
from .calibration.settings import describe, tde_predictors
from .data.files import write_with
from .data.frequency import LVIS_BOUNDS, frequency_group
from .posthoc import Settings
from .visualization.charts import plot_explanation
from .visualization.detections import draw_comparison

__all__ = [
    "ClassInfo",
    "TDEDemo",
    "class_info",
    "find_inputs",
    "is_video",
    "stems_of_inputs",
    "unused_name",
]

logger = logging.getLogger(__name__)

_VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


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
            "be named. Use a registered dataset in the config, such as lvis_v1_val, or "
            "give your annotation file with --test-data JSON IMAGES."
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


def is_video(path: str | os.PathLike) -> bool:
    """Whether the name is that of a video file."""
    return Path(path).suffix.lower() in _VIDEOS


def find_inputs(patterns: Iterable[str]) -> list[str]:
    """Files for names and globs, in order, each once.

    Raises:
        FileNotFoundError: naming the one that matches no file.
    """
    found = []
    for pattern in patterns:
        # A name is taken as it is, even if it has the characters of a pattern.
        matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
        matches = [match for match in matches if os.path.isfile(match)]
        if not matches:
            raise FileNotFoundError(f"No file matches {pattern!r}.")
        found += matches
    return list(dict.fromkeys(found))


class TDEDemo:
    """Draws what a model detects without and with TDE, and why."""

    def __init__(
        self,
        model: nn.Module,
        prepare: Callable[[np.ndarray], dict],
        classes: ClassInfo,
        *,
        score_threshold: float = 0.3,
        panel_size: int = 640,
    ):
        """
        Args:
            model: trained, with TDE predictors; used with its own settings, and with none.
            prepare: makes the model's input of an RGB picture, such as ``Recipe.prepare``.
            classes: see :func:`class_info`.
            score_threshold: detections with a lower score are left out.
            panel_size: longer side of each of the two pictures, in pixels.
        """
        self.model = model.eval()
        self.classes = classes
        predictor = tde_predictors(model)[0]
        self.alpha = predictor.alpha
        self._off_and_on = [Settings(), predictor.posthoc]
        self.score_threshold = score_threshold
        self.panel_size = panel_size
        self._input = prepare

    def compare(self, image: np.ndarray) -> tuple[np.ndarray, int]:
        """Detections without and with TDE side by side.

        Args:
            image: RGB, (H, W, 3) uint8.

        Returns:
            tuple: the picture, RGB uint8, and the number of detections that it shows with TDE.
        """
        (off,), (on,) = predict_for_alphas(self.model, [self._input(image)], self._off_and_on)
        off, on = off["instances"].to("cpu"), on["instances"].to("cpu")
        steps = describe(self._off_and_on[1]) or "alpha 0"
        picture = draw_comparison(
            image,
            [("without TDE", off), (f"with TDE, {steps}", on)],
            class_names=self.classes.names,
            class_frequency=self.classes.frequency,
            score_threshold=self.score_threshold,
            panel_size=self.panel_size,
        )
        return picture, int((on.scores >= self.score_threshold).sum())

    def explain(self, image: np.ndarray, count: int = 3):
        """Charts of the detections whose scores TDE changed most.

        Args:
            image: RGB, (H, W, 3) uint8.
            count: most charts.

        Yields:
            Figure: see :func:`~lvis_tde.visualization.charts.plot_explanation`.
        """
        ((found, parts),) = explain_detections(self.model, [self._input(image)])
        change = (parts.probs - parts.factual_probs).abs().sum(1).cpu()
        change[found.scores.cpu() < self.score_threshold] = -1
        # Detections of one region have the same explanation: only the best of them counts.
        seen: set[float] = set()
        for row in change.argsort(descending=True, stable=True).tolist():
            key = round(parts.total[row].sum().item(), 6)
            if change[row] < 0 or len(seen) == count:
                return
            if key not in seen:
                seen.add(key)
                yield plot_explanation(
                    parts,
                    row,
                    class_names=self.classes.names,
                    class_frequency=self.classes.frequency,
                )

    def run(
        self, paths: Sequence[str], output: str | os.PathLike, *, explain: bool = False
    ) -> list[Path]:
        """Writes pictures and videos.

        Args:
            paths: images and videos.
            output: folder; ``NAME.png`` for an image, ``NAME_why_1.png`` and so on for its charts,
                ``NAME.mp4`` for a video. Of two equal names the second gets a number, as does a
                name under which an input lies there, so that no input is ever replaced.
            explain: write charts; not for videos.

        Returns:
            list: what was written.
        """
        folder = Path(output)
        written: list[Path] = []
        kept = stems_of_inputs(paths, folder)
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            stem = unused_name(path, kept | {one.stem for one in written})
            if is_video(path):
                written.append(self._video(path, folder / f"{stem}.mp4"))
                continue
            image = read_image(path, "RGB")
            picture, shown = self.compare(image)
            written.append(folder / f"{stem}.png")
            write_with(written[-1], Image.fromarray(picture).save)
            logger.info("%s: %d detections, see %s", path, shown, written[-1])
            if not explain:
                continue
            for number, figure in enumerate(self.explain(image), 1):
                written.append(folder / f"{stem}_why_{number}.png")
                write_with(written[-1], functools.partial(figure.savefig, dpi=150))
        return written

    def _video(self, path: str, target: Path) -> Path:
        writer: Any = None
        count = 0
        for frame, rate in _frames(path):
            picture, _ = self.compare(frame)
            # Codecs want even sizes.
            picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
            if writer is None:
                size = picture.shape[1], picture.shape[0]
                writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
                if not writer.isOpened():
                    raise OSError(f"OpenCV cannot write {target}: it has no MPEG-4 encoder here.")
            writer.write(np.ascontiguousarray(picture[:, :, ::-1]))
            count += 1
            if count % 50 == 0:
                logger.info("%s: %d frames", path, count)
        writer.release()
        logger.info("%s: %d frames, see %s", path, count, target)
        return target


def stems_of_inputs(paths: Sequence[str], folder: Path) -> set[str]:
    """Names in an output folder that would replace an input."""
    files = [Path(os.path.realpath(path)) for path in paths]
    stems = {one.stem for one in files if one.parent == Path(os.path.realpath(folder))}
    return stems | {re.sub(r"_why_\d+$", "", stem) for stem in stems}


def unused_name(path: str, taken: set[str]) -> str:
    """The stem of a path, with a number where it is taken."""
    stem = Path(path).stem
    names = (f"{stem}_{number}" if number else stem for number in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def _frames(path: str) -> Iterator[tuple[np.ndarray, float]]:
    """RGB frames of a video and its frames per second.

    Raises:
        OSError: if OpenCV cannot read it.
    """
    video = cv2.VideoCapture(path)
    try:
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        readable, frame = video.read()
        if not readable:
            raise OSError(f"OpenCV cannot read the video {path}.")
        while readable:
            yield np.ascontiguousarray(frame[:, :, ::-1]), rate
            readable, frame = video.read()
    finally:
        video.release()
