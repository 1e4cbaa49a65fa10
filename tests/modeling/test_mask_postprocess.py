"""RLEs from box crops against encodings of upstream's full-size masks, byte for byte."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import GeneralizedRCNN, PanopticFPN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_tde.evaluation import LVISEvaluator
from lvis_tde.modeling.mask_postprocess import (
    masks_as_rle,
    paste_masks_to_rle,
    postprocess_to_rle,
)


def encoded_by_upstream(masks, boxes, shape, threshold=0.5):
    pasted = paste_masks_in_image(masks, boxes, shape, threshold)
    result = []
    for mask in pasted:
        rle = mask_util.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0]
        result.append({"size": rle["size"], "counts": rle["counts"].decode()})
    return result


def random_masks(kind, count, side, generator):
    if kind == "smooth":  # as a network gives them
        coarse = torch.randn(count, 1, 4, 4, generator=generator) * 6
        return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic")[:, 0].sigmoid()
    if kind == "noise":
        return torch.rand(count, side, side, generator=generator)
    if kind == "steps":  # many interpolated values exactly at the threshold
        return torch.randint(0, 3, (count, side, side), generator=generator) / 2.0
    return torch.full((count, side, side), {"full": 1.0, "half": 0.5, "empty": 0.0}[kind])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["smooth", "noise", "steps", "full", "half", "empty"]),
    side=st.sampled_from([1, 14, 28]),
    shape=st.sampled_from([(1, 1), (37, 53), (64, 3), (120, 200)]),
    place=st.sampled_from(["inside", "whole", "wide", "tall", "thin"]),
    whole_pixels=st.booleans(),
    threshold=st.sampled_from([0.5, 0.3, 1.0]),
)
def test_equals_the_encoding_of_upstreams_mask(
    seed, kind, side, shape, place, whole_pixels, threshold
):
    generator = torch.Generator().manual_seed(seed)
    height, width = shape
    limits = torch.tensor([width, height] * 2, dtype=torch.float32)
    corners = torch.rand(4, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
    if place in ("whole", "wide"):
        corners[:, 0], corners[:, 2] = 0, 1
    if place in ("whole", "tall"):
        corners[:, 1], corners[:, 3] = 0, 1
    boxes = corners * limits
    if place == "thin":
        boxes[:, 2:] = boxes[:, :2] + 1e-3
    if whole_pixels:
        boxes = torch.cat([boxes[:, :2].floor(), boxes[:, :2].floor() + 1], dim=1).max(boxes.ceil())
    masks = random_masks(kind, 4, side, generator)
    assert paste_masks_to_rle(masks, boxes, shape, threshold) == encoded_by_upstream(
        masks, boxes, shape, threshold
    )


def test_takes_boxes_channels_and_no_instances():
    masks, boxes = torch.rand(3, 1, 28, 28), torch.rand(3, 4) * 20 + torch.tensor([0, 0, 20.0, 20])
    expected = encoded_by_upstream(masks[:, 0], boxes, (50, 60))
    assert paste_masks_to_rle(masks, Boxes(boxes), (50, 60)) == expected
    assert paste_masks_to_rle(ROIMasks(masks[:, 0]), boxes, (50, 60)) == expected
    assert paste_masks_to_rle(torch.rand(0, 1, 28, 28), Boxes(torch.rand(0, 4)), (5, 6)) == []


def test_boxes_and_masks_of_a_diverged_model_among_others():
    generator = torch.Generator().manual_seed(0)
    masks = random_masks("smooth", 6, 28, generator)
    boxes = torch.tensor([[3.0, 4, 60, 40], [20, 9, 20, 30], [5, 5, 5, 30], [2, 2, 50, 48]] * 2)[:6]
    masks[3, 5, 5], masks[4, 0, 0] = float("nan"), float("inf")
    expected = encoded_by_upstream(masks, boxes, (50, 70))
    assert paste_masks_to_rle(masks, boxes, (50, 70)) == expected
    assert sum(mask_util.area(rle) > 0 for rle in expected) >= 3


def test_bfloat16_masks_equal_upstream():
    try:
        torch.nn.functional.grid_sample(*torch.zeros(2, 1, 1, 1, 2).bfloat16())
    except RuntimeError as error:  # torch before 2.5, upstream's pasting included
        pytest.skip(str(error))
    masks = torch.rand(3, 28, 28).bfloat16()
    boxes = torch.tensor([[0.0, 0, 30, 40], [3.5, 2.25, 11, 12], [7, 7, 50, 9]])
    expected = encoded_by_upstream(masks, boxes, (50, 60))
    assert paste_masks_to_rle(masks, boxes, (50, 60)) == expected


def test_box_outside_the_image_is_empty():
    rle = paste_masks_to_rle(torch.ones(1, 28, 28), torch.tensor([[80.0, 80, 90, 90]]), (20, 30))
    assert mask_util.area(rle) == [0] and rle[0]["size"] == [20, 30]


def test_mismatched_input_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 28, 28\) and 3 boxes"):
        paste_masks_to_rle(torch.rand(2, 28, 28), torch.rand(3, 4), (5, 6))
    with pytest.raises(ValueError, match="square"):
        paste_masks_to_rle(torch.rand(2, 28, 14), torch.rand(2, 4), (5, 6))


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("count", [0, 5])
def test_results_equal_those_of_upstreams_path(with_masks, count):
    def raw():
        generator = torch.Generator().manual_seed(0)
        corner = torch.rand(count, 2, generator=generator) * 60
        corner[3:4] = 500  # empty once clipped: upstream drops it
        instances = Instances((80, 100))
        instances.pred_boxes = Boxes(torch.cat([corner, corner + 25], dim=1))
        instances.scores = torch.rand(count, generator=generator)
        instances.pred_classes = torch.randint(9, (count,), generator=generator)
        if with_masks:
            instances.pred_masks = torch.rand(count, 1, 28, 28, generator=generator)
        return instances

    expected = instances_to_coco_json(detector_postprocess(raw(), 160, 130), 7)
    processed = postprocess_to_rle(raw(), 160, 130)
    assert processed.image_size == (160, 130)
    got = instances_to_coco_json(processed, 7)
    for result, rle in zip(got, processed.get_fields().get("pred_masks_rle", ())):
        result["segmentation"] = rle
    assert got == expected
    assert len(expected) == max(count - 1, 0)


@pytest.fixture
def empty_set(tmp_path):
    path = tmp_path / "images.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    MetadataCatalog.get("masks_as_rle_test").json_file = str(path)
    yield "masks_as_rle_test"
    MetadataCatalog.pop("masks_as_rle_test")


def batch_of_sizes(make_batch):
    batch = make_batch(3)
    batch[0].update(height=100, width=130)
    batch[1].update(height=40)
    del batch[1]["width"], batch[2]["height"], batch[2]["width"]
    return [{**one, "image_id": i} for i, one in enumerate(batch)]


def test_result_file_is_that_of_pasted_masks(tiny_model, make_batch, empty_set, tmp_path):
    model, batch = tiny_model().eval(), batch_of_sizes(make_batch)
    files = []
    for kind in ("pasted", "rle"):
        evaluator = LVISEvaluator(empty_set, distributed=False, output_dir=str(tmp_path / kind))
        with torch.no_grad():
            if kind == "pasted":
                outputs = model(batch)
            else:
                with masks_as_rle(model):
                    outputs = model(batch)
                assert all(o["instances"].has("pred_masks_rle") for o in outputs)
        evaluator.process(batch, outputs)
        evaluator.evaluate()
        files.append((tmp_path / kind / "lvis_instances_results.json").read_bytes())
    assert files[0] == files[1]
    results = json.loads(files[0])
    sizes = {r["image_id"]: r["segmentation"]["size"] for r in results}
    assert sizes == {0: [100, 130], 1: [40, 64], 2: [64, 64]}
    assert sum(mask_util.area(r["segmentation"]) > 0 for r in results) > 5
    assert "inference" not in vars(model)


def test_raw_results_stay_raw(tiny_model, make_batch):
    model, batch = tiny_model().eval(), make_batch(1)
    with torch.no_grad():
        (expected,) = model.inference(batch, do_postprocess=False)
        with masks_as_rle(model):
            (raw,) = model.inference(batch, do_postprocess=False)
            (given,) = model.inference(batch, [raw], do_postprocess=False)
    assert raw.pred_masks.equal(expected.pred_masks) and given.has("pred_masks")


@pytest.mark.parametrize("kind", [PanopticFPN, torch.nn.Linear])
def test_other_models_are_left_alone(kind):
    class Other(kind):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def inference(self):
            return "own"

    assert GeneralizedRCNN.inference is not Other.inference
    model = Other()
    with masks_as_rle(model):
        assert model.inference() == "own" and "inference" not in vars(model)
