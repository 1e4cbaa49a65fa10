"""Encoding from box crops against ``pycocotools`` on whole images, byte by byte."""

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.layers import paste_masks_in_image

from lvis_tde.evaluation.rle import encode_crops, encode_masks, rle_dicts


def whole(masks):
    return [
        mask_utils.encode(np.array(m[:, :, None], order="F", dtype="uint8"))[0]["counts"]
        for m in masks
    ]


def cropped(masks, boxes):
    counts, lengths = encode_masks(masks, boxes)
    ends = np.cumsum(lengths)
    assert counts.dtype == np.uint8 and lengths.dtype == np.int32 and len(lengths) == len(masks)
    return [counts[end - n : end].tobytes() for end, n in zip(ends, lengths)]


def test_masks_pasted_by_detectron2():
    rng = torch.Generator().manual_seed(0)
    size = torch.rand(40, 2, generator=rng) * 200 + 1
    corner = torch.rand(40, 2, generator=rng) * torch.tensor([320.0, 240.0])
    corner = torch.where(size > 40, corner - 30, corner)
    boxes = torch.cat([corner, corner + size], dim=1)
    soft = torch.rand(40, 28, 28, generator=rng).mul(2).sub(0.5).clamp(0, 1)
    masks = paste_masks_in_image(soft, boxes, (240, 320)).numpy()
    assert masks.any(axis=(1, 2)).sum() > 30
    assert cropped(masks, boxes.numpy()) == whole(masks)


@pytest.mark.parametrize("seed", range(4))
def test_random_masks_in_and_out_of_their_boxes(seed):
    rng = np.random.default_rng(seed)
    for _ in range(300):
        n, height, width = rng.integers(0, 5), *rng.integers(1, 12, 2)
        masks = rng.random((n, height, width)) < rng.choice([0, 0.1, 0.5, 0.9, 1])
        boxes = rng.uniform(-5, 15, (n, 4))
        if rng.random() < 0.5:
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.clip(0).astype(int)):
                inside = np.zeros_like(mask)
                inside[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
                mask[:] = inside
        assert cropped(masks, boxes) == whole(masks)


def test_crops_at_corners():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 3), (12, 40)):
        masks, crops, corners = np.zeros((30, height, width), dtype=bool), [], []
        for mask in masks:
            (x0, x1), (y0, y1) = (np.sort(rng.integers(0, n + 1, 2)) for n in (width, height))
            mask[y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < 0.7
            crops.append(mask[y0:y1, x0:x1])
            corners.append((x0, y0))
        rles = rle_dicts(*encode_crops(iter(crops), np.array(corners), masks.shape[1:]), (1, 2))
        assert [rle["counts"].encode() for rle in rles] == whole(masks)
        assert all(rle["size"] == [1, 2] for rle in rles)
    assert rle_dicts(*encode_crops([], np.zeros((0, 2), dtype=int), (4, 5)), (4, 5)) == []


def test_long_runs_full_columns_and_boxes_that_are_not_finite():
    masks = np.zeros((5, 1500, 1300), dtype=bool)
    masks[0, 700:, :] = True
    masks[1, 10, 20] = masks[1, 1498, 1297] = True
    masks[2, :, 300:900] = True
    masks[3] = True
    boxes = np.array([[0, 0, 1300, 1500]] * 5, dtype=float)
    assert cropped(masks, boxes) == whole(masks)
    boxes[:, :2], boxes[0, 2] = np.nan, np.inf
    assert cropped(masks, boxes) == whole(masks)
    assert cropped(masks, np.full((5, 4), 50.0)) == whole(masks)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        encode_masks(np.zeros((1, 4, 4), dtype=np.uint8), np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        encode_masks(np.zeros((1, 4, 4), dtype=bool), np.zeros((2, 4)))
