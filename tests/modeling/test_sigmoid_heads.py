"""Whole detectors with sigmoids; Detectron2 main's own, with the same weights, are the oracle."""

import inspect

import heads_util as util
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage

from lvis_tde import TDEFastRCNNOutputLayers
from lvis_tde.engine import Trainer
from lvis_tde.engine.lazy import LazyRecipe
from lvis_tde.modeling.sigmoid import BoxPredictor, FixedWeights
from lvis_tde.modeling.swap import swap_box_predictor

HAS_SIGMOIDS = hasattr(FastRCNNOutputLayers, "sigmoid_cross_entropy_loss")
MAIN = pytest.mark.skipif(not HAS_SIGMOIDS, reason="release 0.6 has no sigmoids to compare with")
FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
CONFIGS = (
    FPN,
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
)
EACH = pytest.mark.parametrize("name", CONFIGS)


def sigmoid_config(name, *, tde: bool, federated: bool = True):
    cfg = util.zoo_config(name)
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = federated
    cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES = 10
    MetadataCatalog.get("sigmoid_eighty").class_image_count = [
        {"id": i, "image_count": 1 + i * i} for i in range(80)
    ]
    cfg.DATASETS.TRAIN = ("sigmoid_eighty",)
    cfg.MODEL.TDE.NORM, cfg.MODEL.TDE.ALPHA = "none", 0.5
    if tde:
        cfg.MODEL.ROI_HEADS.NAME = util.TDE_NAMES[cfg.MODEL.ROI_HEADS.NAME]
    return cfg


def with_means(model):
    torch.manual_seed(1)
    for predictor in util.predictors(model):
        predictor.feature_mean.mean.uniform_()
    return model


def assert_same(ours, theirs):
    assert len(ours) > 0 and torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


@MAIN
@EACH
def test_equals_upstream_where_settings_are_neutral(name):
    cfg = sigmoid_config(name, tde=False)
    upstream, batch = util.build(cfg), [util.training_image(cfg)]
    built = util.build(sigmoid_config(name, tde=True), seed=1)
    keys = built.load_state_dict(upstream.state_dict(), strict=False)
    assert not keys.unexpected_keys and all("feature_mean" in key for key in keys.missing_keys)
    swapped = util.build(cfg)
    swap_box_predictor(swapped, norm="none", alpha=0.5)
    assert str(swapped.roi_heads.box_predictor) == str(built.roi_heads.box_predictor)
    losses = []
    for model in (upstream, built, swapped):
        torch.manual_seed(0)
        losses.append(util.step(cfg, model, batch))
    assert losses[0] == losses[1] == losses[2]
    expected = util.infer(upstream, batch)[0]
    for model in (built, swapped):
        for key, value in upstream.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key
        util.assert_trained_and_finite(model, losses[0], util.infer(model, batch))
        assert not torch.equal(util.infer(model, batch)[0].scores, expected.scores)
        for predictor in util.predictors(model):
            predictor.alpha = 0.0
        assert_same(util.infer(model, batch)[0], expected)


@EACH
@pytest.mark.parametrize("norm", ["none", "deconfound"])
def test_trains_and_predicts(name, norm):
    cfg = sigmoid_config(name, tde=True)
    cfg.MODEL.TDE.NORM, cfg.MODEL.TDE.ALPHA_REGION = norm, 0.2
    cfg.MODEL.POSTHOC.KEEP_SUM = "factual"
    model, batch = util.build(cfg), [util.training_image(cfg)]
    losses = util.step(cfg, model, batch)
    util.assert_trained_and_finite(model, losses, util.infer(model, batch))
    for predictor in util.predictors(model):
        assert predictor.use_sigmoid_ce and predictor.strengths == (0.2, 0.5)
        weights = torch.tensor([1.0 + i * i for i in range(80)]).sqrt()
        torch.testing.assert_close(predictor.fed_loss_cls_weights, weights)
    if norm == "deconfound":
        # 80 classes start at 1 percent: a sum of 0.8 and what the objects cost, not of 55.
        assert all(v < 8 for k, v in losses.items() if k.startswith("loss_cls")), losses


def test_the_swap_takes_sigmoids_over_on_both_releases():
    heads = torch.nn.Module()
    old = heads.box_predictor = BoxPredictor(
        ShapeSpec(channels=8),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        num_classes=3,
        use_sigmoid_ce=True,
        use_fed_loss=True,
        get_fed_loss_cls_weights=FixedWeights([1, 2, 3]),
        fed_loss_num_classes=2,
    )
    for norm in ("none", "cosine"):
        heads.box_predictor = old
        new = swap_box_predictor(heads, norm=norm).box_predictor
        assert new.use_sigmoid_ce and new.use_fed_loss and new.fed_loss_num_classes == 2
        assert torch.equal(new.fed_loss_cls_weights, old.fed_loss_cls_weights)
        assert new.cls_score.weight is old.cls_score.weight
        assert new.cls_score.bias is old.cls_score.bias
    heads.box_predictor = old
    with pytest.raises(ValueError, match="use_sigmoid_ce: taken over from the model"):
        swap_box_predictor(heads, use_sigmoid_ce=False)


@pytest.mark.parametrize("heads", list(util.TDE_NAMES.values()))
def test_lazy_config(heads, tmp_path):
    cfg = util.lazy_config(heads)
    own = set(inspect.signature(TDEFastRCNNOutputLayers).parameters) - {"input_shape"}
    for node in util.lazy_stages(cfg):
        for key in own.intersection(node):
            del node[key]
        node.update(
            _target_=BoxPredictor,
            use_sigmoid_ce=True,
            use_fed_loss=True,
            # As in the configs of ViTDet.
            get_fed_loss_cls_weights=lambda: torch.arange(1.0, util.LAZY_CLASSES + 1),
            fed_loss_num_classes=4,
        )
    plain = instantiate(cfg.model)
    recipe = LazyRecipe(cfg)
    recipe.put_tde_on_softmax()
    assert {one.alpha for one in util.predictors(instantiate(recipe.cfg.model))} == {0.0}
    recipe.set_alpha(0.5)
    recipe.save(tmp_path / "config.yaml")
    model = instantiate(LazyConfig.load(str(tmp_path / "config.yaml")).model)
    model.load_state_dict(plain.state_dict(), strict=False)
    batch = [util.lazy_image()]
    with EventStorage():
        losses = {key: loss.item() for key, loss in model(batch).items()}
    util.assert_trained_and_finite(model, losses, util.infer(model, batch))
    for predictor in util.predictors(model):
        assert predictor.fed_loss_cls_weights.tolist() == [1, 2, 3, 4, 5, 6, 7]
        predictor.alpha = 0.0
    plain.load_state_dict(model.state_dict(), strict=False)
    assert_same(util.infer(model, batch)[0], util.infer(plain, batch)[0])


def test_a_softmax_is_not_trained_where_sigmoids_were_asked_for():
    cfg = sigmoid_config(FPN, tde=False, federated=False)
    if HAS_SIGMOIDS:
        assert Trainer.build_model(cfg).roi_heads.box_predictor.use_sigmoid_ce
        return
    with pytest.raises(ValueError, match="no sigmoids in FastRCNNOutputLayers.*TDEROIHeads"):
        Trainer.build_model(cfg)
