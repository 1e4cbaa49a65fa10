"""A trained model made ready for inference: the same detections sooner, the weights untouched.

    optimize_for_inference(model)                  float32, equal up to rounding
    optimize_for_inference(model, torch.bfloat16)  half precision where it is safe
    restore(model)                                 as it was

Convolutions get weights with the batch norm behind them folded in, channels last, in the data type
asked for; on the CPU those of 3x3 in float32 take a quarter of the multiplications
(:mod:`.winograd`). What they are made from stays where it is, so checkpoints are what they were, and
new weights are seen when they are loaded. With gradients enabled, or traced, the model is as without
all this, so it trains as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from .image_classifier import ImageClassifier
from .roi_align import pool_regions
from .winograd import pays, transform_weight, winograd_conv2d

__all__ = ["DTYPES", "check_dtype", "named_dtype", "optimize_for_inference", "restore"]

# By the names of MODEL.TDE.INFERENCE_DTYPE.
DTYPES = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

_BATCH_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


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

    Only backbone, proposal network, box head and mask head take ``dtype``. Classifier, TDE, box
    decoding, NMS and what is made of mask logits stay in float32. A second call replaces the first.

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
    inner = model.module if isinstance(model, DistributedDataParallel) else model
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
            if isinstance(value, (_Stage, _Pooling, _InPlace, _Convolution)):
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
    yield model.backbone, "forward", _Stage(model.backbone.forward, dtype, _same if kept else _full)
    if heads is not None:
        for module in heads.children():
            if isinstance(module, ROIPooler):
                yield module, "forward", _Pooling(module)
        box_heads = getattr(heads, "box_head", None)
        box_heads = box_heads if isinstance(box_heads, nn.ModuleList) else [box_heads]
        for module in (*box_heads, getattr(heads, "res5", None)):
            if module is not None:
                parts.append(module)
                yield module, "forward", _Stage(module.forward, dtype)
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
                yield layer, "forward", _Convolution(layer, dtype, full=name == "predictor")


def _same(result):
    return result


def _full(result):
    """Floating tensors in float32 at least, in whatever holds them."""
    if isinstance(result, Tensor):
        half = result.dtype in (torch.bfloat16, torch.float16)
        return result.float() if half else result
    if isinstance(result, dict):
        return {name: _full(value) for name, value in result.items()}
    if isinstance(result, (list, tuple)):
        return type(result)(map(_full, result))
    return result


def _as_without() -> bool:
    return torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()


class _Stage:
    """A method under autocast, and what it gives in float32. Copies of a model take it along."""

    def __init__(self, original: Callable, dtype: torch.dtype | None, after: Callable = _full):
        self._original, self._dtype, self._after = original, dtype, after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _as_without() or self._dtype is None:
            return self._original(*args, **kwargs)
        device = next(self._original.__self__.parameters()).device.type
        with torch.autocast(device, dtype=self._dtype):
            result = self._original(*args, **kwargs)
        return self._after(result)


class _Pooling:
    """Pools regions, on the CPU in the type of the features and without a copy of them."""

    def __init__(self, pooler: ROIPooler):
        self._pooler = pooler

    def __call__(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        pooler = self._pooler
        if _as_without():
            return type(pooler).forward(pooler, x, box_lists)
        if x[0].is_cpu and all(type(layer) is ROIAlign for layer in pooler.level_poolers):
            return pool_regions(pooler, x, box_lists)
        # Detectron2 rounds the boxes to the type of the features.
        x = [_full(feature).contiguous() for feature in x]
        return type(pooler).forward(pooler, x, box_lists)


class _InPlace:
    """A ReLU of what nobody else holds."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.relu() if _as_without() else x.relu_()


class _Convolution:
    """What a convolution does in inference: one operation, with weights made for it."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype | None, *, full: bool):
        self._layer, self._dtype, self._full = layer, dtype, full
        self._key: Any = None

    def __getstate__(self):
        # Copies and files make the weights anew.
        return {**vars(self), "_key": None, "_weight": None, "_bias": None, "_transformed": None}

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        norm = getattr(layer, "norm", None)
        folds = isinstance(norm, _BATCH_NORMS) and not (
            norm.training and not isinstance(norm, FrozenBatchNorm2d)
        )
        if _as_without() or x.numel() == 0:
            return type(layer).forward(layer, x)
        self._prepare(norm if folds else None)
        x = x.to(self._weight.dtype)
        if self._uses_winograd(x):
            if self._transformed is None:
                self._transformed = transform_weight(self._weight)
            x = winograd_conv2d(x, self._transformed, self._bias)
        else:
            x = x.contiguous(memory_format=torch.channels_last)
            x = _convolve(x, self._weight, self._bias, layer)
        if norm is not None and not folds:
            x = norm(x)
        activation = getattr(layer, "activation", None)
        if activation is F.relu or isinstance(activation, nn.ReLU):
            x = x.relu_()  # what it overwrites is this layer's own
        elif activation is not None:
            x = activation(x)
        return _full(x) if self._full else x

    def _uses_winograd(self, x):
        layer = self._layer
        plain = layer.kernel_size == (3, 3) and layer.groups == 1
        plain = plain and {*layer.stride, *layer.dilation} == {1} and layer.padding in (1, (1, 1))
        if not plain or x.dtype != torch.float32 or not x.is_cpu:
            return False
        return pays((layer.in_channels, layer.out_channels), x.shape[-2:])

    def _prepare(self, norm):
        """Makes the weights, where they have not been made of these parameters yet."""
        layer = self._layer
        sources = [layer.weight, layer.bias]
        if norm is not None:
            sources += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        sources = [source for source in sources if source is not None]
        key = [(s.data_ptr(), s.device, s.dtype, _version(s)) for s in sources]
        if key == self._key:
            return
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            weight, bias = _folded(weight, bias, norm)
        form = dict(dtype=self._dtype or layer.weight.dtype, memory_format=torch.channels_last)
        self._weight = weight.detach().to(**form)
        self._bias = None if bias is None else bias.detach().to(self._weight.dtype)
        self._transformed = None
        self._key = key


def _convolve(x, weight, bias, layer):
    how = layer.stride, layer.padding, layer.dilation, layer.groups
    one_thread = x.is_cpu and torch.get_num_threads() == 1 and torch.backends.mkldnn.is_available()
    if one_thread and weight.shape[2:] == (1, 1) and x.dtype == torch.float32:
        # conv2d would take a slower one for 1x1 on one thread.
        stride, padding, dilation, groups = how
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
    return F.conv2d(x, weight, bias, *how)


def _version(tensor):
    return -1 if tensor.is_inference() else tensor._version


def _folded(weight, bias, norm):
    """Weight and bias, float64, of a convolution with the batch norm behind it."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return weight.double() * scale[:, None, None, None], shift
