"""The ViTDet configs: Detectron2's own files are the oracle, a shrunk model goes the whole way."""

import json
from pathlib import Path

import detectron2
import heads_util as util
import pytest
import torch
from detectron2 import modeling
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from lvis_tde import optimize_for_inference
from lvis_tde.calibration.checkpoint import load_trained
from lvis_tde.engine import checks, load_recipe
from lvis_tde.modeling.sigmoid import FixedWeights, ImageCountWeights, class_weights
from tools import estimate_feature_mean, sweep_alpha, train_net

# Ours, and Detectron2's file of the same model.
NAMES = {
    "mask_rcnn_vitdet_b": "mask_rcnn_vitdet_b_100ep",
    "cascade_rcnn_vitdet_b": "cascade_mask_rcnn_vitdet_b_100ep",
}
FILES = [f"{name}_{kind}" for name in NAMES for kind in ("sigmoid", "tde")]
# A checkout has it, an installed package has not.
PROJECT = Path(detectron2.__file__).parents[1] / "projects" / "ViTDet" / "configs" / "LVIS"


def _has_vit():
    try:
        checks.check_vit()
    except ValueError:
        return False
    return True


needs_vit = pytest.mark.skipif(not _has_vit(), reason="needs Detectron2 main, timm and shapely")
needs_project = pytest.mark.skipif(not PROJECT.is_dir(), reason="needs a checkout of Detectron2")


def load(name):
    return LazyConfig.load(str(util.LAZY / f"{name}.py"))


def shrunk(name):
    """A shipped config at 64 pixels: the same parts, smaller."""
    cfg = load(name)
    heads = cfg.model.roi_heads
    cfg.model.backbone.update(out_channels=32, square_pad=64)
    cfg.model.backbone.net.update(img_size=64, embed_dim=48, depth=2, num_heads=2)
    cfg.model.backbone.net.update(window_size=2, window_block_indexes=[0])
    cfg.model.proposal_generator.head.in_channels = 32
    cfg.model.proposal_generator.post_nms_topk = [20, 20]
    heads.update(num_classes=util.LAZY_CLASSES, batch_size_per_image=16)
    for box_head in heads.get("box_heads") or [heads.box_head]:
        box_head.input_shape = ShapeSpec(channels=32, height=7, width=7)
        box_head.update(conv_dims=[32], fc_dims=[64])
    for stage in util.lazy_stages(cfg):
        stage.update(input_shape=ShapeSpec(channels=64), fed_loss_num_classes=4)
        stage.update(test_score_thresh=0.0, test_topk_per_image=10)
    heads.mask_head.input_shape = ShapeSpec(channels=32, height=14, width=14)
    heads.mask_head.conv_dims = [16, 16]
    return cfg


