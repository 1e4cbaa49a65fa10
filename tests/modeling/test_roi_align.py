"""Pooling regions on the CPU, and its gradient, against torchvision's RoIAlign."""

import copy
import math

import pytest
import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from lvis_tde.modeling.roi_align import pool_faster, pool_regions, roi_align


def boxes_of(count, lowest, longest):
    corner = torch.rand(count, 2) * 150 + lowest
    return torch.cat([corner, corner + torch.rand(count, 2) * longest + 1], dim=1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_regions_are_pooled_as_by_torchvision(aligned, sampling_ratio):
    layer = ROIAlign((7, 5), 0.25, sampling_ratio, aligned)
    feature = torch.randn(2, 6, 20, 30)
    corner = torch.rand(50, 2) * 150 - 20
    size = torch.rand(50, 2) * 90
    size[0], size[1] = 0, -5  # empty and inverted
    rois = torch.cat([torch.randint(2, (50, 1)).float(), corner, corner + size], dim=1)
    weights = torch.randn(50, 6, 7, 5)
    features = [feature.clone().requires_grad_() for _ in range(2)]
    found, expected = roi_align(features[0], rois, layer), layer(features[1], rois)
    torch.testing.assert_close(found, expected)
    for result in (found, expected):
        (result * weights).sum().backward()
    torch.testing.assert_close(features[0].grad, features[1].grad, rtol=1e-5, atol=1e-5)
    assert roi_align(feature, rois[:0], layer).shape == (0, 6, 7, 5)


def test_the_gradient_is_that_of_the_sum():
    layer = ROIAlign((2, 3), 0.5, 0, True)
    rois = torch.cat([torch.tensor([[0.0], [1.0], [0.0]]), boxes_of(3, -100, 40) % 16], dim=1)
    feature = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda one: roi_align(one, rois, layer), feature)


