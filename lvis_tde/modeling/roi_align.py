"""RoIAlign on the CPU as one weighted sum of feature vectors for each bin.

torchvision's reads one channel at a time from wherever its four neighbors lie. With the channels
last they are rows of a table, and a bin is a bag of rows with weights: ``embedding_bag``, which is
vectorized, takes half precision and leaves the regions channels last, as convolutions want them.
A row that several samples of a bin share is read once. The gradient is the same with the bags
turned around: for each row of the table the bins that have read it.

Shape shorthand in this module:

    R: regions, C: channels, S: side of the pooled regions, E: entries of all bags.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .fast_convolution import full

__all__ = ["Pooling", "pool_faster", "pool_regions", "roi_align"]

# Of a part of the regions, so that what their bags are made from stays in the cache.
_ENTRIES = 2**19

# Where a box asks for more samples a bin than an axis has cells, they lie all but a cell apart: no
# more than those can be inside, and some for what the positions of a long box round.
_MARGIN = 16


def pool_faster(model: nn.Module) -> nn.Module:
    """Lets the ROI poolers of a model pool on the CPU as here; its weights stay as they are.

    Returns:
        nn.Module: ``model`` itself.
    """
    for module in model.modules():
        if isinstance(module, ROIPooler):
            setattr(module, "forward", Pooling(module))  # noqa: B010, mypy has it otherwise
    return model


class Pooling:
    """What a pooler does instead, with its settings: the same up to rounding, and sooner."""

    def __init__(self, pooler: ROIPooler):
        self.pooler = pooler

    def __call__(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        plain = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if not plain and self._takes(x):
            return pool_regions(self.pooler, x, box_lists)
        if not plain and not torch.is_grad_enabled():
            # Detectron2 rounds the boxes to the type of the features.
            x = [full(feature).contiguous() for feature in x]
        return type(self.pooler).forward(self.pooler, x, box_lists)

    def _takes(self, x: list[Tensor]) -> bool:
        """Whether these features are pooled here; gradients are never summed in half precision."""
        exact = torch.finfo(x[0].dtype).bits >= 32 or not torch.is_grad_enabled()
        layers = self.pooler.level_poolers
        return x[0].is_cpu and exact and all(type(layer) is ROIAlign for layer in layers)


def pool_regions(pooler: ROIPooler, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
    """What an :class:`ROIPooler` of :class:`ROIAlign` gives.

    Args:
        pooler: whose settings are taken.
        features: of each level (N, C, H, W), all of one floating type, on the CPU.
        boxes: of each of N images.

    Returns:
        (R, C, S, S), channels last, in the type of the features. Without images it has no
        gradient, as in Detectron2.
    """
    if not boxes:
        return features[0].new_zeros(0, features[0].shape[1], *pooler.output_size)
    rois = convert_boxes_to_pooler_format(boxes)
    result = features[0].new_empty(len(rois), *pooler.output_size, features[0].shape[1])
    levels = torch.zeros(len(rois), dtype=torch.int64)
    if len(features) > 1 and len(rois):
        levels = assign_boxes_to_levels(
            boxes,
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
    # A box of negative or undefined area has no level, and zeros, as in Detectron2.
    result[(levels < 0) | (levels >= len(features))] = 0
    for level, (layer, feature) in enumerate(zip(pooler.level_poolers, features)):
        (where,) = (levels == level).nonzero(as_tuple=True)
        pooled = roi_align(feature, rois[where], layer)
        result.index_copy_(0, where, pooled.permute(0, 2, 3, 1))
    return result.permute(0, 3, 1, 2)


def roi_align(feature: Tensor, rois: Tensor, layer: ROIAlign) -> Tensor:
    """``layer(feature, rois)``, equal up to rounding, and so is the gradient of ``feature``.

    Args:
        feature: (N, C, H, W) of a floating type; best channels last.
        rois: (R, 5), index of the image and the box, XYXY; float32, and rounded no further for
            half precision.
        layer: whose settings are taken.

    Returns:
        (R, C, S, S), channels last, in the type of ``feature``; zeros of a box that is not finite,
        where torchvision has zeros, fails or reads out of bounds.
    """
    n, channels, height, width = feature.shape
    tall, wide = layer.output_size
    table = feature.permute(0, 2, 3, 1).reshape(-1, channels)
    rois = rois.to(torch.promote_types(rois.dtype, feature.dtype))
    rows, weights, bags = _bags(rois, layer, (height, width))
    pooled: Any = _WeightedSums.apply(table, rows, weights.to(table.dtype), bags)
    return pooled.view(len(rois), tall, wide, channels).permute(0, 3, 1, 2)


class _WeightedSums(torch.autograd.Function):
    """Bags of rows of a table, each row with its weight, to their sums."""

    @staticmethod
    def forward(ctx, table, rows, weights, bags):
        """
        Args:
            table: (rows, C).
            rows: int32 (E,), those of the first bag, of the second and so on.
            weights: (E,), in the type of the table.
            bags: int32, number of entries of each.

        Returns:
            (bags, C).
        """
        ctx.save_for_backward(rows, weights, bags)
        ctx.num_rows = len(table)
        return _sums(table, rows, weights, bags)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, weights, bags = ctx.saved_tensors
        order = rows.argsort()
        readers = torch.arange(len(bags), dtype=rows.dtype).repeat_interleave(bags)[order]
        bags = torch.bincount(rows, minlength=ctx.num_rows).to(rows.dtype)
        return _sums(gradient.contiguous(), readers, weights[order], bags), None, None, None


def _sums(table: Tensor, rows: Tensor, weights: Tensor, bags: Tensor) -> Tensor:
    starts = bags.cumsum(0, dtype=rows.dtype) - bags
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def _bags(rois: Tensor, layer: ROIAlign, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Which cells of the features each bin is made of.

    Args:
        rois, layer: see :func:`roi_align`.
        size: height and width of the features.

    Returns:
        int32 (E,), cells counted over all images row by row; (E,), their weights in the type of
        ``rois``; int32 (R * S * S,), how many each bin has.
    """
    corners = rois[:, 1:] * layer.spatial_scale - (0.5 if layer.aligned else 0.0)
    extent = corners[:, 2:] - corners[:, :2]
    if not layer.aligned:
        extent = extent.clamp(min=1)
    finite = extent.isfinite().all(1, keepdim=True)
    # Far outside, and without extent.
    corners, extent = corners.where(finite, -9.0), extent.where(finite, 0.0)
    (height, width), (tall, wide) = size, layer.output_size
    top, y_weights = _axis(corners[:, 1], extent[:, 1], tall, height, layer.sampling_ratio)
    left, x_weights = _axis(corners[:, 0], extent[:, 0], wide, width, layer.sampling_ratio)
    first = (rois[:, 0].long() * (height * width))[:, None, None]
    down = (first + (top[:, :, None] + torch.arange(y_weights.shape[2])) * width).int()
    right = (left[:, :, None] + torch.arange(x_weights.shape[2])).int()

    per_region = max(1, y_weights[:1].numel() * x_weights[:1].numel())
    count = max(1, _ENTRIES // per_region)
    found = []
    for y, x, row, column in zip(
        *(one.split(count) for one in (y_weights, x_weights, down, right))
    ):
        # One long box should not make all others as long.
        y, x = y[:, :, : _longest(y)], x[:, :, : _longest(x)]
        row, column = row[:, :, : y.shape[2]], column[:, :, : x.shape[2]]
        # Not where the product is none: it can underflow.
        has = (y != 0)[:, :, None, :, None] & (x != 0)[:, None, :, None, :]
        (where,) = has.flatten().nonzero(as_tuple=True)
        weights = (y[:, :, None, :, None] * x[:, None, :, None, :]).flatten()
        rows = (row[:, :, None, :, None] + column[:, None, :, None, :]).flatten()
        found.append((rows[where], weights[where]))
    rows, weights = map(torch.cat, zip(*found))
    in_y, in_x = ((one != 0).sum(2, dtype=torch.int32) for one in (y_weights, x_weights))
    return rows, weights, (in_y[:, :, None] * in_x[:, None, :]).flatten()


def _longest(weights: Tensor) -> int:
    used = (weights != 0).flatten(0, 1).any(0)
    return int((used * torch.arange(1, len(used) + 1)).max())


def _axis(
    first: Tensor, extent: Tensor, bins: int, size: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Which cells of one axis the samples of each bin are made of.

    Args:
        first, extent: (R,), where the regions begin and how long they are, in cells.
        bins, sampling_ratio: of the layer.
        size: of the axis.

    Returns:
        int64 (R, bins), the lowest cell; (R, bins, longest), weights of it and of those behind it,
        zero where a bin has none.
    """
    fixed = sampling_ratio > 0
    samples = torch.full_like(extent, sampling_ratio) if fixed else (extent / bins).ceil()
    # torchvision takes none of a region without extent.
    samples = samples.clamp(min=0)[:, None, None]
    step = (extent / bins)[:, None, None]
    count = int(samples.max()) if len(samples) else 0
    near = count if fixed else min(count, size + _MARGIN)
    index = torch.arange(near)
    at = first[:, None, None] + torch.arange(bins)[:, None] * step
    if count > near:
        # The first that can lie inside; without samples it is 0 / 0.
        skipped = ((-1 - at.double()) / step * samples).nan_to_num() - _MARGIN // 2
        index = index + skipped.floor().minimum(samples - near).clamp(min=0).to(step.dtype)
    at = at + (index + 0.5) * step / samples.clamp(min=1)
    inside = (index < samples) & (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.long()
    beyond = at - low
    lowest = low.masked_fill(~inside, size).amin(2) if len(index) else low.sum(2)
    offset = (low - lowest[:, :, None]).masked_fill(~inside, 0)
    longest = int(offset.max()) + 2 if offset.numel() else 1
    weights = at.new_zeros(len(first), bins, longest)
    share = inside / samples.clamp(min=1)
    weights.scatter_add_(2, offset, (1 - beyond) * share)
    weights.scatter_add_(2, offset + 1, beyond * share)
    return lowest, weights
