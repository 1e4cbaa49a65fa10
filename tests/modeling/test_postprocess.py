"""large_vocabulary_inference against Detectron2's fast_rcnn_inference, bit for bit."""

import logging

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_tde.modeling.postprocess import (
    LargeVocabularyFastRCNNOutputLayers,
    large_vocabulary_inference,
)

HEIGHT, WIDTH = 90, 120


def random_boxes(rows, columns, kind, generator):
    """(rows, columns * 4) boxes of one kind; clusters around few objects, partly off the image."""
    objects = torch.rand(7, 4, generator=generator) * torch.tensor([WIDTH, HEIGHT, 50.0, 50.0])
    chosen = objects[torch.randint(7, (rows, 1), generator=generator)]
    chosen = chosen + torch.randn(rows, columns, 4, generator=generator) * 6
    low = chosen[..., :2] - chosen[..., 2:] / 2
    boxes = torch.cat([low, low + chosen[..., 2:]], dim=-1)  # some are inverted
    if kind == "grid":  # IoU is often exactly the threshold
        boxes = torch.cat([low.round(), low.round() + (chosen[..., 2:] / 12).round() * 4], dim=-1)
    elif kind == "empty":
        boxes[::3, :, 2:] = boxes[::3, :, :2]
    elif kind == "same":
        boxes = boxes[:1].expand(rows, columns, 4).clone()
    elif kind == "tiny":
        boxes = boxes * 1e-3
    return boxes.reshape(rows, columns * 4)


def random_scores(rows, classes, kind, generator):
    """(rows, classes + 1) scores; without ties each value occurs once."""
    if kind == "ties":
        return torch.randint(1, 12, (rows, classes + 1), generator=generator) / 16.0
    scores = torch.randperm(rows * (classes + 1), generator=generator) + 1.0
    return (scores / max(scores.numel(), 1)).reshape(rows, classes + 1)


def both(boxes, scores, thresh=1e-4, nms_thresh=0.5, topk=20):
    shapes = [(HEIGHT, WIDTH)] * len(boxes)
    arguments = (boxes, scores, shapes, thresh, nms_thresh, topk)
    return fast_rcnn_inference(*arguments), large_vocabulary_inference(*arguments)


def assert_identical(expected, actual):
    for want, got, want_rows, got_rows in zip(expected[0], actual[0], expected[1], actual[1]):
        assert want.image_size == got.image_size
        assert set(want.get_fields()) == set(got.get_fields())
        assert want.pred_boxes.tensor.dtype == got.pred_boxes.tensor.dtype
        assert torch.equal(want.pred_boxes.tensor, got.pred_boxes.tensor)
        assert torch.equal(want.scores, got.scores)
        assert torch.equal(want.pred_classes, got.pred_classes)
        assert torch.equal(want_rows, got_rows)
    assert len(expected[0]) == len(actual[0]) == len(expected[1]) == len(actual[1])


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    rows=st.sampled_from([0, 1, 40, 300, 900]),
    classes=st.sampled_from([1, 3, 37]),
    specific=st.booleans(),
    kind=st.sampled_from(["plain", "grid", "empty", "same", "tiny"]),
    nms_thresh=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    thresh=st.sampled_from([0.0, 1e-4, 0.7, 2.0]),
    topk=st.sampled_from([-1, 0, 1, 20, 300]),
)
def test_identical_to_upstream_without_ties(
    seed, rows, classes, specific, kind, nms_thresh, thresh, topk
):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(rows, classes if specific else 1, kind, generator)
    scores = random_scores(rows, classes, "distinct", generator)
    assert_identical(*both([boxes], [scores], thresh, nms_thresh, topk))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    rows=st.sampled_from([40, 900]),
    classes=st.sampled_from([1, 9]),
    kind=st.sampled_from(["plain", "grid", "same"]),
    topk=st.sampled_from([-1, 20, 300]),
)
def test_ties_keep_the_multiset_of_scores_and_the_order_of_positions(
    seed, rows, classes, kind, topk
):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(rows, 1, kind, generator)
    scores = random_scores(rows, classes, "ties", generator)
    (want, _), (got, got_rows) = both([boxes], [scores], topk=topk)
    assert torch.equal(want[0].scores, got[0].scores)
    keys = list(zip((-got[0].scores).tolist(), got_rows[0].tolist(), got[0].pred_classes.tolist()))
    assert keys == sorted(keys)


@pytest.mark.parametrize("specific", [False, True])
def test_identical_at_lvis_size_where_upstream_loops_over_classes(specific):
    generator = torch.Generator().manual_seed(3)
    boxes = random_boxes(150, 1203 if specific else 1, "plain", generator)
    scores = random_scores(150, 1203, "distinct", generator)
    expected, actual = both([boxes], [scores], topk=300)
    assert len(actual[0][0]) == 300
    assert_identical(expected, actual)


