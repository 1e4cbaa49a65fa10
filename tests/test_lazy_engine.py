"""LazyConfig: the shipped configs, made small, through the training tool's own functions."""

import json
from argparse import Namespace
from pathlib import Path

import heads_util as util
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage

from lvis_tde import (
    TDECascadeROIHeads,
    TDEFastRCNNOutputLayers,
    TDERes5ROIHeads,
    TDEROIHeads,
    lazy_engine,
)

ROOT = Path(__file__).parent.parent / "configs" / "lazy"
NUM_CLASSES = 7
NAMES = ("mask_rcnn_r50_tde.py", "cascade_rcnn_r101_tde.py")


def small(name):
    """The config with few classes, a small backbone and small heads."""
    cfg = LazyConfig.load(str(ROOT / name))
    bottom_up = cfg.model.backbone.bottom_up
    # Frozen norms without pretrained statistics would let features explode.
    bottom_up.stem.norm = bottom_up.stages.norm = "BN"
    bottom_up.stages.depth = 18
    del bottom_up.stages["stride_in_1x1"]  # not an option of so small a network
    cfg.model.proposal_generator.post_nms_topk = [20, 20]
    heads = cfg.model.roi_heads
    heads.batch_size_per_image = 16
    heads.num_classes = NUM_CLASSES
    for box_head in heads.get("box_heads") or [heads.box_head]:
        box_head.fc_dims = [32, 32]
    for predictor in stages(cfg):
        predictor.input_shape = ShapeSpec(channels=32)
        predictor.test_topk_per_image = 10
    heads.mask_head.conv_dims = [16, 16]
    return cfg


def stages(cfg):
    return cfg.model.roi_heads.get("box_predictors") or [cfg.model.roi_heads.box_predictor]


def image(num_classes):
    cfg = util.zoo_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    return util.training_image(cfg)


def predict(model, batch):
    torch.manual_seed(0)
    for predictor in util.predictors(model):
        predictor.feature_mean.mean.uniform_()
    return util.infer(model, batch)[0]


