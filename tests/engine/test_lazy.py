"""LazyConfig: the shipped configs, made small, through the training tool's own functions."""

import builtins
import json
import logging

import heads_util as util
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage

from lvis_tde import (
    TDECascadeROIHeads,
    TDEFastRCNNOutputLayers,
    TDERes5ROIHeads,
    TDEROIHeads,
)
from lvis_tde.engine import argument_parser, lazy, load_recipe, setup

HEADS = tuple(util.TDE_NAMES.values())
NAMES = tuple(util.LAZY_NAMES.values())


def predict(model, batch):
    torch.manual_seed(0)
    for predictor in util.predictors(model):
        predictor.feature_mean.mean.uniform_()
    return util.infer(model, batch)[0]


def test_every_config_is_tested():
    # Those that Detectron2 0.6 cannot load are in test_vitdet_config.py.
    paths = [path for path in util.LAZY.glob("*.py") if "vitdet" not in path.name]
    models = [path.name for path in paths if "model" in LazyConfig.load(str(path))]
    assert sorted(models) == sorted(NAMES)


def test_a_file_that_cannot_be_loaded_leaves_imports_alone(tmp_path):
    file, before = tmp_path / "broken.py", builtins.__import__
    file.write_text("model = dict(\n    depth=1 / 0,\n)\n")
    with pytest.raises(ZeroDivisionError):
        load_recipe(str(file))
    assert builtins.__import__ is before


@pytest.mark.parametrize("name", NAMES)
def test_options_are_those_of_lvis(name):
    cfg = LazyConfig.load(str(util.LAZY / name))
    assert set(cfg) == {"dataloader", "lr_multiplier", "model", "optimizer", "train"}
    assert cfg.model.roi_heads.num_classes == 1203 and cfg.train.max_iter == 180000
    assert len(util.lazy_stages(cfg)) == (3 if "cascade" in name else 1)
    for predictor in util.lazy_stages(cfg):
        assert predictor._target_ is TDEFastRCNNOutputLayers and predictor.num_classes == 1203
        assert predictor.test_topk_per_image == 300 and predictor.test_score_thresh == 1e-4
    rate = instantiate(cfg.lr_multiplier)
    steps = (0, 1000, 119999, 120001, 159999, 160001)
    rates = [rate(step / cfg.train.max_iter) for step in steps]
    assert rates == pytest.approx([0.001, 1, 1, 0.1, 0.1, 0.01])


def test_an_override_that_makes_a_key_is_told(caplog):
    file = str(util.LAZY / NAMES[0])
    predictor = "model.roi_heads.box_predictor"
    known = ["train.max_iter=3", "train.precise_mean=5", "train.inference_dtype=bfloat16"]
    known += ["model.roi_heads.num_classes=9", "dataloader.train.num_workers=0"]
    known += [f"{predictor}.alpha=0.5", f"{predictor}.posthoc.logit_adjustment=1"]
    load_recipe(file, known if "cascade" not in file else known[:-2])
    assert "is no key" not in caplog.text
    recipe = load_recipe(file, ["train.max_itr=10", "data.max=1"])
    assert recipe.cfg.train.max_itr == 10
    assert "train.max_itr is no key of the config" in caplog.text
    assert "did you mean train.max_iter?" in caplog.text and "data.max is no key" in caplog.text


@pytest.mark.parametrize("heads", HEADS)
def test_save_and_load_round_trip(heads, tmp_path):
    cfg = util.lazy_config(heads)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = LazyConfig.load(str(tmp_path / "config.yaml"))
    LazyConfig.save(again, str(tmp_path / "again.yaml"))
    assert (tmp_path / "config.yaml").read_text() == (tmp_path / "again.yaml").read_text()
    first, second = instantiate(cfg.model), instantiate(again.model)
    assert str(first) == str(second)
    second.load_state_dict(first.state_dict())
    batch = [util.lazy_image()]
    expected, got = predict(first, batch), predict(second, batch)
    assert len(expected) > 0 and torch.equal(expected.scores, got.scores)


