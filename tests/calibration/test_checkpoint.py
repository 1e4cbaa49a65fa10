"""The guide of docs/trained_model.md, in small: a trained softmax model, three commands."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from lvis_tde.calibration import checkpoint
from lvis_tde.calibration.checkpoint import load_trained, run_estimate, save_checkpoint
from lvis_tde.config import use_tde_on_softmax
from lvis_tde.engine import Trainer, YacsRecipe, load_config
from lvis_tde.modeling.swap import swap_box_predictor

TOOLS = Path(__file__).parents[2] / "tools"


def command(name, *arguments):
    """Runs a tool as the command line would, in this process."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_set):
    """A softmax model after some steps: its config file and its checkpoint."""
    from conftest import ROOT, TINY

    folder = tmp_path_factory.mktemp("softmax")
    cfg = load_config(
        str(ROOT / "configs" / "demo_softmax.yaml"),
        [*TINY, "OUTPUT_DIR", str(folder), "SEED", 1, "SOLVER.MAX_ITER", 8]
        + ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64]
        + ["DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", ()],
    )
    seed_all_rng(1)
    trainer = Trainer(cfg)
    trainer.train()
    cfg.DATASETS.TEST = (tiny_set["val"],)
    (folder / "config.yaml").write_text(cfg.dump())
    return cfg, folder / "config.yaml", folder / "model_final.pth"


def softmax_model(cfg, weights):
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(str(weights))
    return model


def test_three_commands(trained, make_batch, tmp_path, capsys, caplog):
    cfg, config, weights = trained
    kept = weights.read_bytes(), config.read_bytes()
    output = tmp_path / "tde"
    found = command(
        "estimate_feature_mean", "--config-file", config, "--output", output,
        "--max-batches", 6, "MODEL.WEIGHTS", weights,
    )  # fmt: skip
    assert found.num_batches == 6 and sum(found.num_foreground) > 0
    command(
        "sweep_alpha", "--config-file", output / "config_tde.yaml",
        "--calibrate", 0.3, "--alphas", "0,1",
    )  # fmt: skip
    assert "| segm APr |" in capsys.readouterr().out
    caplog.clear()
    results = command("train_net", "--config-file", output / "config_alpha.yaml", "--eval-only")
    assert {"AP", "APr"} <= set(results["segm"])
    # The checkpoint remembers its alpha: nobody asks whether it was chosen.
    assert "which nobody chose" not in caplog.text
    chosen = load_trained(YacsRecipe(load_config(str(output / "config_alpha.yaml"))))
    assert chosen.roi_heads.box_predictor.calibrated_alpha is not None
    again = tmp_path / "again"  # another mean, for which nobody has chosen
    command(
        "estimate_feature_mean", "--config-file", output / "config_alpha.yaml", "--output", again,
        "--max-batches", 2,
    )  # fmt: skip
    chosen = load_trained(YacsRecipe(load_config(str(again / "config_tde.yaml"))))
    predictor = chosen.roi_heads.box_predictor
    assert predictor.calibrated_alpha is None and predictor.chosen == ""
    # The user's own files are as they were.
    assert (weights.read_bytes(), config.read_bytes()) == kept

    # At alpha 0 the new checkpoint gives what the softmax model gives, and otherwise not.
    tde = load_config(str(output / "config_alpha.yaml"))
    assert tde.MODEL.ROI_HEADS.NAME == "TDEROIHeads" and tde.MODEL.TDE.NORM == "none"
    model, softmax = load_trained(YacsRecipe(tde)), softmax_model(cfg, weights)
    with torch.no_grad():
        expected = softmax(make_batch())[0]["instances"]
        model.roi_heads.box_predictor.alpha = 0.0
        same = model(make_batch())[0]["instances"]
        model.roi_heads.box_predictor.alpha = 2.0
        other = model(make_batch())[0]["instances"]
    torch.testing.assert_close(same.scores, expected.scores)
    torch.testing.assert_close(same.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(same.pred_classes, expected.pred_classes)
    assert same.scores.shape != other.scores.shape or not torch.allclose(same.scores, other.scores)


@pytest.mark.parametrize("class_means", [False, True])
def test_most_batches_for_the_means_of_classes_are_those_of_all_images(
    trained, tmp_path, monkeypatch, class_means
):
    cfg, config, weights = trained
    monkeypatch.setattr(checkpoint, "MAX_BATCHES", 2)  # in place of 500, so that all are more
    cfg = load_config(str(config), ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path)])
    found = run_estimate(YacsRecipe(cfg), tolerance=0, class_means=class_means)
    num_images = sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TRAIN)
    assert cfg.SOLVER.IMS_PER_BATCH == 2 and num_images > 4
    assert found.num_batches == (math.ceil(num_images / 2) if class_means else 2)


def test_means_of_classes_from_few_images_by_command(trained, tmp_path):
    _, config, weights = trained
    found = command(
        "estimate_feature_mean", "--config-file", config, "--output", tmp_path,
        "--max-batches", 3, "--images-per-class", 1, "MODEL.WEIGHTS", weights,
    )  # fmt: skip
    assert found.num_batches == 3 and found.num_without_mean == (0,)
    cfg = load_config(str(tmp_path / "config_tde.yaml"), ["MODEL.POSTHOC.CLASS_MEANS", 4.0])
    statistics = load_trained(YacsRecipe(cfg)).roi_heads.box_predictor.statistics
    assert statistics.class_means.any(dim=1).all() and statistics.similarity > 0


