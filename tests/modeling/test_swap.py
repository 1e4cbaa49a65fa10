"""The swap against models that were built with TDE from the start, and checkpoints both ways."""

import copy

import heads_util as util
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformRotated
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.rotated_fast_rcnn import RotatedFastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lvis_tde import TDEFastRCNNOutputLayers
from lvis_tde.modeling.postprocess import LargeVocabularyFastRCNNOutputLayers
from lvis_tde.modeling.sigmoid import BoxPredictor, FixedWeights
from lvis_tde.modeling.swap import swap_box_predictor

# One config for each kind of ROI heads; the FPN one has keypoints beside boxes.
CONFIGS = (
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
)
OPTIONS = dict(norm="capsule", num_heads=4, tau=10.0, gamma=0.1, alpha=2.0, mean_momentum=0.5)


def upstream_predictor(cls=FastRCNNOutputLayers, **options):
    options = {"box2box_transform": Box2BoxTransform((1.0, 1.0, 1.0, 1.0)), **options}
    return cls(ShapeSpec(channels=8), num_classes=3, **options)


class ProjectHeads(nn.Module):
    """Heads that know nothing of Detectron2's registry."""

    def __init__(self, box_predictor):
        super().__init__()
        self.box_predictor = box_predictor


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_a_model_built_with_tde_that_loads_the_same_checkpoint(name):
    cfg = util.zoo_config(name)
    softmax = util.build(cfg)
    options = [x for k, v in OPTIONS.items() for x in (f"MODEL.TDE.{k.upper()}", v)]
    cfg.merge_from_list(
        [*options, "MODEL.ROI_HEADS.NAME", util.TDE_NAMES[cfg.MODEL.ROI_HEADS.NAME]]
    )
    built = util.build(cfg, seed=1)
    built.load_state_dict(softmax.state_dict(), strict=False)
    swapped = softmax
    assert swap_box_predictor(swapped, **OPTIONS) is swapped
    assert str(swapped.roi_heads.box_predictor) == str(built.roi_heads.box_predictor)

    batch, losses = [util.training_image(cfg)], []
    for model in (built, swapped):
        torch.manual_seed(0)
        losses.append(util.step(cfg, model, batch))
        util.assert_trained_and_finite(model, losses[-1], [])
    assert losses[0] == losses[1]
    for name, value in built.state_dict().items():
        assert torch.equal(value, swapped.state_dict()[name]), name
    expected, got = util.infer(built, batch)[0], util.infer(swapped, batch)[0]
    assert len(expected) > 0 and torch.equal(expected.scores, got.scores)
    assert torch.equal(expected.pred_boxes.tensor, got.pred_boxes.tensor)


def test_keeps_everything_but_the_classification():
    kept = dict(
        test_score_thresh=0.3,
        test_nms_thresh=0.4,
        test_topk_per_image=7,
        smooth_l1_beta=0.5,
        box_reg_loss_type="giou",
        loss_weight={"loss_box_reg": 3.0},
        cls_agnostic_bbox_reg=True,
    )
    old = upstream_predictor(**kept).double().eval()
    old.cls_score.weight.requires_grad_(False)
    heads = swap_box_predictor(ProjectHeads(old))
    new = heads.box_predictor
    assert isinstance(new, TDEFastRCNNOutputLayers) and not new.training and heads.training
    assert new.bbox_pred is old.bbox_pred and new.cls_score.weight is old.cls_score.weight
    assert new.box2box_transform is old.box2box_transform
    for option in set(kept) - {"cls_agnostic_bbox_reg"}:
        assert getattr(new, option) == kept[option]
    x = torch.rand(5, 8, dtype=torch.double)
    assert torch.equal(new(x)[1], old(x)[1])
    assert not new.feature_mean.mean.any() and new.feature_mean.mean.dtype == torch.float32


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced_softmax", "seesaw", "eqlv2"])
def test_all_of_it_is_on_the_device_of_the_old_one(loss):
    heads = ProjectHeads(upstream_predictor(BoxPredictor, use_sigmoid_ce=loss == "eqlv2"))
    swap_box_predictor(heads.to("meta"), loss=loss)
    assert {t.device.type for t in (*heads.parameters(), *heads.buffers())} == {"meta"}


