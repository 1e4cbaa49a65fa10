"""A whole classifier of images in both formats, each compared with the model."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from torch import Tensor, nn
from torch.onnx.errors import UnsupportedOperatorError

from ..data.files import atomic_path, write_bytes
from ..modeling.image_classifier import ImageClassifier
from .common import (
    NOTES,
    about,
    add_notes,
    check_differences,
    difference,
    exported_at,
    exporter_options,
    plain_attention,
)

__all__ = ["export_images_onnx", "run_image_export", "trace_classifier"]

logger = logging.getLogger(__name__)


class _Probabilities(nn.Module):
    """Tensors in, tensors out."""

    def __init__(self, model: ImageClassifier):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model({"image": images})["probabilities"]


def trace_classifier(
    model: ImageClassifier, images: Tensor, alpha: float | None = None
) -> torch.jit.ScriptModule:
    """TorchScript of a classifier, for one alpha.

    Args:
        model: not changed.
        images: (N, 3, S, S) float32 example, RGB in [0, 255].
        alpha: strength of the removal, >= 0; default: the model's.

    Returns:
        ScriptModule: images of that kind, of any N, to (N, C) probabilities.

    Raises:
        ValueError: if alpha is positive and the mean zero.
    """
    with exported_at(model, alpha), torch.no_grad(), warnings.catch_warnings():
        # Each says that a Python value becomes a constant; run_image_export finds mistakes.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_Probabilities(model).eval(), (images,), check_trace=False)
        return torch.jit.freeze(traced, optimize_numerics=False)


def export_images_onnx(
    model: ImageClassifier, path: str | os.PathLike, images: Tensor, alpha: float | None = None
) -> None:
    """Writes a classifier as ONNX: ``images`` (N, 3, S, S) to ``probabilities`` (N, C), N free.

    Args:
        model, images, alpha: see :func:`trace_classifier`.
        path: the file to write.

    Raises:
        ImportError: if the package ``onnx`` is not installed.
        ValueError: if alpha is positive and the mean zero.
    """
    with exported_at(model, alpha), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with plain_attention(), atomic_path(path) as partial:
            torch.onnx.export(
                _Probabilities(model).eval(),
                (images,),
                str(partial),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_axes={name: {0: "images"} for name in ("images", "probabilities")},
                **exporter_options(),
            )
            add_notes(partial, model.predictor)


def _run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (found,) = session.run(["probabilities"], {"images": images.cpu().numpy()})
        return torch.from_numpy(found)

    return run


@torch.no_grad()
def run_image_export(
    model: ImageClassifier,
    prepare: Callable[[np.ndarray], dict],
    image: str,
    output: str | os.PathLike,
    *,
    alpha: float | None = None,
    onnx: bool = True,
) -> list[Path]:
    """Writes ``model.ts`` and ``model.onnx``, and compares both with the model.

    Args:
        model: trained.
        prepare: makes the model's input of an RGB picture, such as ``Recipe.prepare``.
        image: a picture.
        output: folder.
        alpha: strength of the removal, >= 0; default: the model's.
        onnx: write ONNX too, unless the network has an operator without ONNX, which is told.

    Returns:
        list: the files.

    Raises:
        RuntimeError: if an exported file does not give what the model gives; it is removed.
        ValueError: see :func:`trace_classifier`.
    """
    folder = Path(output)
    one = prepare(read_image(image, "RGB"))["image"][None].float().to(model.device)
    other = 255 * torch.rand(7, *one.shape[1:], generator=torch.Generator().manual_seed(0))
    batches = one, other.to(model.device)

    def check(file: Path, run: Callable[[Tensor], Tensor]) -> None:
        with exported_at(model, alpha):
            found = [difference(run(batch), _Probabilities(model)(batch)) for batch in batches]
        check_differences({file: max(found)})

    files = [folder / "model.ts"]
    with exported_at(model, alpha):
        notes = {NOTES: json.dumps(about(model.predictor), indent=1)}
    traced = trace_classifier(model, one, alpha)
    write_bytes(files[0], traced.save_to_buffer(_extra_files=notes))
    check(files[0], torch.jit.load(str(files[0])))
    if onnx:
        file = folder / "model.onnx"
        try:
            export_images_onnx(model, file, one, alpha)
        except UnsupportedOperatorError as error:
            logger.warning("ONNX is left out: %s", str(error).partition("\n")[0])
            return files
        check(file, _run_onnx(file))
        files.append(file)
    return files
