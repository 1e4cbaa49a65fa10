"""A whole detector as TorchScript, and how far it is from the model."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import detectron2
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import cascade_rcnn
from detectron2.structures import Instances
from torch import Tensor, nn

from ..modeling.intercept import intercepted
from .common import difference, exported_at

__all__ = ["TracedModel", "largest_difference", "trace_model", "tracing_adapter"]


def tracing_adapter():
    """Detectron2's ``TracingAdapter``, in whichever release.

    Importing its package needs Caffe2 in release 0.6, which current torch has no more. The adapter
    itself does not, so there it is loaded from a package of ours with the same files.
    """
    try:
        from detectron2.export import TracingAdapter

        return TracingAdapter
    except ImportError:
        name = f"{__package__}._detectron2_export"
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(os.path.dirname(detectron2.__file__), "export")]
        sys.modules.setdefault(name, package)
        return importlib.import_module(f"{name}.flatten").TracingAdapter


def _without_gradient_scaling():
    """Leaves out what release 0.6 does to gradients in a cascade's forward pass.

    It is a Python function, which TorchScript cannot save; main has it in training alone.
    """
    scaling = getattr(cascade_rcnn, "_ScaleGradient", None)
    if scaling is None:
        return contextlib.nullcontext()
    return intercepted(scaling, "apply", lambda _, features, scale: features)


def _detect(model: GeneralizedRCNN, inputs: list[dict]) -> list[Instances]:
    return model.inference(inputs, do_postprocess=False)


@dataclass(frozen=True)
class TracedModel:
    """A traced detector.

    Attributes:
        module: TorchScript; takes an image, (3, H, W) float32 in the value range and the channel
            order of the config, and returns the tensors named in ``outputs``. Boxes are in pixels
            of that image, masks (N, 1, M, M) in their boxes.
        outputs: names of the tensors, in order.
        schema: rebuilds ``[Instances]`` from the tensors, as Detectron2's adapter does.
    """

    module: torch.jit.ScriptModule
    outputs: tuple[str, ...]
    schema: Callable

    def __call__(self, image: Tensor) -> Instances:
        """Detections of one image, as ``model.inference([...], do_postprocess=False)[0]``."""
        return self.schema(self.module(image))[0]


def trace_model(model: nn.Module, image: Tensor, alpha: float | None = None) -> TracedModel:
    """Traces a detector for one alpha with Detectron2's ``TracingAdapter``.

    Args:
        model: a :class:`GeneralizedRCNN` with TDE predictors; not changed.
        image: (3, H, W) example with something to detect in it; other sizes work too.
        alpha: strength of the removal, >= 0; default: the model's.

    Returns:
        TracedModel: with ``alpha`` as a constant.

    Raises:
        ValueError: if the model has no TDE predictor, or alpha is positive and the mean zero.
    """
    with exported_at(model, alpha), torch.no_grad(), warnings.catch_warnings():
        # Each says that a Python value becomes a constant; largest_difference finds mistakes.
        warnings.simplefilter("ignore")
        adapter = tracing_adapter()(model, [{"image": image}], _detect)
        with _without_gradient_scaling():
            module = torch.jit.trace(adapter, (image,), check_trace=False)
        # Weights become constants, which need no gradient, whoever runs the module and how.
        module = torch.jit.freeze(module.eval(), optimize_numerics=False)
        found = adapter.outputs_schema(module(image))[0]
    outputs = (*sorted(found.get_fields()), "image_size")
    return TracedModel(module, outputs, adapter.outputs_schema)


@torch.no_grad()
def largest_difference(
    model: nn.Module, traced: TracedModel, images: Sequence[Tensor], alpha: float | None = None
) -> float:
    """Largest difference of any output of a traced model from the model's own.

    Args:
        model: what was traced.
        traced: the result.
        images: (3, H, W) each, of several sizes.
        alpha: as given to :func:`trace_model`.

    Returns:
        float: infinite where the numbers of detections differ, or one is NaN.
    """
    largest = 0.0
    with exported_at(model, alpha):
        for image in images:
            ours, theirs = traced(image).get_fields(), _detect(model, [{"image": image}])[0]
            for name, value in theirs.get_fields().items():
                a, b = (getattr(one, "tensor", one) for one in (ours[name], value))
                largest = max(largest, difference(a, b))
    return largest
