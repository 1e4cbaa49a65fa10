"""A model's detections as columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from .detections import Detections, id_column
from .rle import encode_masks

__all__ = ["columns"]


def columns(instances: Instances, image_id: Any) -> Detections:
    """Columns of one image.

    Args:
        instances: on the CPU, see :meth:`~.lvis_evaluator.LVISEvaluator.process`.
        image_id: of the annotation file.

    Returns:
        With contiguous classes in place of category ids.
    """
    n = len(instances)
    corners = _numpy(instances.pred_boxes.tensor)
    boxes = instances.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    counts, lengths = np.zeros(0, dtype=np.uint8), np.zeros(n, dtype=np.int32)
    size = (0, 0)
    if n and instances.has("pred_masks_rle"):
        rles = instances.pred_masks_rle
        texts = [r["counts"] for r in rles]
        texts = [t.encode("ascii") if isinstance(t, str) else t for t in texts]
        counts = np.frombuffer(b"".join(texts), dtype=np.uint8)
        lengths = np.array([len(t) for t in texts], dtype=np.int32)
        size = tuple(rles[0]["size"])
    elif n and instances.has("pred_masks"):
        masks = instances.pred_masks
        masks = getattr(masks, "tensor", masks).bool().numpy()
        counts, lengths = encode_masks(masks, corners)
        size = masks.shape[1:]
    return Detections(
        image_ids=id_column([image_id]).repeat(n),
        category_ids=instances.pred_classes.numpy().astype(np.int64),
        scores=_numpy(instances.scores),
        boxes=_numpy(boxes),
        has_box=np.ones(n, dtype=np.bool_),
        counts=counts,
        lengths=lengths,
        sizes=np.tile(np.array(size, dtype=np.int32), (n, 1)),
        mask_area=True,
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    # NumPy has no bfloat16, and half precision widens without loss.
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()
