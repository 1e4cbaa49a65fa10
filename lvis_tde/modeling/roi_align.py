"""RoIAlign on the CPU as one weighted sum of feature vectors for each bin.

torchvision's reads one channel at a time from wherever its four neighbors lie. With the channels
last they are rows of a table, and a bin is a bag of rows with weights: ``embedding_bag``, which is
vectorized, takes half precision and leaves the regions channels last, as convolutions want them.

Shape shorthand in this module:

    R: regions, C: channels, S: side of the pooled regions.
"""

from __future__ import annotations

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

__all__ = ["pool_regions", "roi_align"]


def pool_regions(pooler: ROIPooler, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
    """What an :class:`ROIPooler` of :class:`ROIAlign` gives.

    Args:
        pooler: whose settings are taken.
        features: of each level (N, C, H, W), all of one floating type, on the CPU.
        boxes: of each of N images.

    Returns:
        (R, C, S, S), channels last, in the type of the features.
    """
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
    for level, (layer, feature) in enumerate(zip(pooler.level_poolers, features)):
        (where,) = (levels == level).nonzero(as_tuple=True)
        pooled = roi_align(feature, rois[where], layer)
        result.index_copy_(0, where, pooled.permute(0, 2, 3, 1))
    return result.permute(0, 3, 1, 2)


def roi_align(feature: Tensor, rois: Tensor, layer: ROIAlign) -> Tensor:
    """``layer(feature, rois)``, equal up to rounding.

    Args:
        feature: (N, C, H, W) of a floating type; best channels last.
        rois: float32 (R, 5), index of the image and the box, XYXY.
        layer: whose settings are taken.

    Returns:
        (R, C, S, S), channels last, in the type of ``feature``.
    """
    (height, width), (tall, wide) = feature.shape[2:], layer.output_size
    corners = rois[:, 1:] * layer.spatial_scale - (0.5 if layer.aligned else 0.0)
    extent = corners[:, 2:] - corners[:, :2]
    if not layer.aligned:
        extent = extent.clamp(min=1)
    ys = _Axis(corners[:, 1], extent[:, 1], tall, height, layer.sampling_ratio)
    xs = _Axis(corners[:, 0], extent[:, 0], wide, width, layer.sampling_ratio)

    # The samples of all bins of all regions in a row; each has two neighbors on either axis.
    samples = ys.samples * xs.samples
    bags = samples.repeat_interleave(tall * wide)
    region = torch.arange(len(rois)).repeat_interleave(samples * tall * wide)
    ends = bags.cumsum(0)
    index = torch.arange(int(bags.sum())) - (ends - bags).repeat_interleave(bags)
    cell = torch.arange(tall * wide).repeat(len(rois)).repeat_interleave(bags)
    across = xs.samples[region]
    y = ys.start[region] + (cell // wide) * ys.samples[region] + index // across
    x = xs.start[region] + (cell % wide) * across + index % across
    image = rois[:, 0].long()[region, None, None] * (height * width)
    rows = image + ys.neighbors[y][:, :, None] * width + xs.neighbors[x][:, None]
    weights = ys.weights[y][:, :, None] * xs.weights[x][:, None]
    weights = weights / samples.clamp(min=1)[region, None, None]

    table = feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])
    pooled = F.embedding_bag(
        rows.flatten(),
        table,
        4 * (ends - bags),
        mode="sum",
        per_sample_weights=weights.flatten().to(table.dtype),
    )
    return pooled.view(len(rois), tall, wide, feature.shape[1]).permute(0, 3, 1, 2)


class _Axis:
    """Where the samples of each region lie on one axis.

    Attributes:
        samples: int64 (R,), a bin.
        start: int64 (R,), index of a region's first one in the following.
        neighbors: int64 (samples of all bins of all regions, 2), in [0, size).
        weights: float32, likewise.
    """

    def __init__(self, first: Tensor, extent: Tensor, bins: int, size: int, sampling_ratio: int):
        fixed = sampling_ratio > 0
        per_bin = torch.full_like(extent, sampling_ratio) if fixed else (extent / bins).ceil()
        # torchvision takes none of a region without extent.
        self.samples = per_bin.long().clamp(min=0)
        count = self.samples * bins
        self.start = count.cumsum(0) - count
        region = torch.arange(len(first)).repeat_interleave(count)
        index = torch.arange(len(region)) - self.start[region]
        step = (extent / bins)[region]
        samples = self.samples[region]
        at = first[region] + index.div(samples, rounding_mode="floor") * step
        at = at + (index % samples + 0.5) * step / samples
        inside = (at >= -1) & (at <= size)
        at = at.clamp(0, size - 1)
        low = at.long()
        self.neighbors = torch.stack([low, (low + 1).clamp(max=size - 1)], 1)
        beyond = at - low
        self.weights = torch.stack([1 - beyond, beyond], 1) * inside[:, None]