def test_every_config_is_tested():
    models = [p.name for p in ROOT.glob("*.py") if "model" in LazyConfig.load(str(p))]
    assert sorted(models) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_those_of_lvis(name):
    cfg = LazyConfig.load(str(ROOT / name))
    assert set(cfg) == {"dataloader", "lr_multiplier", "model", "optimizer", "train"}
    assert cfg.model.roi_heads.num_classes == 1203 and cfg.train.max_iter == 180000
    assert len(stages(cfg)) == (3 if "cascade" in name else 1)
    for predictor in stages(cfg):
        assert predictor._target_ is TDEFastRCNNOutputLayers and predictor.num_classes == 1203
        assert predictor.test_topk_per_image == 300 and predictor.test_score_thresh == 1e-4
    rate = instantiate(cfg.lr_multiplier)
    steps = (0, 1000, 119999, 120001, 159999, 160001)
    rates = [rate(step / cfg.train.max_iter) for step in steps]
    assert rates == pytest.approx([0.001, 1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_round_trip(name, tmp_path):
    cfg = small(name)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = LazyConfig.load(str(tmp_path / "config.yaml"))
    LazyConfig.save(again, str(tmp_path / "again.yaml"))
    assert (tmp_path / "config.yaml").read_text() == (tmp_path / "again.yaml").read_text()
    first, second = instantiate(cfg.model), instantiate(again.model)
    assert str(first) == str(second)
    second.load_state_dict(first.state_dict())
    batch = [image(NUM_CLASSES)]
    expected, got = predict(first, batch), predict(second, batch)
    assert len(expected) > 0 and torch.equal(expected.scores, got.scores)


@pytest.mark.parametrize("heads", [TDEROIHeads, TDECascadeROIHeads])
def test_the_registered_heads_take_the_place_of_upstreams(heads):
    cfg = small(NAMES[heads is TDECascadeROIHeads])
    cfg.model.roi_heads._target_ = heads
    model = instantiate(cfg.model)
    assert isinstance(model.roi_heads, heads)
    with EventStorage():
        losses = model([image(NUM_CLASSES)])
    losses = {key: loss.item() for key, loss in losses.items()}
    util.assert_finite(losses, [predict(model, [image(NUM_CLASSES)])])


def test_c4():
    model_config = util.lazy_zoo_model("mask_rcnn_c4")
    model_config.roi_heads.update(_target_=TDERes5ROIHeads)
    model_config.roi_heads.box_predictor.update(
        _target_=TDEFastRCNNOutputLayers, test_score_thresh=0.0
    )
    model_config.proposal_generator.post_nms_topk = [10, 10]
    model_config.backbone.stem.norm = model_config.backbone.stages.norm = "BN"
    model_config.roi_heads.res5.norm = "BN"
    model = instantiate(model_config)
    with EventStorage():
        losses = {key: loss.item() for key, loss in model([image(80)]).items()}
    util.assert_trained_and_finite(model, losses, util.infer(model, [image(80)]))


@pytest.fixture
def arguments(tiny_set, tmp_path):
    """``arguments(name, *overrides)``: the command line for a small model on the tiny set."""

    def make(name, *overrides, eval_only=False):
        path = tmp_path / "small.yaml"
        cfg = small(name)
        for mapper in (cfg.dataloader.train.mapper, cfg.dataloader.test.mapper):
            mapper.augmentations[0].short_edge_length = 64
        LazyConfig.save(cfg, str(path))
        options = [
            f"dataloader.train.dataset.names={tiny_set['train']}",
            f"dataloader.test.dataset.names={tiny_set['val']}",
            "dataloader.train.total_batch_size=2",
            "dataloader.train.num_workers=0",
            "dataloader.test.num_workers=0",
            "optimizer.lr=0.001",
            "train.max_iter=2",
            "train.log_period=1",
            "train.init_checkpoint=''",
            f"train.output_dir={tmp_path / 'output'}",
        ]
        return Namespace(
            config_file=str(path), opts=[*options, *overrides], eval_only=eval_only, resume=False
        )

    return make


@pytest.mark.parametrize("name", NAMES)
def test_trains_evaluates_and_resumes(name, arguments, tmp_path):
    cfg = lazy_engine.setup(arguments(name))
    assert cfg.train.device == ("cuda" if torch.cuda.is_available() else "cpu")
    model = lazy_engine.train(cfg)
    means = [p.feature_mean for p in util.predictors(model)]
    # The rate of the second step, which the running mean must know when the step begins.
    rate = instantiate(cfg.lr_multiplier)(0.5) * 0.001
    assert means and all(mean.lr == pytest.approx(rate) and mean.mean.any() for mean in means)

    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    assert {"segm/APr", "bbox/AP"} <= set(metrics) and any("tde/mean_norm" in k for k in metrics)

    cfg = lazy_engine.setup(arguments(name, "train.max_iter=3"))
    resumed = lazy_engine.train(cfg, resume=True)
    saved = torch.load(tmp_path / "output" / "model_final.pth")
    assert saved["iteration"] == 2
    again = lazy_engine.build_model(cfg)
    DetectionCheckpointer(again).load(str(tmp_path / "output" / "model_final.pth"))
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    results = lazy_engine.evaluate(cfg, again)
    assert {"AP", "APr", "APc", "APf"} <= set(results["bbox"])


def test_missing_inputs_name_path_and_cure(arguments):
    with pytest.raises(FileNotFoundError, match="'no_such_set'.*datasets/README.md"):
        lazy_engine.setup(arguments(NAMES[0], "dataloader.train.dataset.names=no_such_set"))
    with pytest.raises(FileNotFoundError, match="train.init_checkpoint names nowhere.pth"):
        lazy_engine.setup(arguments(NAMES[0], "train.init_checkpoint=nowhere.pth"))
    with pytest.raises(ValueError, match="has 7 classes, but model.roi_heads.num_classes is 5"):
        lazy_engine.setup(arguments(NAMES[0], "model.roi_heads.num_classes=5"))
