"""Detections without and with TDE side by side, for images and videos of any source."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from .calibration.alpha import predict_for_alphas
from .calibration.explain import explain_detections
from .calibration.settings import describe, tde_predictors
from .data.classes import ClassInfo, class_info
from .data.files import atomic_path, write_with
from .data.pictures import UnreadableError, find_inputs, frames, is_video, read_picture
from .posthoc import Settings
from .visualization.charts import plot_explanation
from .visualization.detections import draw_comparison

__all__ = [
    "ClassInfo",
    "TDEDemo",
    "class_info",
    "classes_of",
    "draw_each",
    "find_inputs",
    "is_video",
]

logger = logging.getLogger(__name__)


def classes_of(model: nn.Module, dataset: str) -> ClassInfo:
    """Names and frequency groups of a model's classes: the data set's, or those in its checkpoint.

    Args:
        model: with TDE predictors and its weights.
        dataset: registered name, or one that is not registered here.

    Returns:
        ClassInfo: without groups where neither knows them.

    Raises:
        ValueError: if neither has names, or the data set has another number of classes.
    """
    statistics = tde_predictors(model)[0].statistics
    if MetadataCatalog.get(dataset).get("thing_classes") is None and statistics.class_names:
        return ClassInfo(statistics.class_names, statistics.class_groups)
    return class_info(dataset, statistics.num_classes)


class TDEDemo:
    """Draws what a model detects without and with TDE, and why.

    Attributes:
        skipped: after :meth:`run`, the inputs that could not be read, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        prepare: Callable[[np.ndarray], dict],
        classes: ClassInfo,
        *,
        score_threshold: float = 0.3,
        panel_size: int = 640,
        top: int = 20,
    ):
        """
        Args:
            model: trained, with TDE predictors; used with its own settings, and with none.
            prepare: makes the model's input of an RGB picture, such as ``Recipe.prepare``.
            classes: see :func:`classes_of`.
            score_threshold: without TDE, detections with a lower score are left out. With TDE as
                many are shown, those with the highest scores: it moves all scores, and the same
                threshold would be another one.
            panel_size: longer side of each of the two pictures, in pixels.
            top: most detections on each side.

        Raises:
            ValueError: if ``top`` or ``panel_size`` is not positive, or the threshold not in
                [0, 1].
        """
        if top < 1:
            raise ValueError(f"top={top} (--top) shows nothing: it must be at least 1.")
        if panel_size < 1:
            raise ValueError(f"panel_size={panel_size} (--panel-size) must be at least 1 pixel.")
        if not 0 <= score_threshold <= 1:
            raise ValueError(
                f"score_threshold={score_threshold} (--score-threshold) must lie in [0, 1]."
            )
        self.model = model.eval()
        self.classes = classes
        predictor = tde_predictors(model)[0]
        self.alpha = predictor.alpha
        self._off_and_on = [Settings(), predictor.posthoc]
        self.score_threshold = score_threshold
        self.panel_size = panel_size
        self.top = top
        self.skipped: list[tuple[str, str]] = []
        self._input = prepare

    def detect(self, image: np.ndarray) -> tuple[Instances, Instances]:
        """The detections that are shown, the best first: as many with TDE as without it.

        Args:
            image: RGB, (H, W, 3) uint8.

        Returns:
            Those without, and those with TDE and the other steps, on the CPU.
        """
        (off,), (on,) = predict_for_alphas(self.model, [self._input(image)], self._off_and_on)
        pair = [one["instances"].to("cpu") for one in (off, on)]
        off, on = (one[one.scores.argsort(descending=True, stable=True)] for one in pair)
        count = min(self.top, int((off.scores >= self.score_threshold).sum()))
        return off[:count], on[:count]

    def compare(self, image: np.ndarray) -> tuple[np.ndarray, int]:
        """Detections without and with TDE side by side.

        Args:
            image: RGB, (H, W, 3) uint8.

        Returns:
            tuple: the picture, RGB uint8, and the number of detections that it shows with TDE.
        """
        off, on = self.detect(image)
        steps = describe(self._off_and_on[1]) or "alpha 0"
        picture = draw_comparison(
            image,
            [
                (f"without TDE{_least(off)}", off),
                (f"with TDE, {steps}{_least(on)}", on),
            ],
            class_names=self.classes.names,
            class_frequency=self.classes.frequency,
            score_threshold=0,
            max_objects=self.top,
            panel_size=self.panel_size,
        )
        return picture, len(on)

    def explain(self, image: np.ndarray, count: int = 3, shown: int | None = None):
        """Charts of the detections, of those that are shown, whose scores TDE changed most.

        Args:
            image: RGB, (H, W, 3) uint8.
            count: most charts.
            shown: what :meth:`compare` returned, if it is known.

        Yields:
            Figure: see :func:`~lvis_tde.visualization.charts.plot_explanation`.
        """
        shown = len(self.detect(image)[1]) if shown is None else shown
        ((found, parts),) = explain_detections(self.model, [self._input(image)])
        change = (parts.probs - parts.factual_probs).abs().sum(1).cpu()
        change[found.scores.cpu().argsort(descending=True, stable=True)[shown:]] = -1
        height, width = found.image_size
        scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
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
                    image=image,
                    box=found.pred_boxes.tensor[row].cpu().numpy() * scale,
                )

    def run(
        self, paths: Sequence[str], output: str | os.PathLike, *, explain: bool = False
    ) -> list[Path]:
        """Writes pictures and videos.

        What cannot be read is skipped, with a warning, and noted in :attr:`skipped`.

        Args:
            paths: images and videos.
            output: folder; ``NAME.png`` for an image, ``NAME_why_1.png`` and so on for its charts,
                ``NAME.mp4`` for a video. Of two equal names the second gets a number, as does a
                name under which an input lies there, so that no input is ever replaced.
            explain: write charts; not for videos.

        Returns:
            list: what was written.
        """
        written, self.skipped = draw_each(
            paths, output, functools.partial(self._draw, explain=explain)
        )
        return written

    def _draw(self, path: str, folder: Path, stem: str, explain: bool) -> list[Path]:
        if is_video(path):
            return [self._video(path, folder / f"{stem}.mp4")]
        return self._picture(path, folder, stem, explain)

    def _picture(self, path: str, folder: Path, stem: str, explain: bool) -> list[Path]:
        image = read_picture(path)
        picture, shown = self.compare(image)
        written = [folder / f"{stem}.png"]
        write_with(written[0], Image.fromarray(picture).save)
        logger.info("%s: %d detections, see %s", path, shown, written[0])
        for number, figure in enumerate(self.explain(image, shown=shown) if explain else (), 1):
            written.append(folder / f"{stem}_why_{number}.png")
            write_with(written[-1], functools.partial(figure.savefig, dpi=150))
        return written

    def _video(self, path: str, target: Path) -> Path:
        with atomic_path(target) as partial:
            count = self._write_video(path, partial)
        logger.info("%s: %d frames, see %s", path, count, target)
        return target

    def _write_video(self, path: str, target: Path) -> int:
        writer: Any = None
        count = 0
        for frame, rate in frames(path):
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
        return count