def leaves(node, path=""):
    """``{path: text}`` of everything in a config."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, (dict, list)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {p: v for key, value in items for p, v in leaves(value, f"{path}.{key}").items()}
    return {path: str(node)}


@pytest.mark.parametrize("name", FILES)
def test_older_releases_are_told_what_is_needed(name, monkeypatch):
    monkeypatch.delattr(modeling, "SimpleFeaturePyramid", raising=False)
    with pytest.raises(ValueError, match="SimpleFeaturePyramid.*main, timm and shapely"):
        load(name)


@pytest.mark.parametrize("there, missing", [("", "timm shapely"), ("timm", "shapely")])
def test_what_is_not_installed_is_asked_for(there, missing, monkeypatch):
    monkeypatch.setattr(modeling, "SimpleFeaturePyramid", object, raising=False)
    monkeypatch.setattr(checks, "find_spec", lambda name: name if name == there else None)
    with pytest.raises(ValueError, match=f"pip install {missing}\\."):
        checks.check_vit()


def test_weights_follow_the_set_that_a_config_names(tiny_set):
    names = [tiny_set["train"]]
    assert torch.equal(ImageCountWeights(names)(), class_weights(names, 0.5))
    assert torch.equal(ImageCountWeights(names, 2.0)(), class_weights(names, 2.0))


def test_every_config_is_tested():
    assert {path.stem for path in util.LAZY.glob("*vitdet*.py")} == set(FILES)


@needs_vit
@pytest.mark.parametrize("name", FILES)
def test_options_are_those_of_lvis(name):
    cfg = load(name)
    assert set(cfg) == {"dataloader", "lr_multiplier", "model", "optimizer", "train"}
    assert cfg.train.output_dir == f"./output/lazy/{name}"
    assert cfg.dataloader.train.dataset.names == "lvis_v1_train"
    assert cfg.dataloader.train.mapper.image_format == cfg.model.input_format == "RGB"
    stages = util.lazy_stages(cfg)
    assert len(stages) == (3 if "cascade" in name else 1)
    for stage in stages:
        assert stage.num_classes == 1203 and stage.test_topk_per_image == 300
        assert stage.use_sigmoid_ce and stage.use_fed_loss
    rate = instantiate(cfg.lr_multiplier)
    steps = (0, 250, 138888, 138890, 150462, 150464)
    rates = [rate(step / cfg.train.max_iter) for step in steps]
    assert rates == pytest.approx([0.001, 1, 1, 0.1, 0.1, 0.01])


@needs_vit
@needs_project
@pytest.mark.parametrize("name", NAMES)
def test_it_is_detectron2s_file(name):
    ours, theirs = load(f"{name}_sigmoid"), LazyConfig.load(str(PROJECT / f"{NAMES[name]}.py"))
    ours, theirs = leaves(ours), leaves(theirs)
    changed = {path for path in {**ours, **theirs} if ours.get(path) != theirs.get(path)}
    changed = {path for path in changed if ".get_fed_loss_cls_weights" not in path}
    assert changed == {".dataloader.evaluator._target_", ".train.eval_period", ".train.output_dir"}


@needs_vit
@pytest.mark.parametrize("name", NAMES)
def test_tde_differs_in_the_classifier_alone(name):
    sigmoid, tde = leaves(load(f"{name}_sigmoid")), leaves(load(f"{name}_tde"))
    changed = {path for path in tde if tde[path] != sigmoid.get(path)}
    assert not set(sigmoid) - set(tde)
    assert {path.rpartition(".")[2] for path in changed} == {
        *("_target_", "norm", "num_heads", "tau", "gamma", "alpha"),
        "output_dir",
    }
    heads = ".model.roi_heads.box_predictor"
    assert all(path.startswith(heads) for path in changed - {".train.output_dir"})


@needs_vit
@needs_project
@pytest.mark.parametrize("theirs", NAMES.values())
def test_detectron2s_file_takes_tde_and_can_be_written(theirs, tmp_path):
    evaluator = "dataloader.evaluator._target_=lvis_tde.evaluation.LVISEvaluator"
    recipe = load_recipe(str(PROJECT / f"{theirs}.py"), [evaluator])
    weights = [stage.get_fed_loss_cls_weights() for stage in util.lazy_stages(recipe.cfg)]
    recipe.put_tde_on_softmax()
    recipe.save(tmp_path / "config.yaml")
    again = load_recipe(str(tmp_path / "config.yaml")).cfg
    for stage, expected in zip(util.lazy_stages(again), weights):
        assert stage._target_ == "lvis_tde.TDEFastRCNNOutputLayers" and stage.norm == "none"
        assert torch.equal(instantiate(stage.get_fed_loss_cls_weights)(), expected)
    assert "num_layers=12" in str(again.optimizer.params.lr_factor_func)


@needs_vit
@pytest.mark.parametrize("name", NAMES)
def test_steps_and_predicts(name):
    torch.manual_seed(0)
    cfg = shrunk(f"{name}_tde")
    for stage in util.lazy_stages(cfg):
        stage.get_fed_loss_cls_weights = L(FixedWeights)(weights=range(1, 8))
    model, batch = instantiate(cfg.model), [util.lazy_image()]
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    before = {key: value.clone() for key, value in model.named_parameters()}
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()
    losses = {key: loss.item() for key, loss in losses.items()}
    util.assert_trained_and_finite(model, losses, util.infer(model, batch))
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert {key for key in moved if ".cls_score." in key} and "backbone.net.pos_embed" in moved
    # RetinaNet's start: a thousand absent classes cost little.
    assert losses[min(key for key in losses if "loss_cls" in key)] < util.LAZY_CLASSES * 0.2
    (plain,) = util.infer(model, batch)
    for dtype, error in ((None, 1e-5), (torch.bfloat16, 0.05)):
        (fast,) = util.infer(optimize_for_inference(model.eval(), dtype), batch)
        torch.testing.assert_close(fast.scores, plain.scores, rtol=0, atol=error)


@needs_vit
@pytest.mark.parametrize("name", NAMES)
def test_the_three_commands(name, tiny_set, tmp_path):
    cfg = shrunk(f"{name}_sigmoid")
    cfg.train.init_checkpoint = ""
    _, resize, crop = cfg.dataloader.train.mapper.augmentations
    resize.update(target_height=64, target_width=64)
    crop.crop_size = [64, 64]
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=64, max_size=64)
    cfg.dataloader.train.update(total_batch_size=2, num_workers=0)
    cfg.dataloader.test.num_workers = 0
    cfg.dataloader.train.dataset.names = tiny_set["train"]
    cfg.dataloader.test.dataset.names = tiny_set["val"]
    cfg.train.update(max_iter=1, output_dir=str(tmp_path / "trained"), amp=dict(enabled=False))
    LazyConfig.save(cfg, str(tmp_path / "small.yaml"))
    small, tde = ["--config-file", str(tmp_path / "small.yaml")], tmp_path / "tde"
    train_net.main(small)
    trained = f"train.init_checkpoint={tmp_path / 'trained' / 'model_final.pth'}"

    amounts = ["--max-batches", "3", "--images-per-class", "2"]
    estimate_feature_mean.main([*small, "--output", str(tde), *amounts, trained])
    sweep = ["--alphas", "0,0.35", "--calibrate", "0.2", "--metric", "bbox/AP50"]
    sweep_alpha.main(["--config-file", str(tde / "config_tde.yaml"), *sweep])
    results = train_net.main(["--config-file", str(tde / "config_alpha.yaml"), "--eval-only"])

    assert {"AP", "APr", "APc", "APf"} <= set(results["segm"])
    report = json.loads((tde / "alpha.json").read_text())
    assert set(report["results"]) == {"0", "0.35"} and report["calibrate"] == 0.2
    ours = load_trained(load_recipe(str(tde / "config_alpha.yaml"), ["train.device=cpu"]))
    theirs = load_trained(load_recipe(small[1], [trained, "train.device=cpu"]))
    stages = util.predictors(ours)
    assert all(stage.feature_mean.mean.any() for stage in stages)
    assert all(stage.statistics.class_means.any() for stage in stages)
    assert {stage.calibrated_alpha for stage in stages} == {report["alpha"]}
    assert len(util.predictors(theirs, FastRCNNOutputLayers)) == len(stages)
    assert not util.predictors(theirs)
    batch, found = [util.lazy_image()], {}
    for alpha in (0.0, 0.35):
        for stage in stages:
            stage.alpha = alpha
        found[alpha] = util.infer(ours, batch)[0]
    (expected,) = util.infer(theirs, batch)
    assert len(expected) > 0 and torch.equal(found[0.0].scores, expected.scores)
    assert not torch.equal(found[0.35].scores, expected.scores)
