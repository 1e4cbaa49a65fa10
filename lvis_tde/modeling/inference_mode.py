"""A trained model made ready for inference: the same detections sooner, the weights untouched.

    optimize_for_inference(model)                  float32, equal up to rounding
    optimize_for_inference(model, torch.bfloat16)  half precision where it is safe
    restore(model)                                 as it was

Convolutions get weights with the batch norm behind them folded in, channels last, in the data type
asked for (:mod:`.fast_convolution`), and the CPU pools regions faster (:mod:`.roi_align`). What
they are made from stays where it is, so checkpoints are what they were, and new weights are seen
when they are loaded. With gradients enabled, or traced, the model is as without
all this, so it trains as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.layers import Conv2d
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .fast_convolution import Convolution, as_without, full
from .image_classifier import ImageClassifier
from .roi_align import Pooling

__all__ = ["DTYPES", "check_dtype", "named_dtype", "optimize_for_inference", "restore"]

# By the names of MODEL.TDE.INFERENCE_DTYPE.
DTYPES = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def named_dtype(name: str) -> torch.dtype | None:
    """The data type of a name in a config.

    Raises:
        ValueError: if it is none of ``DTYPES``.
    """
    if name not in DTYPES:
        raise ValueError(
            f"The data type of inference is {name!r} (MODEL.TDE.INFERENCE_DTYPE, of a LazyConfig "
            'train.inference_dtype): it is "bfloat16", "float16", or "" for float32.'
        )
    return DTYPES[name]


def optimize_for_inference(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Makes a trained model faster where no gradients are asked for.

    Only backbone, proposal network, box head, box regression and mask head take ``dtype``.
    Classifier, TDE, box decoding, NMS and what is made of mask logits stay in float32. A second
    call replaces the first.

    What changes a weight behind PyTorch's back, ``weight.data.copy_(...)``, wants a second call.

    Args:
        model: a :class:`GeneralizedRCNN` with any ROI heads, or an :class:`ImageClassifier`, in
            eval mode; or a DistributedDataParallel around one.
        dtype: None for float32 with the same detections up to rounding; bfloat16, on CPUs that
            have it and on GPUs; float16, on GPUs.

    Returns:
        nn.Module: ``model`` itself.

    Raises:
        ValueError: if the model is in training mode or of another kind, or it cannot have the
            ``dtype``.
    """
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    _check(inner)
    check_dtype(dtype, inner.device)
    restore(inner)
    for module, name, stage in _stages(inner, dtype):
        setattr(module, name, stage)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undoes :func:`optimize_for_inference`, if there is anything to undo.

    Returns:
        nn.Module: ``model`` itself.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, (_Stage, _Pooling, _InPlace, Convolution)):
                delattr(module, name)
    return model


def check_dtype(dtype: torch.dtype | None, device: torch.device | str) -> None:
    """
    Raises:
        ValueError: if inference has no such data type on a device.
    """
    if dtype not in DTYPES.values():
        raise ValueError(
            f"dtype={dtype} is none for inference: give torch.bfloat16, torch.float16, or None for "
            "float32."
        )
    if dtype == torch.float16 and torch.device(device).type == "cpu":
        raise ValueError(
            "torch.float16 is for GPUs: on a CPU it is slower than float32. Take torch.bfloat16 "
            "(MODEL.TDE.INFERENCE_DTYPE bfloat16)."
        )


def _check(model):
    if not isinstance(model, (GeneralizedRCNN, ImageClassifier)):
        raise ValueError(
            f"{type(model).__name__} is neither a GeneralizedRCNN nor an ImageClassifier, and no "
            "other model can be optimized for inference."
        )
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode: call model.eval() first.")


def _stages(model, dtype) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yields what is put in place: (module, attribute, callable)."""
    parts = [model.backbone]
    generator, heads = (getattr(model, n, None) for n in ("proposal_generator", "roi_heads"))
    # Whoever else reads the features knows nothing of the data type.
    exclusive = type(model).inference is GeneralizedRCNN.inference if heads else False
    if isinstance(generator, RPN):
        parts.append(generator.rpn_head)
        yield generator.rpn_head, "forward", _Stage(generator.rpn_head.forward, dtype)
    # Nor do heads of keypoints.
    kept = exclusive and isinstance(generator, RPN) and not hasattr(heads, "keypoint_head")
    yield model.backbone, "forward", _Stage(model.backbone.forward, dtype, _same if kept else full)
    if heads is not None:
        for module in heads.children():
            faster = isinstance(vars(module).get("forward"), Pooling)
            if isinstance(module, ROIPooler) and not faster:
                yield module, "forward", _Pooling(module)
        box_heads = getattr(heads, "box_head", None)
        box_heads = box_heads if isinstance(box_heads, nn.ModuleList) else [box_heads]
        for module in (*box_heads, getattr(heads, "res5", None)):
            if module is not None:
                parts.append(module)
                yield module, "forward", _Stage(module.forward, dtype)
        for predictor in heads.modules():
            # With a box for each class it is the largest product behind the box head.
            if isinstance(predictor, FastRCNNOutputLayers):
                layer = predictor.bbox_pred
                yield layer, "forward", _Stage(layer.forward, dtype)
        mask_head = getattr(heads, "mask_head", None)
        if mask_head is not None:
            parts.append(mask_head)
            yield mask_head, "forward", _Stage(mask_head.forward, dtype, _same)
            for layer in mask_head.children():
                if type(layer) is nn.ReLU:  # behind the deconvolution
                    yield layer, "forward", _InPlace()
            if hasattr(mask_head, "select_logits"):
                stage = _Stage(mask_head.select_logits, dtype)
                yield mask_head, "select_logits", stage
    for part in parts:
        for name, layer in part.named_modules():
            if type(layer) in (Conv2d, nn.Conv2d) and layer.padding_mode == "zeros":
                yield layer, "forward", Convolution(layer, dtype, full=name == "predictor")


def _same(result):
    return result


class _Stage:
    """A method under autocast, and what it gives in float32. Copies of a model take it along."""

    def __init__(self, original: Any, dtype: torch.dtype | None, after: Callable = full):
        self._original, self._dtype, self._after = original, dtype, after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if as_without() or self._dtype is None:
            return self._original(*args, **kwargs)
        device = next(self._original.__self__.parameters()).device.type
        with torch.autocast(device, dtype=self._dtype):
            result = self._original(*args, **kwargs)
        return self._after(result)


class _Pooling(Pooling):
    """One that :func:`restore` takes away, and that gradients do not meet."""

    def __call__(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        if as_without():
            return type(self.pooler).forward(self.pooler, x, box_lists)
        return super().__call__(x, box_lists)


class _InPlace:
    """A ReLU of what nobody else holds."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.relu() if as_without() else x.relu_()
