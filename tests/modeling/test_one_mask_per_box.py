"""Detections that share a box: pooled and convolved once, and the masks of each one alone."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from heads_util import TDE_NAMES, build, predictors, training_image, zoo_config

from lvis_tde.calibration.alpha import predict_for_alphas
from lvis_tde.export import largest_difference, trace_model
from lvis_tde.modeling.mask_head import (
    CosineMaskRCNNConvUpsampleHead,
    SelectedClassMaskRCNNConvUpsampleHead,
)

FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
OURS, COSINE = "SelectedClassMaskRCNNConvUpsampleHead", "CosineMaskRCNNConvUpsampleHead"
UPSTREAMS = "MaskRCNNConvUpsampleHead"


def shared_boxes(name, tde=True):
    """A config whose detections share boxes: 50 of at most 20 regions of an image."""
    cfg = zoo_config(name)
    if tde:
        cfg.MODEL.ROI_HEADS.NAME = TDE_NAMES[cfg.MODEL.ROI_HEADS.NAME]
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    cfg.MODEL.ROI_MASK_HEAD.NAME = OURS
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 9
    cfg.TEST.DETECTIONS_PER_IMAGE = 50
    return cfg


def make(cfg, mask_head=None):
    """A model in eval mode whose masks differ from class to class."""
    if mask_head is not None:
        cfg = cfg.clone()
        cfg.MODEL.ROI_MASK_HEAD.NAME = mask_head
    model = build(cfg).eval()
    generator = torch.Generator().manual_seed(3)
    for predictor in predictors(model):
        predictor.feature_mean.mean.uniform_(0, 1, generator=generator)
    weight = model.roi_heads.mask_head.predictor.weight
    torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(4))
    return model


def inputs(cfg, count=2):
    return [{"image": training_image(cfg, seed=seed)["image"]} for seed in range(count)]


def detections(model, batch):
    with torch.no_grad():
        return model.inference(batch, do_postprocess=False)


class Rows:
    """How many regions a module has been given."""

    def __init__(self, module):
        self.count = 0
        module.register_forward_pre_hook(self._add)

    def _add(self, module, arguments):
        self.count += len(arguments[0])


def num_boxes(found):
    return sum(len(one.pred_boxes.tensor.unique(dim=0)) for one in found)


def assert_same(found, expected, atol=1e-5):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert set(a.get_fields()) == set(b.get_fields())
        for name, value in a.get_fields().items():
            x, y = (getattr(one, "tensor", one) for one in (value, b.get(name)))
            torch.testing.assert_close(x, y, rtol=0, atol=atol)


@pytest.mark.parametrize("name", [FPN, C4, CASCADE])
def test_masks_are_upstreams(name):
    cfg = shared_boxes(name)
    ours, upstreams = make(cfg), make(cfg, UPSTREAMS)
    ours.load_state_dict(upstreams.state_dict())
    heads = ours.roi_heads
    first_layer = "deconv" if name == C4 else "mask_fcn1"
    convolved, rows = Rows(getattr(heads.mask_head, first_layer)), 0
    if name == C4:
        transformed = Rows(heads.res5)
    found = detections(ours, inputs(cfg))
    assert_same(found, detections(upstreams, inputs(cfg)))
    rows = num_boxes(found)
    assert convolved.count == rows < sum(map(len, found))
    if name == C4:  # beside the two images' regions
        assert transformed.count <= rows + 2 * 20
    assert found[0].pred_masks.std() > 0.05


@pytest.mark.parametrize("name", [FPN, C4, CASCADE])
@pytest.mark.parametrize("mask_head", [OURS, COSINE])
def test_masks_are_those_of_each_detection_alone(name, mask_head):
    cfg = shared_boxes(name)
    model = make(cfg, mask_head)
    batch = inputs(cfg, 3)
    with torch.no_grad():
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        found = detections(model, batch)
        found[1] = found[1][:0]  # an image without detections
        together = model.roi_heads.forward_with_given_boxes(features, [one[:] for one in found])
        for image, one in enumerate(together):
            own = {name: value[image : image + 1] for name, value in features.items()}
            for i in range(len(one)):
                alone = Instances(one.image_size)
                alone.pred_boxes, alone.pred_classes = (
                    one.pred_boxes[i],
                    one.pred_classes[i : i + 1],
                )
                (alone,) = model.roi_heads.forward_with_given_boxes(own, [alone])
                torch.testing.assert_close(
                    one.pred_masks[i], alone.pred_masks[0], rtol=0, atol=1e-5
                )
    assert len(together[1]) == 0 and together[1].pred_masks.shape[1:] == one.pred_masks.shape[1:]


def test_no_detections_at_all():
    cfg = shared_boxes(FPN)
    model = make(cfg)
    for predictor in predictors(model):
        predictor.test_score_thresh = 2.0
    assert [one.pred_masks.shape[0] for one in detections(model, inputs(cfg))] == [0, 0]


def test_the_mask_head_alone_convolves_once_per_box():
    cfg = shared_boxes(FPN, tde=False)
    ours, upstreams = make(cfg), make(cfg, UPSTREAMS)
    assert type(ours.roi_heads) is StandardROIHeads
    convolved = Rows(ours.roi_heads.mask_head.mask_fcn1)
    found = detections(ours, inputs(cfg))
    assert_same(found, detections(upstreams, inputs(cfg)))
    assert convolved.count == num_boxes(found) < sum(map(len, found))


def test_keypoints_too():
    cfg = shared_boxes(FPN)
    cfg.MODEL.KEYPOINT_ON = True
    ours, upstreams = make(cfg), make(cfg, UPSTREAMS)
    keypoints = Rows(ours.roi_heads.keypoint_head.conv_fcn1)
    found = detections(ours, inputs(cfg))
    assert_same(found, detections(upstreams, inputs(cfg)), atol=1e-4)
    assert found[0].has("pred_keypoints") and keypoints.count == num_boxes(found)


@pytest.mark.parametrize("name", [FPN, CASCADE])
def test_with_test_time_augmentation(name):
    cfg = shared_boxes(name)
    cfg.TEST.AUG.MIN_SIZES = (64, 80)
    batch = [{**one, "height": 64, "width": 64} for one in inputs(cfg)]
    results, convolved = [], None
    for mask_head in (OURS, UPSTREAMS):
        model = make(cfg, mask_head)
        convolved = convolved or Rows(model.roi_heads.mask_head.mask_fcn1)
        with torch.no_grad():
            results.append([one["instances"] for one in GeneralizedRCNNWithTTA(cfg, model)(batch)])
    ours, upstreams = results
    assert_same(ours, upstreams)
    # Two sizes, each with its mirror image.
    assert 0 < convolved.count == 4 * num_boxes(ours) < 4 * sum(map(len, ours))


@pytest.mark.parametrize("name", [FPN, CASCADE])
def test_for_many_settings(name):
    cfg = shared_boxes(name)
    ours, upstreams = make(cfg), make(cfg, UPSTREAMS)
    convolved = Rows(ours.roi_heads.mask_head.mask_fcn1)
    alphas = [0.0, 1.0, 3.0]
    batch = inputs(cfg, 1)
    found, expected = (predict_for_alphas(one, batch, alphas) for one in (ours, upstreams))
    seen = []
    for (a,), (b,) in zip(found, expected):
        assert_same([a["instances"]], [b["instances"]])
        seen.append(a["instances"].pred_boxes.tensor)
    assert 0 < convolved.count <= 20 < sum(map(len, seen))


@pytest.mark.parametrize("name", [FPN, C4, CASCADE])
def test_a_trace_serves_other_images(name):
    cfg = shared_boxes(name)
    model = make(cfg)
    generator = torch.Generator().manual_seed(5)
    images = [torch.rand(3, *size, generator=generator) * 255 for size in ((64, 96), (128, 112))]
    traced = trace_model(model, images[0])
    assert largest_difference(model, traced, images) < 1e-4
    found = traced(images[1])
    assert num_boxes([found]) < len(found)


def test_boxes_of_their_own_are_untouched():
    cfg = shared_boxes(FPN)
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False
    model = make(cfg)
    torch.nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.01)
    found = detections(model, inputs(cfg))
    assert num_boxes(found) == sum(map(len, found)) > 0
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(inputs(cfg)).tensor)
        again = StandardROIHeads.forward_with_given_boxes(
            model.roi_heads, features, [one[:] for one in found]
        )
    assert all(torch.equal(a.pred_masks, b.pred_masks) for a, b in zip(found, again))


@pytest.mark.parametrize(
    "kind", [SelectedClassMaskRCNNConvUpsampleHead, CosineMaskRCNNConvUpsampleHead]
)
def test_more_boxes_than_are_convolved_at_a_time(kind):
    torch.manual_seed(0)
    head = kind(ShapeSpec(channels=4), num_classes=6, conv_dims=[4, 4]).eval()
    boxes = torch.rand(70, 4)[torch.randint(70, (150,))]
    unique, index = boxes.unique(dim=0, return_inverse=True)
    x = torch.randn(len(unique), 4, 7, 7)[index]
    shared, alone = (Instances((9, 9), pred_classes=torch.randint(6, (150,))) for _ in range(2))
    alone.pred_classes = shared.pred_classes
    shared.pred_boxes = Boxes(boxes)
    with torch.no_grad():
        head(x, [shared])
        head(x, [alone])  # of no known box: each for itself
        under_autocast = [one[:] for one in (shared, alone)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for one in under_autocast:
                head(x, [one])
    torch.testing.assert_close(shared.pred_masks, alone.pred_masks, rtol=0, atol=1e-5)
    a, b = (one.pred_masks for one in under_autocast)
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=0, atol=2e-2)


def test_one_mask_of_all_classes():
    cfg = shared_boxes(FPN)
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    assert_same(*(detections(make(cfg, name), inputs(cfg)) for name in (OURS, UPSTREAMS)))