def test_weights_of_the_federated_loss_are_not_shared_with_the_old_one():
    weights, options = FixedWeights([1.0, 2.0, 3.0]), dict(use_sigmoid_ce=True, use_fed_loss=True)
    options |= dict(get_fed_loss_cls_weights=weights, fed_loss_num_classes=2)
    old = upstream_predictor(BoxPredictor, **options)
    new = swap_box_predictor(ProjectHeads(old)).box_predictor
    old.fed_loss_cls_weights.zero_()
    assert new.fed_loss_cls_weights.tolist() == weights().tolist() == [1.0, 2.0, 3.0]


def test_sigmoids_start_without_tde():
    def alpha(sigmoids, **options):
        heads = ProjectHeads(upstream_predictor(BoxPredictor, use_sigmoid_ce=sigmoids))
        return swap_box_predictor(heads, **options).box_predictor.alpha

    assert [alpha(True), alpha(True, alpha=0.5), alpha(False)] == [0.0, 0.5, 1.5]


def test_an_optimizer_built_before_trains_the_classifier():
    cfg = util.zoo_config(CONFIGS[1])
    model = util.build(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    swap_box_predictor(model)
    before = [p.cls_score.weight.detach().clone() for p in util.predictors(model)]
    with EventStorage():
        sum(model([util.training_image(cfg)]).values()).backward()
    optimizer.step()
    for predictor, weight in zip(util.predictors(model), before):
        assert not torch.equal(predictor.cls_score.weight, weight)


def test_predictors_of_other_projects(caplog):
    class ProjectPredictor(FastRCNNOutputLayers):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.image_score = nn.Linear(8, 3)

        def losses(self, predictions, proposals):
            return {}

        def image_label_losses(self, predictions, proposals):
            return {}

    shared = upstream_predictor(ProjectPredictor)
    stages = nn.ModuleList([upstream_predictor(), upstream_predictor()])
    detector = nn.Sequential(ProjectHeads(shared), ProjectHeads(shared), ProjectHeads(stages))
    swap_box_predictor(detector)
    first, second, cascade = (heads.box_predictor for heads in detector)
    assert isinstance(first, TDEFastRCNNOutputLayers) and first is second
    assert all(isinstance(stage, TDEFastRCNNOutputLayers) for stage in cascade)
    assert cascade[0].feature_mean is not cascade[1].feature_mean
    assert (
        "0.box_predictor is a ProjectPredictor, whose own image_label_losses, image_score, losses "
        "will not be used" in caplog.text
    )
    caplog.clear()
    fast = LargeVocabularyFastRCNNOutputLayers
    swap_box_predictor(ProjectHeads(upstream_predictor(fast)))
    assert "will not be used" not in caplog.text


def test_inside_test_time_augmentation():
    cfg = util.zoo_config(CONFIGS[1])
    wrapped = GeneralizedRCNNWithTTA(cfg, util.build(cfg))
    swap_box_predictor(wrapped)
    assert len(util.predictors(wrapped.model)) == 3


def test_asks_to_be_called_before_distributed_data_parallel(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(ProjectHeads(upstream_predictor()))
        for model in (wrapped, nn.Sequential(wrapped)):
            with pytest.raises(ValueError, match="Swap first, then wrap"):
                swap_box_predictor(model)
        assert type(wrapped.module.box_predictor) is FastRCNNOutputLayers
    finally:
        distributed.destroy_process_group()


def _rotated():
    transform = Box2BoxTransformRotated((1.0, 1.0, 1.0, 1.0, 1.0))
    return upstream_predictor(RotatedFastRCNNOutputLayers, box2box_transform=transform)


def _own_classifier():
    predictor = upstream_predictor()
    predictor.cls_score = nn.Sequential(nn.Linear(8, 4))
    return predictor


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (_rotated, ValueError, r"RotatedFastRCNNOutputLayers\) predicts rotated boxes"),
        (_own_classifier, TypeError, r"cls_score is a Sequential; expected a Linear with 4"),
        (lambda: nn.Linear(2, 2), TypeError, r"box_predictor.1 is a Linear, not a FastRCNNOutput"),
        (
            lambda: upstream_predictor(TDEFastRCNNOutputLayers),
            ValueError,
            r"box_predictor.1 is a TDEFastRCNNOutputLayers already.*`alpha`",
        ),
    ],
)
def test_errors_leave_the_model_as_it_was(bad, error, message):
    heads = ProjectHeads(nn.ModuleList([upstream_predictor(), bad()]))
    before = list(heads.box_predictor)
    with pytest.raises(error, match=message):
        swap_box_predictor(heads)
    assert list(heads.box_predictor) == before


