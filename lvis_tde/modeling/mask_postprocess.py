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

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..evaluation.rle import encode_changes, encode_crops, rle_dicts
from .intercept import intercepted
from .mask_runs import changes

__all__ = ["masks_as_rle", "paste_masks_to_rle", "postprocess_to_rle"]


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
    # The crops of all boxes, in whole pixels.
    limit = boxes.new_tensor([width, height])
    low = (boxes[:, :2].floor() - 1).clamp(min=0).minimum(limit)
    high = (boxes[:, 2:].ceil() + 1).minimum(limit).maximum(low)
    crops = torch.cat([low, high], dim=1).cpu().numpy().astype(np.int64)
    size = boxes[:, 2:] - boxes[:, :2]
    usual = (size > 0).all(dim=1) & boxes.isfinite().all(dim=1)
    usual &= masks.flatten(1).isfinite().all(dim=1) & (masks.dtype == torch.float32)
    usual &= boxes.dtype == torch.float32
    shape, usual = (height, width), usual.cpu().numpy()
    rest = np.flatnonzero(~usual)
    pasted = (
        _paste_crop(masks[i], boxes[i], crops[i].tolist(), threshold).cpu().numpy()
        for i in rest.tolist()
    )
    found = np.empty(len(masks), dtype=object)
    found[rest] = rle_dicts(*encode_crops(pasted, crops[rest, :2], shape), shape)
    masks, boxes = masks.detach().cpu().float()[usual], boxes.detach().cpu().numpy()[usual]
    owner, position = changes(masks, boxes, crops[usual], height, threshold)
    found[usual] = rle_dicts(*encode_changes(owner, position, len(masks), shape), shape)
    return found.tolist()


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
    along_x, along_y = _grid(x0, x1, box[0], box[2]), _grid(y0, y1, box[1], box[3])
    grid = torch.stack(torch.meshgrid(along_x, along_y, indexing="xy"), dim=-1).to(mask.dtype)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= threshold


def _grid(start, stop, low, high):
    """Pixel centers in the coordinates of ``grid_sample``; upstream's operations in its order."""
    centers = torch.arange(start, stop, device=low.device, dtype=torch.float32) + 0.5
    return (centers - low) / (high - low) * 2 - 1
