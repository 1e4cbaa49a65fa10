"""Files in the formats of CIFAR and ImageNet-LT through the commands, from training to export."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import classification_util as util
import numpy as np
import onnxruntime
import pytest
import torch
from classification_files_util import write_images, write_lists
from detectron2.data.detection_utils import read_image
from PIL import Image

from lvis_tde.calibration.checkpoint import load_trained
from lvis_tde.evaluation import Predictions
from lvis_tde.export import exported_at, run_image_export
from tools import demo, estimate_feature_mean, export_model, sweep_alpha, train_net

METRICS = {"top1", "many", "medium", "few", "balanced", "ece", "uniform", "backward50"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained model's folder, its sets beside it."""
    root = tmp_path_factory.mktemp("commands")
    util.write_sets(root / "datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root / "datasets"))
        # fmt: off
        train_net.main(util.arguments(
            "tde", root / "out", "TEST.EVAL_PERIOD", 50, "SOLVER.EPOCHS.TOTAL", 20, "SEED", 1,
        ))
        # fmt: on
    return root


@pytest.fixture(autouse=True)
def data(folder, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))


@pytest.fixture
def best(folder):
    return str(folder / "out" / "model_best.pth")


def trained_recipe(best, output):
    return util.recipe("tde", output, "MODEL.WEIGHTS", best)


def test_training_learns_and_writes_what_a_run_has(folder):
    out = folder / "out"
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    found = {key: value for line in lines for key, value in line.items()}
    assert METRICS <= {key.removeprefix("classification/") for key in found}
    assert found["classification/top1"] > 30  # of ten classes
    assert "calib/balanced" in found and "tde/mean_norm" in found
    assert {p.name for p in out.glob("*.pth")} >= {"model_best.pth", "model_final.pth"}
    predictions = Predictions.load(out / "inference" / f"{util.STEM}_test" / "predictions.npz")
    assert len(predictions.labels) == 40


def test_eval_only_repeats_the_test_and_writes_the_page(folder, best, tmp_path):
    args = util.arguments("tde", tmp_path, "MODEL.WEIGHTS", best)
    results = train_net.main(["--eval-only", *args])["classification"]
    lines = (folder / "out" / "metrics.json").read_text().splitlines()
    found = {key: value for line in lines for key, value in json.loads(line).items()}
    assert results["top1"] == pytest.approx(found["classification/top1"])
    (page,) = (tmp_path / "report" / f"{util.STEM}_test").rglob("*.html")
    assert "class9" in page.read_text("utf-8")


def test_from_estimate_to_a_chosen_strength(best, tmp_path, capsys):
    norm = ["MODEL.TDE.NORM", "deconfound", "MODEL.TDE.NUM_HEADS", 2]
    args = util.arguments("softmax", "unused", "MODEL.WEIGHTS", best, *norm)
    options = ["--output", str(tmp_path), "--max-batches", "4", "--tolerance", "0"]
    estimate_feature_mean.main([*options, *args])
    config = str(tmp_path / "config_tde.yaml")
    sweep_alpha.main(["--config-file", config, "--alphas", "0,1,2"])
    text = capsys.readouterr().out
    assert "| top1 |" in text and "has the best classification/balanced" in text
    config = str(tmp_path / "config_alpha.yaml")
    chosen = json.loads((tmp_path / "alpha.json").read_text())
    assert chosen["dataset"] == f"{util.STEM}_calib"
    options = ["--setting", "logit_adjustment", "--alphas", "0,1", "--metric", "classification/few"]
    sweep_alpha.main([*options, "--config-file", config])
    results = train_net.main(
        ["--eval-only", "--config-file", str(tmp_path / "config_logit_adjustment.yaml")]
    )
    assert METRICS <= set(results["classification"])


@pytest.fixture
def picture(tmp_path):
    write_images(tmp_path / "one", ["picture.jpg"], [3], size=(48, 40))
    return str(tmp_path / "one" / "picture.jpg")