def test_errors_where_there_is_nothing_to_swap():
    with pytest.raises(ValueError, match="Linear has nothing to swap"):
        swap_box_predictor(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="num_heads=3 does not divide the feature size 8"):
        swap_box_predictor(ProjectHeads(upstream_predictor()), num_heads=3)
    with pytest.raises(ValueError, match="num_classes, test_score_thresh: taken over"):
        swap_box_predictor(ProjectHeads(upstream_predictor()), test_score_thresh=0.1, num_classes=3)
    with pytest.raises(TypeError, match="alhpa"):
        swap_box_predictor(ProjectHeads(upstream_predictor()), alhpa=1.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_checkpoints_load_both_ways_with_a_message(name, tmp_path, caplog):
    cfg = util.zoo_config(name)
    softmax = util.build(cfg)
    tde = swap_box_predictor(util.build(cfg, seed=1))
    util.step(cfg, tde, [util.training_image(cfg)])
    expected = copy.deepcopy(tde.state_dict())
    paths = [p for p, m in tde.named_modules() if isinstance(m, TDEFastRCNNOutputLayers)]

    DetectionCheckpointer(softmax, str(tmp_path)).save("softmax")
    DetectionCheckpointer(tde, str(tmp_path)).save("tde")

    DetectionCheckpointer(tde).load(str(tmp_path / "softmax.pth"))
    for path in paths:
        assert (
            f"The checkpoint has {path}.cls_score.bias: its classifier is a softmax" in caplog.text
        )
    for key, value in softmax.state_dict().items():
        assert key.endswith("cls_score.bias") or torch.equal(tde.state_dict()[key], value), key

    caplog.clear()
    DetectionCheckpointer(softmax).load(str(tmp_path / "tde.pth"))
    assert "cls_score.bias" in caplog.text and "feature_mean.mean" in caplog.text
    for key, value in softmax.state_dict().items():
        assert key.endswith("cls_score.bias") or torch.equal(expected[key], value), key

    caplog.clear()
    DetectionCheckpointer(tde).load(str(tmp_path / "tde.pth"))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert all(torch.equal(tde.state_dict()[key], value) for key, value in expected.items())


def test_a_checkpoint_that_lacks_the_mean_alone(caplog):
    predictor = upstream_predictor(TDEFastRCNNOutputLayers)
    state = predictor.state_dict()
    del state["feature_mean.mean"]
    predictor.load_state_dict(state, strict=False)
    assert "no feature_mean.mean: without that mean there is no TDE" in caplog.text
    caplog.clear()
    # A backbone's checkpoint says nothing of the classifier: that is no news.
    predictor.load_state_dict({}, strict=False)
    assert not caplog.text


class CenterNet2Predictor(FastRCNNOutputLayers):
    """What CenterNet2's predictor adds to release 0.6: sigmoids, and chances under another name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.use_sigmoid_ce = self.use_fed_loss = True
        self.register_buffer("freq_weight", torch.tensor([3.0, 1.0, 2.0]))


def test_centernet2s_federated_loss_is_taken_over():
    old = upstream_predictor(CenterNet2Predictor)
    new = swap_box_predictor(ProjectHeads(old), norm="none", num_heads=1).box_predictor
    assert new.use_sigmoid_ce and new.use_fed_loss
    assert torch.equal(new.fed_loss_cls_weights, old.freq_weight)
    assert new.cls_score.weight is old.cls_score.weight and new.cls_score.bias is old.cls_score.bias
