"""Pooling regions on the CPU, and its gradient, against torchvision's RoIAlign."""

import copy

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
