"""What a classifier makes of pictures without and with TDE, and why."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import inference_context

from .calibration.explain import Explanation, explain_images
from .data.files import write_with
from .data.pictures import read_picture
from .modeling.image_classifier import ImageClassifier
from .predictor import ClassInfo, draw_each
from .visualization.charts import plot_explanation
from .visualization.classified import draw_classified
from .visualization.palette import TOP1_GROUPS

__all__ = ["ImageDemo"]

logger = logging.getLogger(__name__)


class ImageDemo:
    """Draws the classes that a model gives to pictures, as :class:`TDEDemo` does detections."""

    def __init__(
        self,
        model: ImageClassifier,
        prepare: Callable[[np.ndarray], dict],
        classes: ClassInfo,
        *,
        panel_size: int = 360,
        top: int = 6,
    ):
        """
        Args:
            model: trained; used with its own settings, and with none.
            prepare: makes the model's input of an RGB picture, such as ``Recipe.prepare``.
            classes: see :func:`~lvis_tde.predictor.classes_of`.
            panel_size: side of the picture in the drawing, in pixels.
            top: classes that are shown: those with the highest probabilities.

        Raises:
            ValueError: if ``top`` or ``panel_size`` is not positive.
        """
        for name, value in {"top": top, "panel_size": panel_size}.items():
            if value < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"{name}={value} (--{flag}) shows nothing: it must be at least 1.")
        self.model = model.eval()
        self.classes = classes
        self.panel_size = panel_size
        self.top = top
        self._input = prepare
        # Inputs that could not be read, and why.
        self.skipped: list[tuple[str, str]] = []

    def explain(self, image: np.ndarray) -> Explanation:
        """The parts of the prediction for a picture.

        Args:
            image: RGB, (H, W, 3) uint8.
        """
        with inference_context(self.model), torch.no_grad():
            return explain_images(self.model, [self._input(image)])

    def run(
        self, paths: Sequence[str], output: str | os.PathLike, *, explain: bool = False
    ) -> list[Path]:
        """Writes ``NAME.png`` for every picture, and ``NAME_why.png`` if ``explain``.

        Args:
            paths: images.
            output: folder. Of two equal names the second gets a number.
            explain: write charts of the logits, too.

        Returns:
            list: what was written. What cannot be read as a picture, such as a video, is skipped,
            with a warning, and noted in :attr:`skipped`.
        """
        written, self.skipped = draw_each(
            paths, output, functools.partial(self._picture, explain=explain)
        )
        return written

    def _picture(self, path: str, folder: Path, stem: str, explain: bool) -> list[Path]:
        image = read_picture(path)
        parts = self.explain(image)
        options: dict[str, Any] = {
            "class_names": self.classes.names,
            "class_frequency": self.classes.frequency,
            "top": self.top,
        }
        figures = {f"{stem}.png": draw_classified(image, parts, side=self.panel_size, **options)}
        if explain:
            figures[f"{stem}_why.png"] = plot_explanation(
                parts, 0, group_names=TOP1_GROUPS, **options
            )
        for name, figure in figures.items():
            write_with(folder / name, functools.partial(figure.savefig, dpi=100))
        best = self.classes.names[int(parts.probs[0].argmax())]
        logger.info("%s: %s, see %s", path, best, folder / f"{stem}.png")
        return [folder / name for name in figures]
