"""The sweep over post-hoc methods for LazyConfigs and classifiers, and its words."""

import json

import classification_util
import heads_util as util
import pytest
import torch
from PIL import Image

from lvis_tde import cli
from lvis_tde.calibration.checkpoint import load_trained, run_estimate, save_checkpoint
from lvis_tde.calibration.posthoc_sweep import run_posthoc_sweep
from lvis_tde.calibration.settings import settings
from lvis_tde.engine import LazyRecipe, load_recipe
from lvis_tde.evaluation import Predictions, compare_top1
from lvis_tde.posthoc import Settings
from lvis_tde.visualization.figure import figure_to_array
from lvis_tde.visualization.method_curves import plot_method_curves
from tools import sweep_posthoc

FEW = {"methods": ["tde", "logit_adjustment"], "rounds": 1}


def settings_of(row):
    return Settings(**{k: v for k, v in row["settings"].items() if k != "words"})


def test_lazy_config_of_a_cascade(tiny_set, tmp_path):
    recipe = LazyRecipe(util.lazy_config("TDECascadeROIHeads"))
    for loader in (recipe.cfg.dataloader.train, recipe.cfg.dataloader.test):
        loader.mapper.augmentations[0].short_edge_length = 64
        loader.num_workers = 0
    recipe.cfg.dataloader.train.total_batch_size = 2
    recipe.device, recipe.output_dir = "cpu", str(tmp_path)
    recipe.train_sets, recipe.test_sets = (tiny_set["train"],), (tiny_set["val"],)
    torch.manual_seed(0)
    save_checkpoint(recipe.build_model(), tmp_path / "random.pth")
    recipe.weights = str(tmp_path / "random.pth")
    run_estimate(recipe, max_batches=2)
    written = load_recipe(str(tmp_path / "config_tde.yaml"))
    report = run_posthoc_sweep(written, calibrate=0.2, metric="AP50", bootstrap=5, **FEW)
    assert [row["method"] for row in report["rows"]][1:-1] == FEW["methods"]
    assert "calibration" in report["chosen_on"] and report["reported_on"] == tiny_set["val"]
    chosen = load_recipe(str(tmp_path / "config_posthoc.yaml"))
    stages = util.predictors(load_trained(chosen))
    assert len(stages) == 3
    assert all(stage.posthoc == settings_of(report["rows"][-1]) for stage in stages)
    written.calibration_sets = (tiny_set["calib"],)
    assert written.clone().calibration_sets == (tiny_set["calib"],)


@pytest.fixture
def classifier(tmp_path_factory, tmp_path, monkeypatch):
    """Arguments for a classifier with a mean and statistics."""
    root = tmp_path_factory.mktemp("cifar")
    classification_util.write_sets(root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    recipe = classification_util.recipe("tde", tmp_path / "first")
    model = classification_util.model_with_mean()
    model.train()
    with torch.no_grad():
        for _, batch in zip(range(10), recipe.train_loader()):
            model.features(batch)
    save_checkpoint(model, tmp_path / "model.pth")
    recipe.weights = str(tmp_path / "model.pth")
    run_estimate(recipe, max_batches=4)
    weights = tmp_path / "first" / "model_tde.pth"
    return classification_util.arguments("tde", tmp_path / "out", "MODEL.WEIGHTS", weights)


def test_classifier(classifier, tmp_path, capsys):
    _, config, *options = classifier
    sweep_posthoc.main(
        ["--config-file", config, "--max-loss", "many=50", "--bootstrap", "50", *options]
    )
    report = json.loads((tmp_path / "out" / "posthoc.json").read_text())
    assert report["metric"] == "few" and report["max_loss"] == {"many": 50.0}
    assert report["chosen_on"] == f"{classification_util.STEM}_calib"
    assert report["reported_on"] == f"{classification_util.STEM}_test"
    printed = capsys.readouterr().out
    assert "at most 50 many lost" in printed and "where it was not" in printed
    chosen = load_recipe(str(tmp_path / "out" / "config_posthoc.yaml"))
    model, last, trained = load_trained(chosen), report["rows"][-1], None
    assert model.predictor.posthoc == settings_of(last)
    for row in report["rows"]:
        with settings(model, posthoc=settings_of(row)):
            chosen.evaluate(model)
        path = next((tmp_path / "out" / "inference").rglob("predictions.npz"))
        result = Predictions.load(path).evaluate(bootstrap=50)
        assert row["metrics"]["classification"]["top1"] == pytest.approx(result.metrics["top1"])
        ends = row["intervals"]["classification"]["balanced"]
        assert ends == pytest.approx(result.intervals["balanced"])
        found = compare_top1(trained or result, result, bootstrap=50)
        trained = trained or result
        gain = row["gains"]["classification"]["few"]
        assert gain["difference"] == pytest.approx(found.difference["few"], abs=1e-4)
        assert gain["interval"] == pytest.approx(found.intervals["few"], abs=1e-4)
        assert gain["wins"] == pytest.approx(found.wins["few"], abs=1e-4)
    assert "gain over as trained" in printed


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--max-loss", "APf"], "'APf' is no NAME=NUMBER"),
        (["--max-loss", "APf=0.5,1"], "takes one number"),
        (["--grid", "tde=a"], "'a' is no list of numbers"),
        (["--calibrate", "0.1", "--choose-on", "x"], "not allowed with"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep_posthoc.main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and words in printed.err and printed.err.count("\n") == 1


def test_the_command_of_before_is_still_known(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lvis-tde"])
    for arguments in (["--alphas", "x"], ["--setting=beta"]):
        with pytest.raises(SystemExit):
            cli.main(["sweep", *arguments])
        assert "sweep-alpha --help" in capsys.readouterr().err


def test_chart_has_every_method_and_what_is_undefined_is_left_out(tmp_path):
    curves = {
        "tde": [(3.0, 20.0), (6.0, 21.0), (8.0, 20.5)],
        "norcal": [(3.0, 20.0), (None, 22.0), (float("nan"), 1.0), (-100.0, 2.0)],
    }
    figure = plot_method_curves(curves, chosen=(8.5, 22.0), words="alpha 1", title="x")
    (panel,) = figure.axes
    lines = [
        line for line in panel.lines if line.get_linestyle() == "-" and line.get_marker() == "o"
    ]
    assert [len(line.get_xdata()) for line in lines] == [3, 1]
    stars = [line for line in panel.lines if line.get_marker() == "*"]
    assert [(*star.get_xdata(), *star.get_ydata()) for star in stars] == [(8.5, 22.0)]
    words = {text.get_text() for text in (*panel.texts, *figure.texts)}
    assert {"TDE", "NorCal", "chosen: alpha 1"} <= words
    Image.fromarray(figure_to_array(figure)).save(tmp_path / "chart.png")
    nothing = plot_method_curves({"tde": [(None, None)]}, chosen=(None, None), words="")
    assert "n/a" in {text.get_text() for text in nothing.axes[0].texts}