def test_pictures_and_export_by_command(trained, tiny_set, tmp_path):
    cfg, config, weights = trained
    command(
        "estimate_feature_mean", "--config-file", config, "--output", tmp_path,
        "--max-batches", 2, "MODEL.WEIGHTS", weights,
    )  # fmt: skip
    image = DatasetCatalog.get(tiny_set["val"])[0]["file_name"]
    made = tmp_path / "config_tde.yaml"
    command("demo", image, "--config-file", made, "--output", tmp_path / "pictures", "--explain")
    assert (tmp_path / "pictures" / f"{Path(image).stem}.png").is_file()
    pytest.importorskip("onnxruntime")
    command(
        "export_model", "--config-file", made, "--image", image, "--output", tmp_path / "export"
    )
    assert (tmp_path / "export" / "model.ts").is_file()


def test_a_softmax_checkpoint_loads_unchanged(trained):
    cfg, _, weights = trained
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = str(weights)
    use_tde_on_softmax(cfg, num_heads=4)
    state = load_trained(YacsRecipe(cfg)).state_dict()
    saved = torch.load(weights, weights_only=False)["model"]
    own = ("_extra_state", ".strengths")
    added = {name for name in set(state) - set(saved) if not name.endswith(own)}
    assert {name for name in added if ".statistics." not in name} == {
        "roi_heads.box_predictor.feature_mean.mean"
    }
    assert all(torch.equal(state[name], value) for name, value in saved.items() if name in state)
    assert set(saved) <= set(state)


def test_swap_keeps_the_softmax(trained, make_batch):
    cfg, _, weights = trained
    model = softmax_model(cfg, weights)
    with torch.no_grad():
        expected = model(make_batch())[0]["instances"]
        swap_box_predictor(model, norm="none", num_heads=1)
        found = model(make_batch())[0]["instances"]
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)


def test_config_of_other_heads(tiny_cfg):
    cfg = tiny_cfg("deconfound")
    before = cfg.dump()
    use_tde_on_softmax(cfg)
    assert cfg.dump() == before
    cfg.MODEL.ROI_HEADS.NAME = "PointRendROIHeads"
    with pytest.raises(ValueError, match="'PointRendROIHeads'.*swap_box_predictor"):
        use_tde_on_softmax(cfg)


@pytest.mark.parametrize("sigmoid, alpha", [(False, 1.5), (True, 0.0)])
def test_alpha_before_it_is_chosen(trained, sigmoid, alpha):
    cfg = trained[0].clone()
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = sigmoid
    use_tde_on_softmax(cfg)
    assert cfg.MODEL.TDE.ALPHA == alpha


def test_incomplete_checkpoints_are_refused(trained, tmp_path):
    cfg, _, weights = trained
    cfg = cfg.clone()
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        load_trained(YacsRecipe(cfg))
    saved = torch.load(weights, weights_only=False)["model"]
    backbone = {name: value for name, value in saved.items() if name.startswith("backbone")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match="backbone.pth is no checkpoint of this model"):
        load_trained(YacsRecipe(cfg))
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 9
    with pytest.raises(ValueError, match="cls_score"):
        load_trained(YacsRecipe(cfg))


def test_a_checkpoint_is_complete_or_absent(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    save_checkpoint(model, tmp_path / "model.pth", angle=1.5)
    saved = (tmp_path / "model.pth").read_bytes()
    assert torch.load(tmp_path / "model.pth")["angle"] == 1.5

    def fail(_, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(model, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == saved
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_the_same_commands_on_a_lazy_config(tiny_set, tmp_path, capsys):
    import heads_util as util
    from detectron2.config import LazyConfig, instantiate
    from detectron2.data import DatasetCatalog
    from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

    cfg = util.lazy_config("TDEROIHeads")
    (stage,) = util.lazy_stages(cfg)
    stage._target_ = FastRCNNOutputLayers
    for key in ("norm", "num_heads", "tau", "gamma", "alpha"):
        del stage[key]
    for loader, split in ((cfg.dataloader.train, "train"), (cfg.dataloader.test, "val")):
        loader.mapper.augmentations[0].short_edge_length = 64
        loader.dataset.names, loader.num_workers = tiny_set[split], 0
    cfg.dataloader.train.total_batch_size = 2
    torch.manual_seed(0)
    torch.save({"model": instantiate(cfg.model).state_dict()}, tmp_path / "softmax.pth")
    cfg.train.init_checkpoint = str(tmp_path / "softmax.pth")
    LazyConfig.save(cfg, str(tmp_path / "softmax.yaml"))
    output = tmp_path / "tde"
    command(
        "estimate_feature_mean", "--config-file", tmp_path / "softmax.yaml",
        "--output", output, "--max-batches", 4,
    )  # fmt: skip
    command(
        "sweep_alpha", "--config-file", output / "config_tde.yaml",
        "--calibrate", 0.3, "--alphas", "0,1", "--metric", "bbox/AP",
    )  # fmt: skip
    assert "| bbox AP |" in capsys.readouterr().out
    best = output / "config_alpha.yaml"
    assert {"AP", "APr"} <= set(command("train_net", "--config-file", best, "--eval-only")["segm"])
    image = DatasetCatalog.get(tiny_set["val"])[0]["file_name"]
    command("demo", image, "--config-file", best, "--output", tmp_path / "pictures")
    assert (tmp_path / "pictures" / f"{Path(image).stem}.png").is_file()
    pytest.importorskip("onnxruntime")
    command("export_model", "--config-file", best, "--image", image, "--output", tmp_path)
    assert (tmp_path / "model.ts").is_file()