def _least(found: Instances) -> str:
    """Words on how many are shown, and down to which score."""
    if not len(found):
        return ": nothing"
    return f": the best {len(found)}, scores from {found.scores.min():.2f}"


def draw_each(
    paths: Sequence[str],
    output: str | os.PathLike,
    draw: Callable[[str, Path, str], list[Path]],
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Draws inputs under names that are neither an input's nor another's.

    Args:
        paths: pictures and videos.
        output: folder; made.
        draw: takes an input, the folder and the stem to write under; gives what it wrote.

    Returns:
        What was written, and the inputs that could not be read, each with the reason.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    kept = _stems_of_inputs(paths, folder)
    written: list[Path] = []
    skipped: list[tuple[str, str]] = []
    for path in paths:
        stem = _unused_name(path, kept | {one.stem for one in written})
        try:
            written += draw(path, folder, stem)
        except UnreadableError as error:
            logger.warning("Skipped %s: %s", path, error)
            skipped.append((os.fspath(path), str(error)))
    return written, skipped


def _stems_of_inputs(paths: Sequence[str], folder: Path) -> set[str]:
    """Names in an output folder that would replace an input."""
    files = [Path(os.path.realpath(path)) for path in paths]
    stems = {one.stem for one in files if one.parent == Path(os.path.realpath(folder))}
    return stems | {re.sub(r"_why_\d+$", "", stem) for stem in stems}


def _unused_name(path: str, taken: set[str]) -> str:
    """The stem of a path, with a number where it is taken."""
    stem = Path(path).stem
    names = (f"{stem}_{number}" if number else stem for number in range(len(taken) + 1))
    return next(name for name in names if name not in taken)