@pytest.mark.parametrize("heads", [TDEROIHeads, TDECascadeROIHeads, TDERes5ROIHeads])
def test_the_registered_heads_take_the_place_of_upstreams(heads):
    cfg = util.lazy_config(heads.__name__)
    cfg.model.roi_heads._target_ = heads
    model = instantiate(cfg.model)
    assert isinstance(model.roi_heads, heads)
    with EventStorage():
        losses = model([util.lazy_image()])
    losses = {key: loss.item() for key, loss in losses.items()}
    util.assert_finite(losses, [predict(model, [util.lazy_image()])])


@pytest.fixture
def arguments(tiny_set, tmp_path):
    """``arguments(heads, *overrides)``: the command line for a small model on the tiny set."""

    def make(heads, *overrides):
        path = tmp_path / "small.yaml"
        cfg = util.lazy_config(heads)
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
            f"train.output_dir={tmp_path / 'output'}",
        ]
        return argument_parser().parse_args(["--config-file", str(path), *options, *overrides])

    return make


@pytest.mark.parametrize("heads", HEADS)
def test_trains_evaluates_and_resumes(heads, arguments, tmp_path):
    cfg = setup(arguments(heads)).cfg
    assert cfg.train.device == ("cuda" if torch.cuda.is_available() else "cpu")
    model = lazy.train(cfg)
    means = [p.feature_mean for p in util.predictors(model)]
    assert means and all(mean.mean.any() for mean in means)

    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    assert {"segm/APr", "bbox/AP"} <= set(metrics) and any("tde/mean_norm" in k for k in metrics)
    assert any("tde/weight_norm_r" in k for k in metrics)

    cfg = setup(arguments(heads, "train.max_iter=3")).cfg
    resumed = lazy.train(cfg, resume=True)
    saved = torch.load(tmp_path / "output" / "model_final.pth")
    assert saved["iteration"] == 2
    again = lazy.build_model(cfg)
    DetectionCheckpointer(again).load(str(tmp_path / "output" / "model_final.pth"))
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    # Killed between the last periodic checkpoint and the one of the end.
    last = tmp_path / "output" / "model_final.pth"
    last.rename(last.with_name("model_0000002.pth"))
    (tmp_path / "output" / "last_checkpoint").write_text("model_0000002.pth")
    lazy.train(setup(arguments(heads, "train.max_iter=3")).cfg, resume=True)
    assert torch.load(last)["iteration"] == 2
    results = lazy.evaluate(cfg, again)
    assert {"AP", "APr", "APc", "APf"} <= set(results["bbox"])


def test_missing_inputs_name_path_and_cure(arguments):
    with pytest.raises(FileNotFoundError, match="'no_such_set'.*datasets/README.md"):
        setup(arguments(HEADS[0], "dataloader.train.dataset.names=no_such_set"))
    with pytest.raises(FileNotFoundError, match="train.init_checkpoint names nowhere.pth"):
        setup(arguments(HEADS[0], "train.init_checkpoint=nowhere.pth"))
    with pytest.raises(ValueError, match="has 7 classes, but model.roi_heads.num_classes is 5"):
        setup(arguments(HEADS[0], "model.roi_heads.num_classes=5"))


def test_the_log_has_what_this_package_says(arguments, tmp_path):
    setup(arguments(HEADS[0]))
    logging.getLogger("lvis_tde.layers.feature_mean").warning("something about the mean")
    assert "something about the mean" in (tmp_path / "output" / "log.txt").read_text()


def test_overrides_of_the_other_kind_are_refused(arguments):
    with pytest.raises(ValueError, match="'MODEL.WEIGHTS' is no override.*key=value"):
        setup(arguments(HEADS[0], "MODEL.WEIGHTS", "model.pth"))