@pytest.mark.skipif(not find_spec("onnx"), reason="needs onnx")
@pytest.mark.parametrize("alpha", [None, 0.0, 2.0])
def test_export_is_the_model_at_that_alpha(alpha, best, picture, tmp_path):
    options = [] if alpha is None else ["--alpha", str(alpha)]
    arguments = util.arguments("tde", tmp_path, "MODEL.WEIGHTS", best)
    opts = ["--image", picture, "--output", str(tmp_path / "exported"), *options]
    export_model.main([*arguments[:2], *opts, *arguments[2:]])
    recipe = trained_recipe(best, tmp_path)
    model = load_trained(recipe)
    one = recipe.prepare(read_image(picture, "RGB"))["image"][None].float()
    batch = torch.cat([one, 255 - one])
    with exported_at(model, alpha), torch.no_grad():
        expected = model({"image": batch})["probabilities"]
    notes = {"lvis_tde.json": ""}
    traced = torch.jit.load(str(tmp_path / "exported" / "model.ts"), _extra_files=notes)
    torch.testing.assert_close(traced(batch), expected, rtol=1e-4, atol=1e-6)
    session = onnxruntime.InferenceSession(str(tmp_path / "exported" / "model.onnx"))
    (found,) = session.run(["probabilities"], {"images": batch.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-6)
    # Which class is which, and how strong TDE is, stands in both files.
    told = json.loads(notes["lvis_tde.json"])
    assert told == json.loads(session.get_modelmeta().custom_metadata_map["lvis_tde.json"])
    assert told["alpha"] == (model.predictor.alpha if alpha is None else alpha)
    assert told["classes"] == model.predictor.statistics.class_names


def test_export_refuses_tde_without_a_mean(best, picture, tmp_path):
    recipe = trained_recipe(best, tmp_path)
    model = load_trained(recipe)
    model.predictor.feature_mean.mean.zero_()
    with pytest.raises(ValueError, match="mean is zero"):
        run_image_export(model, recipe.prepare, picture, tmp_path / "exported")


def test_pictures_and_charts(best, picture, tmp_path, capsys):
    arguments = util.arguments("tde", tmp_path, "MODEL.WEIGHTS", best)
    options = ["--output", str(tmp_path / "drawn"), "--explain"]
    shutil.copytree(Path(picture).parent, tmp_path / "again")
    pictures = [picture, str(tmp_path / "again" / "picture.jpg")]
    demo.main([*pictures, *options, *arguments[:2], "--opts", *arguments[2:]])
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert names == {"picture.png", "picture_why.png", "picture_1.png", "picture_1_why.png"}
    for name in names:
        assert np.asarray(Image.open(tmp_path / "drawn" / name)).std() > 10
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"")
    assert demo.main([str(clip), *options, *arguments[:2], "--opts", *arguments[2:]]) == 1
    assert f"skipped: {clip}" in capsys.readouterr().err


def test_the_lists_of_imagenet_lt(tmp_path, monkeypatch):
    write_lists(tmp_path / "datasets", counts=(12, 6, 3))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    config = str(Path(util.CONFIGS) / "imagenet_lt_x50_tde.yaml")
    # fmt: off
    options = [
        "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0",
        "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", "3", "MODEL.IMAGE_CLASSIFIER.NETWORK", "resnet18",
        "INPUT.CLASSIFICATION.SIZE", "32", "INPUT.CLASSIFICATION.RESIZE_TEST", "36",
        "SOLVER.IMS_PER_BATCH", "7", "SOLVER.EPOCHS.TOTAL", "2", "TEST.EVAL_PERIOD", "3",
    ]
    # fmt: on
    train_net.main(["--config-file", config, *options])
    best = str(tmp_path / "out" / "model_best.pth")
    args = ["--config-file", config, *options, "MODEL.WEIGHTS", best]
    assert METRICS <= set(train_net.main(["--eval-only", *args])["classification"])
    sweep_alpha.main(["--alphas", "0,3", *args])
    assert (
        json.loads((tmp_path / "out" / "alpha.json").read_text())["dataset"] == "imagenet_lt_calib"
    )