def test_enlarges_until_enough_survive():
    # 60 000 copies of one box in class 0 outrank all others, so the first candidates all collapse
    # into one detection.
    generator = torch.Generator().manual_seed(4)
    boxes = random_boxes(30_000, 1, "plain", generator)
    scores = random_scores(30_000, 2, "distinct", generator) * 0.5
    boxes[:20_000] = torch.tensor([10.0, 10, 50, 60])
    scores[:20_000, 0] += 0.5
    expected, actual = both([boxes], [scores], topk=25)
    assert len(actual[0][0]) == 25
    assert_identical(expected, actual)


def test_fewer_survivors_than_asked_for():
    boxes = torch.tensor([[10.0, 10, 50, 60]]).expand(2000, 4)
    scores = random_scores(2000, 3, "distinct", torch.Generator().manual_seed(5))
    expected, actual = both([boxes], [scores], topk=300)
    assert len(actual[0][0]) == 3
    assert_identical(expected, actual)


def test_batch_of_unequal_images():
    generator = torch.Generator().manual_seed(6)
    rows = (0, 400, 7)
    boxes = [random_boxes(r, 1, "plain", generator) for r in rows]
    scores = [random_scores(r, 30, "distinct", generator) for r in rows]
    assert_identical(*both(boxes, scores))
    assert large_vocabulary_inference([], [], [], 0.0, 0.5, 10) == ([], [])


def test_inputs_are_left_unchanged():
    generator = torch.Generator().manual_seed(7)
    boxes, scores = random_boxes(90, 1, "plain", generator), random_scores(90, 30, "", generator)
    before = boxes.clone(), scores.clone()
    large_vocabulary_inference([boxes], [scores], [(HEIGHT, WIDTH)], 0.0, 0.5, 10)
    assert torch.equal(before[0], boxes) and torch.equal(before[1], scores)


@pytest.mark.parametrize("rows", [20, 900])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_rows_are_reported_and_indices_stay_those_of_the_input(rows, value, caplog):
    generator = torch.Generator().manual_seed(8)
    boxes = random_boxes(rows, 1, "plain", generator)
    scores = random_scores(rows, 30, "distinct", generator)
    scores[0, 3] = scores[5, -1] = boxes[7, 2] = value
    with caplog.at_level(logging.WARNING, logger="lvis_tde"):
        expected, (got, kept) = both([boxes], [scores])
    assert f"3 of {rows} proposals" in caplog.text

    finite = torch.ones(rows, dtype=torch.bool)
    finite[[0, 5, 7]] = False
    assert_identical((expected[0], [finite.nonzero()[:, 0][expected[1][0]]]), (got, kept))
    assert torch.equal(scores[kept[0], got[0].pred_classes], got[0].scores)


def test_finite_input_raises_no_warning(caplog):
    generator = torch.Generator().manual_seed(9)
    with caplog.at_level(logging.WARNING):
        both([random_boxes(50, 1, "plain", generator)], [random_scores(50, 3, "", generator)])
    assert not caplog.records


@pytest.mark.parametrize("fast", [False, True])
def test_plain_predictor_gives_upstreams_detections(fast):
    torch.manual_seed(0)
    arguments = dict(
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=25,
        test_score_thresh=0.0,
        test_topk_per_image=30,
    )
    predictor = LargeVocabularyFastRCNNOutputLayers(ShapeSpec(channels=16), **arguments)
    predictor.fast_nms = fast
    upstream = FastRCNNOutputLayers(ShapeSpec(channels=16), **arguments)
    upstream.load_state_dict(predictor.state_dict())
    proposal = Instances((HEIGHT, WIDTH))
    proposal.proposal_boxes = Boxes(random_boxes(200, 1, "plain", torch.Generator()))
    predictions = upstream(torch.randn(200, 16) * 20)
    assert_identical(
        upstream.inference(predictions, [proposal]), predictor.inference(predictions, [proposal])
    )


@pytest.mark.parametrize("nms_thresh", [0.3, 0.5, 0.6, 0.7, 0.9])
def test_overlap_at_the_threshold_is_rounded_as_upstream_rounds_it(nms_thresh):
    # In float32 the IoU comes out above, at or below the threshold, depending on its digits.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10 * nms_thresh, 10]])
    scores = random_scores(2, 700, "distinct", torch.Generator().manual_seed(10))
    assert_identical(*both([boxes], [scores], nms_thresh=nms_thresh))
