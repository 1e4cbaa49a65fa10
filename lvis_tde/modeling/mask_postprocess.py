"""Predicted masks straight to COCO run-length encoding (RLE), without masks of image size.

Upstream pastes every instance into a bool mask of the whole image, copies all of them to the CPU
and scans them there. A mask is False outside its box, so the crop of the box holds all there is to
encode. The encodings are byte for byte those of upstream's masks.

    postprocess_to_rle(instances, height, width)   in place of detector_postprocess
    with masks_as_rle(model): ...                  the same for every call of a model
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..evaluation.rle import encode_crops, rle_dicts
from .intercept import intercepted

__all__ = ["masks_as_rle", "paste_masks_to_rle", "postprocess_to_rle"]

# Values this near to the threshold are computed again in the order of operations of upstream.
# Far above the error of two interpolations in float32, about 1e-5.
_BAND = 1e-4


def paste_masks_to_rle(
    masks: torch.Tensor | ROIMasks,
    boxes: Boxes | torch.Tensor,
    image_shape: tuple[int, int],
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """Encode what ``paste_masks_in_image`` (on the CPU) would paste.

    Args:
        masks: Probabilities in [0, 1], (N, M, M) or (N, 1, M, M), on any device.
        boxes: N boxes, XYXY in pixels of the output image.
        image_shape: (height, width) of the output image.
        threshold: Probability from which on a pixel belongs to the instance, in (0, 1].

    Returns:
        Per instance ``{"size": [height, width], "counts": str}``, as in COCO's result files.

    Raises:
        ValueError: If masks and boxes differ in number or the masks are not square.
    """
    boxes = boxes.tensor if isinstance(boxes, Boxes) else boxes
    masks = masks.tensor if isinstance(masks, ROIMasks) else masks
    if masks.dim() == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2] or len(masks) != len(boxes):
        raise ValueError(
            f"expected N square masks and N boxes, got {tuple(masks.shape)} and {len(boxes)} boxes"
        )
    if not masks.is_floating_point():
        masks = masks.float()
    height, width = int(image_shape[0]), int(image_shape[1])
    # The bounds of all crops in one transfer.
    limit = boxes.new_tensor([width, height])
    low = (boxes[:, :2].floor() - 1).clamp(min=0).minimum(limit)
    high = (boxes[:, 2:].ceil() + 1).minimum(limit).maximum(low)
    bounds = torch.cat([low, high], dim=1).int().cpu().numpy()
    crops = (
        _paste_crop(mask, box, crop, threshold).cpu().numpy()
        for mask, box, crop in zip(masks, boxes, bounds.tolist())
    )
    return rle_dicts(*encode_crops(crops, bounds[:, :2], (height, width)), (height, width))


def postprocess_to_rle(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Upstream's ``detector_postprocess``, with the masks as RLEs.

    Args:
        results: Raw output of a detector, ``model.inference(inputs, do_postprocess=False)``, with
            ``pred_masks`` (N, 1, M, M) or without masks. May be modified, as by upstream.
        output_height: Height of the output image.
        output_width: Width of the output image.
        mask_threshold: See :func:`paste_masks_to_rle`.

    Returns:
        Instances in the output image; in place of ``pred_masks`` they have ``pred_masks_rle``,
        the list that :func:`paste_masks_to_rle` returns.
    """
    fields = dict(results.get_fields())
    masks = fields.pop("pred_masks", None)
    if masks is not None:
        fields["roi_masks"] = masks  # a name that upstream filters but does not paste
    results = detector_postprocess(
        Instances(results.image_size, **fields), output_height, output_width
    )
    if masks is not None:
        results.pred_masks_rle = paste_masks_to_rle(
            results.roi_masks, results.pred_boxes, results.image_size, mask_threshold
        )
        results.remove("roi_masks")
    return results


@contextlib.contextmanager
def masks_as_rle(model: nn.Module) -> Iterator[None]:
    """While it is open, a detector predicts ``pred_masks_rle`` in place of ``pred_masks``.

    For evaluators that take both, as :class:`lvis_tde.evaluation.LVISEvaluator` does: what it
    writes and measures stays the same, and no mask of image size is made. Raw results, those of
    ``inference(..., do_postprocess=False)``, stay as they are, so test-time augmentation works.

    Args:
        model: a :class:`GeneralizedRCNN`, or a DistributedDataParallel around one. A model with
            another ``inference``, panoptic ones among them, is left alone.

    Yields:
        Nothing.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    if getattr(type(model), "inference", None) is GeneralizedRCNN.inference:
        with intercepted(model, "inference", _inference_to_rle):
            yield
    else:
        yield


def _inference_to_rle(
    original: Callable[..., Any],
    batched_inputs: Sequence[dict[str, Any]],
    detected_instances: Sequence[Instances] | None = None,
    do_postprocess: bool = True,
) -> list[Any]:
    results = original(batched_inputs, detected_instances, do_postprocess=False)
    if not do_postprocess:
        return results
    outputs = []
    for one, result in zip(batched_inputs, results):
        height, width = one["image"].shape[-2:]
        size = one.get("height", height), one.get("width", width)
        outputs.append({"instances": postprocess_to_rle(result, *size)})
    return outputs


def _paste_crop(mask, box, crop, threshold):
    """The bool crop (y1 - y0, x1 - x0) of what upstream pastes for one mask (M, M)."""
    x0, y0, x1, y1 = crop
    if x0 == x1 or y0 == y1:
        return torch.zeros((y1 - y0, x1 - x0), dtype=torch.bool)
    along_x = _grid(x0, x1, box[0], box[2]).to(mask.dtype)
    along_y = _grid(y0, y1, box[1], box[3]).to(mask.dtype)
    if mask.dtype == torch.float32:
        # Bilinear interpolation on an axis-parallel grid is two small matrix products.
        side = len(mask)
        values = _hat(along_y, side) @ mask @ _hat(along_x, side).T
        pasted = values >= threshold
        rows, columns = ((values - threshold).abs() < _BAND).nonzero(as_tuple=True)
        if len(rows) == 0:
            return pasted
    else:
        pasted = torch.zeros((y1 - y0, x1 - x0), dtype=torch.bool, device=mask.device)
        rows, columns = torch.ones_like(pasted).nonzero(as_tuple=True)
    points = torch.stack([along_x[columns], along_y[rows]], dim=1)
    sampled = F.grid_sample(mask[None, None], points[None, None], align_corners=False)
    pasted[rows, columns] = sampled[0, 0, 0] >= threshold
    return pasted


def _grid(start, stop, low, high):
    """Pixel centers in the coordinates of ``grid_sample``; upstream's operations in its order."""
    centers = torch.arange(start, stop, device=low.device, dtype=torch.float32) + 0.5
    return (centers - low) / (high - low) * 2 - 1


def _hat(grid, side):
    """Linear interpolation weights (len(grid), side) with zeros beyond the border."""
    position = ((grid + 1) * side - 1) / 2
    return (1 - (position[:, None] - torch.arange(side, device=grid.device)).abs()).clamp(min=0)
