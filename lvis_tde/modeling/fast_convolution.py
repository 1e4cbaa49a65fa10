"""What a convolution does in inference, and where it does not.

Batch norm is folded into the weights, which are channels last and in the data type asked for; on
the CPU those of 3x3 in float32 take a quarter of the multiplications (:mod:`.winograd`).
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from .winograd import pays, transform_weight, winograd_conv2d

__all__ = ["Convolution", "as_without", "full"]

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def full(result):
    """Floating tensors in float32 at least, in whatever holds them."""
    if isinstance(result, Tensor):
        half = result.dtype in (torch.bfloat16, torch.float16)
        return result.float() if half else result
    if isinstance(result, dict):
        return {name: full(value) for name, value in result.items()}
    if isinstance(result, (list, tuple)):
        return type(result)(map(full, result))
    return result


def as_without() -> bool:
    """Whether gradients or a trace are wanted, which nothing made for inference gives."""
    return torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()


class Convolution:
    """What a convolution does in inference: one operation, with weights made for it."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype | None, *, full: bool):
        self._layer, self._dtype, self._full = layer, dtype, full
        self._key: Any = None
        self._weight: Any = None
        self._bias: Tensor | None = None
        self._transformed: Tensor | None = None

    def __getstate__(self):
        # Copies and files make the weights anew.
        return {**vars(self), "_key": None, "_weight": None, "_bias": None, "_transformed": None}

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        norm = getattr(layer, "norm", None)
        folds = isinstance(norm, FrozenBatchNorm2d) or (
            isinstance(norm, _BATCH_NORMS) and not norm.training and norm.running_var is not None
        )
        if as_without() or x.numel() == 0:
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
        return full(x) if self._full else x

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
        sources: list[Any] = [layer.weight, layer.bias]
        if norm is not None:
            sources += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        sources = [source for source in sources if source is not None]
        key = [(s.data_ptr(), s.device, s.dtype, _version(s)) for s in sources]
        if key == self._key:
            return
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            weight, bias = _folded(weight, bias, norm)
        dtype = self._dtype or layer.weight.dtype
        self._weight = weight.detach().to(dtype, memory_format=torch.channels_last)
        self._bias = None if bias is None else bias.detach().to(self._weight.dtype)
        self._transformed = None
        self._key = key


def _convolve(x, weight, bias, layer):
    how = layer.stride, layer.padding, layer.dilation, layer.groups
    one_thread = x.is_cpu and torch.get_num_threads() == 1 and torch.backends.mkldnn.is_available()
    if one_thread and weight.shape[2:] == (1, 1) and x.dtype == torch.float32:
        # conv2d would take a slower one for 1x1 on one thread.
        stride, padding, dilation, groups = how
        padding = (0, 0) if isinstance(padding, str) else padding  # "same" and "valid" alike
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
