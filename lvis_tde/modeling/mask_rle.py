"""Predicted masks straight to COCO run-length encoding (RLE), without masks of image size.

Upstream pastes every instance into a bool mask of the whole image, copies all of them to the CPU
and scans them there. A mask is False outside its box, so the crop of the box holds all there is to
encode. The encodings are byte for byte those of upstream's masks.

    postprocess_to_rle(instances, height, width)     in place of detector_postprocess
    rle_instances_to_coco_json(instances, image_id)  in place of instances_to_coco_json
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

__all__ = ["paste_masks_to_rle", "postprocess_to_rle", "rle_instances_to_coco_json"]

# Values this near to the threshold are computed again in the order of operations of upstream.
# Far above the error of two interpolations in float32, about 1e-5.
_BAND = 1e-4


def paste_masks_to_rle(
    masks: torch.Tensor,
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
    low = (boxes[:, :2].floor() - 1).clamp(min=0)
    high = torch.min(boxes[:, 2:].ceil() + 1, boxes.new_tensor([width, height]))
    crops = torch.cat([low, high], dim=1).int().tolist()
    result = []
    for mask, box, (x0, y0, x1, y1) in zip(masks, boxes, crops):
        if x1 > x0 and y1 > y0:
            crop = _paste_crop(mask, box, (x0, y0, x1, y1), threshold).cpu().numpy()
        else:
            crop = np.zeros((1, 1), dtype=bool)
        result.append(_encode_crop(crop, x0, y0, height, width))
    return result


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


def rle_instances_to_coco_json(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """Upstream's ``instances_to_coco_json`` for the output of :func:`postprocess_to_rle`.

    Args:
        instances: On the CPU, with or without ``pred_masks_rle``.
        image_id: ``image_id`` of the results.

    Returns:
        One result a detection, in COCO's and LVIS's result format.
    """
    results = instances_to_coco_json(instances, image_id)
    if instances.has("pred_masks_rle"):
        for result, rle in zip(results, instances.pred_masks_rle):
            result["segmentation"] = rle
    return results


def _paste_crop(mask, box, crop, threshold):
    """The bool crop (y1 - y0, x1 - x0) of what upstream pastes for one mask (M, M)."""
    x0, y0, x1, y1 = crop
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


def _encode_crop(crop, x0, y0, height, width):
    """RLE of an image that is False but for ``crop``, whose corner is at (x0, y0)."""
    # Column by column, each ended by a False, so that no run crosses into the next column.
    columns = np.zeros((crop.shape[1], crop.shape[0] + 2), dtype=np.int8)
    columns[:, 1:-1] = crop.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    bounds = (column + x0).astype(np.int64) * height + row + y0  # start, end, start, end, ...
    # Runs that meet, the end of one column and the start of the next, are one run.
    meets = np.flatnonzero(bounds[1:-1:2] == bounds[2::2]) * 2 + 1
    bounds = np.delete(bounds, np.concatenate([meets, meets + 1]))
    counts = np.diff(bounds, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = mask_util.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
