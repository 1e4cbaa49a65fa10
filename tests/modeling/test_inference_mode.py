import copy

import heads_util as util
import pytest
import torch
from classification_util import model_with_mean
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from lvis_tde import optimize_for_inference
from lvis_tde.modeling.fast_convolution import Convolution
from lvis_tde.modeling.inference_mode import check_dtype, named_dtype, restore
from lvis_tde.modeling.winograd import pays, transform_weight, winograd_conv2d

ZOO = {
    "standard": ("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "TDEROIHeads"),
    "upstream": ("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "StandardROIHeads"),
    "cascade": ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", "TDECascadeROIHeads"),
    "c4": ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", "TDERes5ROIHeads"),
    "keypoints": ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "TDEROIHeads"),
}


def _model(kind, agnostic=False):
    name, heads = ZOO[kind]
    cfg = util.zoo_config(name)
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG |= agnostic
    cfg.MODEL.FPN.OUT_CHANNELS = 128  # enough for the fast 3x3 convolutions
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1)
            module.bias.normal_(0, 0.1)
        if hasattr(module, "feature_mean"):
            module.feature_mean.mean.fill_(1)
    return model


def _inputs():
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0)) * 255
    return [{"image": image, "height": 96, "width": 128}]


@torch.no_grad()
def _detect(model):
    return model(_inputs())[0]["instances"]


@pytest.mark.parametrize("kind", list(ZOO))
def test_detections_are_those_of_the_plain_model(kind):
    model = _model(kind, agnostic=kind == "standard")
    state = copy.deepcopy(model.state_dict())
    plain = _detect(model)
    assert len(plain) == 10
    for optimized in (optimize_for_inference(model), copy.deepcopy(model)):
        fast = _detect(optimized)
        torch.testing.assert_close(fast.scores, plain.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            fast.pred_boxes.tensor, plain.pred_boxes.tensor, rtol=0, atol=0.01
        )
        assert fast.pred_classes.equal(plain.pred_classes)
        if plain.has("pred_masks"):
            assert (fast.pred_masks != plain.pred_masks).float().mean() < 1e-3
    optimize_for_inference(model, torch.bfloat16)
    half = _detect(model)
    assert half.scores.dtype == half.pred_boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(half.scores[:3], plain.scores[:3], rtol=0, atol=0.05)
    assert not half.scores.equal(fast.scores)
    now = model.state_dict()
    assert now.keys() == state.keys() and all(now[name].equal(state[name]) for name in state)
    again = _detect(restore(model))
    assert again.scores.equal(plain.scores)
    assert again.pred_boxes.tensor.equal(plain.pred_boxes.tensor)


@torch.no_grad()
def test_images_are_classified_as_by_the_plain_model():
    model = model_with_mean()
    inputs = [{"image": torch.randint(256, (3, 8, 8), dtype=torch.uint8)} for _ in range(5)]
    plain = torch.stack([one["probabilities"] for one in model(inputs)])
    for dtype, error in ((None, 1e-5), (torch.bfloat16, 0.05)):
        optimize_for_inference(model, dtype)
        fast = torch.stack([one["probabilities"] for one in model(inputs)])
        torch.testing.assert_close(fast, plain, rtol=0, atol=error)
        assert dtype is None or not fast.equal(plain)
    restored = torch.stack([one["probabilities"] for one in restore(model)(inputs)])
    assert restored.equal(plain)


def test_a_wrapped_model_is_optimized_within():
    model = _model("standard")
    expected = _detect(optimize_for_inference(copy.deepcopy(model))).scores
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        assert optimize_for_inference(wrapped) is wrapped
        assert _detect(wrapped).scores.equal(expected)
        assert _detect(model).scores.equal(expected)
    finally:
        distributed.destroy_process_group()


def test_new_weights_are_seen_and_training_is_as_without():
    model, other = _model("standard"), _model("standard")
    optimize_for_inference(model, torch.bfloat16)
    before = _detect(model).scores
    with torch.no_grad():
        other.backbone.bottom_up.stem.conv1.weight.mul_(2)
        other.backbone.bottom_up.res2[0].conv1.norm.bias.add_(1)
    model.load_state_dict(other.state_dict())
    expected = _detect(optimize_for_inference(other, torch.bfloat16)).scores
    assert _detect(model).scores.equal(expected) and not before.equal(expected)
    images = model.preprocess_image(_inputs()).tensor
    restored = restore(copy.deepcopy(model))
    ours, theirs = model.backbone(images)["p3"], restored.backbone(images)["p3"]
    assert ours.equal(theirs) and ours.requires_grad


def test_batch_norm_in_training_and_other_norms_are_not_folded():
    for norm in (nn.BatchNorm2d(4), nn.GroupNorm(2, 4)):
        model = _model("standard")
        layer = Conv2d(3, 4, 3, norm=norm, activation=F.relu)
        model.backbone.extra = layer
        x = torch.randn(2, 3, 5, 5)
        with torch.no_grad():
            layer(x)  # moves the statistics
            optimize_for_inference(model.eval())
            fast = layer(x)
            torch.testing.assert_close(fast, restore(model).backbone.extra(x))


@torch.no_grad()
def test_batch_norm_without_statistics_is_not_folded():
    layer = Conv2d(3, 4, 3, norm=nn.BatchNorm2d(4, track_running_stats=False)).eval()
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(Convolution(layer, None, full=True)(x), layer(x))


@pytest.mark.parametrize("padding", ["same", "valid", 1])
def test_padding_of_1x1_in_words_on_one_thread(padding):
    layer, x, threads = (
        nn.Conv2d(8, 4, 1, padding=padding),
        torch.randn(2, 8, 5, 5),
        torch.get_num_threads(),
    )
    try:
        torch.set_num_threads(1)
        with torch.no_grad():
            torch.testing.assert_close(Convolution(layer, None, full=True)(x), layer(x))
    finally:
        torch.set_num_threads(threads)


def test_what_cannot_be_optimized_is_told():
    model = _model("standard")
    with pytest.raises(ValueError, match=r"training mode: call model.eval\(\)"):
        optimize_for_inference(model.train())
    with pytest.raises(ValueError, match="dtype=torch.float64 is none"):
        optimize_for_inference(model.eval(), torch.float64)
    with pytest.raises(ValueError, match="float16 is for GPUs.*bfloat16"):
        check_dtype(torch.float16, "cpu")
    with pytest.raises(ValueError, match="Linear is neither"):
        optimize_for_inference(nn.Linear(1, 1).eval())
    with pytest.raises(ValueError, match="'half'.*INFERENCE_DTYPE.*bfloat16"):
        named_dtype("half")


@pytest.mark.parametrize("size", [(1, 2), (14, 14), (13, 21)])
def test_winograd_is_a_convolution(size):
    x, weight = torch.randn(9, 5, *size).double(), torch.randn(7, 5, 3, 3).double()
    bias, transformed = torch.randn(7).double(), transform_weight(weight)
    expected = F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(winograd_conv2d(x, transformed, bias), expected)
    bare = winograd_conv2d(x, transformed)
    torch.testing.assert_close(bare, F.conv2d(x, weight, padding=1))
    single = winograd_conv2d(x.float(), transform_weight(weight.float()), bias.float())
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)


def test_winograd_pays_for_many_channels_and_full_tiles():
    assert pays((256, 256), (14, 14)) and pays((128, 128), (200, 272))
    assert not pays((64, 64), (200, 272)) and not pays((256, 256), (5, 5))