def test_double_precision_is_not_rounded():
    layer = ROIAlign((7, 5), 0.3, 0, True)
    rois = torch.cat([torch.zeros(20, 1), boxes_of(20, -30, 90)], dim=1)
    weights = torch.randn(20, 3, 7, 5, dtype=torch.float64)
    features = [torch.randn(1, 3, 40, 50, dtype=torch.float64).requires_grad_()] * 2
    found, expected = roi_align(features[0], rois, layer), layer(features[1], rois)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found, expected = (
        torch.autograd.grad((result * weights).sum(), features[0])[0]
        for result in (found, expected)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("aligned", [True, False])
def test_boxes_far_beyond_the_features(aligned):
    layer = ROIAlign((7, 3), 0.25, 0, aligned)
    feature = torch.randn(1, 4, 20, 30)
    corners = [(-5e4, 20, 6e4, 70), (10, -2e4, 60, 3e4), (5, 5, 1e5, 9), (-1e5, 5, 70, 9)]
    corners += [(-3e3, -2e3, 2e3, 4e3), (200, 5, 1e5, 50), (-1e5, 5, -200, 50), (5, 5, 60, 70)]
    rois = torch.cat([torch.zeros(len(corners), 1), torch.tensor(corners)], dim=1)
    torch.testing.assert_close(roi_align(feature, rois, layer), layer(feature, rois))
    # All but none of its samples are inside; there would be 2**36 of a bin.
    rois[0, 3] = 2e12
    found = roi_align(feature, rois, layer)
    torch.testing.assert_close(found[0], torch.zeros(4, 7, 3))
    torch.testing.assert_close(found[1:], layer(feature, rois[1:]))


@pytest.mark.parametrize("kind", ["ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("scales", [[1 / 4], [1 / 4, 1 / 8]])
def test_boxes_that_are_not_finite(kind, scales):
    features = [torch.randn(1, 4, 64 >> level, 64 >> level) for level in range(len(scales))]
    boxes = boxes_of(5, 0, 50)
    boxes[1] = math.nan
    pooler = ROIPooler(7, scales, 0, kind)
    found = pool_regions(pooler, features, [Boxes(boxes)])
    torch.testing.assert_close(found, pooler(features, [Boxes(boxes)]))
    # Of these torchvision fails or reads out of bounds, as of the first with a sampling ratio.
    boxes[2, 0], boxes[3, 2] = math.nan, math.inf
    known = [0, 4]
    for ratio in (0, 2):
        pooler = ROIPooler(7, scales, ratio, kind)
        found = pool_regions(pooler, features, [Boxes(boxes)])
        torch.testing.assert_close(found[known], pooler(features, [Boxes(boxes[known])]))
        assert not found[1:4].any()


def test_no_images():
    for scales in ([1 / 4], [1 / 4, 1 / 8]):
        pooler = ROIPooler((7, 5), scales, 0, "ROIAlignV2")
        features = [torch.zeros(0, 4, 64, 64).bfloat16() for _ in scales]
        expected = pooler(features, [])
        found = pool_regions(pooler, features, [])
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert roi_align(features[0], torch.zeros(0, 5), pooler.level_poolers[0]).shape[0] == 0


def test_many_regions_are_pooled_in_parts():
    layer = ROIAlign((7, 7), 1.0, 0, True)
    feature = torch.randn(1, 2, 300, 300)
    rois = torch.cat([torch.zeros(40, 1), boxes_of(40, 0, 150)], dim=1)  # 2**20 entries
    torch.testing.assert_close(roi_align(feature, rois, layer), layer(feature, rois))


def test_regions_of_several_levels_and_images():
    pooler = ROIPooler(7, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 0, "ROIAlignV2")
    features = [torch.randn(2, 4, 64 >> level, 64 >> level) for level in range(4)]
    boxes = [Boxes(boxes_of(30, 0, 300)) for _ in range(2)]
    expected = pooler(features, boxes)
    torch.testing.assert_close(pool_regions(pooler, features, boxes), expected)
    half = pool_regions(pooler, [one.bfloat16() for one in features], boxes)
    assert half.dtype == torch.bfloat16 and (half - expected).abs().max() < 0.1
    inverted = [Boxes(torch.tensor([[50.0, 50.0, 40.0, 60.0]]))] * 2  # of no level
    assert torch.equal(pool_regions(pooler, features, inverted), pooler(features, inverted))
    none = [Boxes(torch.zeros(0, 4))] * 2
    assert pool_regions(pooler, features, none).shape == (0, 4, 7, 7)


def test_a_models_poolers_pool_faster_with_the_same_gradient():
    model = torch.nn.Sequential(ROIPooler(7, [1 / 4, 1 / 8], 2, "ROIAlignV2"))
    (pooler,) = pool_faster(copy.deepcopy(model))
    boxes = [Boxes(boxes_of(30, 0, 100)) for _ in range(2)]
    features = [torch.randn(2, 4, 64 >> level, 64 >> level) for level in range(2)]
    weights = torch.randn(60, 4, 7, 7)
    gradients = []
    for one in (pooler, model[0], copy.deepcopy(pooler)):
        own = [feature.clone().requires_grad_() for feature in features]
        result = one(own, boxes)
        gradients.append([result, *torch.autograd.grad((result * weights).sum(), own)])
    assert gradients[0][0].is_contiguous(memory_format=torch.channels_last)
    for found, expected, copied in zip(*gradients):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(found, copied)
    empty = pooler(
        [feature.requires_grad_() for feature in features], [Boxes(torch.zeros(0, 4))] * 2
    )
    assert empty.shape == (0, 4, 7, 7)
    empty.sum().backward()
    assert not features[0].grad.any()
    half = [feature.bfloat16() for feature in features]
    with torch.autocast("cpu"):
        assert torch.equal(pooler(half, boxes), model[0](half, boxes))


def test_other_poolings_take_half_precision_in_inference():
    (pooler,) = pool_faster(torch.nn.Sequential(ROIPooler(7, [1 / 4], 0, "ROIPool")))
    features, boxes = [torch.randn(2, 4, 64, 64)], [Boxes(boxes_of(30, 0, 100)) for _ in range(2)]
    with torch.no_grad():
        found = pooler([feature.bfloat16() for feature in features], boxes)
    torch.testing.assert_close(found, pooler(features, boxes), rtol=0.01, atol=0.01)
