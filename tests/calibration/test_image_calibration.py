"""Sweep, estimate, statistics, explanation and choice on classifiers; the model is the oracle."""

import json

import classification_util as util
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset

from lvis_tde.calibration.beside import evaluate_beside
from lvis_tde.calibration.checkpoint import load_trained, run_estimate, save_checkpoint
from lvis_tde.calibration.class_means import few_of_each_class
from lvis_tde.calibration.estimate import estimate_feature_mean
from lvis_tde.calibration.explain import explain_images
from lvis_tde.calibration.image_sweep import ImagePass, choose_for_images, sweep_images
from lvis_tde.calibration.methods import IMAGE_METHODS, methods_of
from lvis_tde.calibration.settings import settings, tde_predictors
from lvis_tde.calibration.statistics import check_class_list, gather_class_statistics
from lvis_tde.calibration.sweep import best_alpha, format_sweep, run_sweep
from lvis_tde.modeling.intercept import intercepted
from lvis_tde.posthoc import Settings

COUNTS = [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]
TRAIN, CALIB, TEST = (f"{util.STEM}_{part}" for part in ("train", "calib", "test"))


@pytest.fixture(autouse=True)
def sets(tmp_path_factory, monkeypatch):
    root = tmp_path_factory.getbasetemp() / "small_cifar"
    if not root.is_dir():
        util.write_sets(root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))


@pytest.fixture
def recipe(tmp_path):
    return util.recipe("tde", tmp_path / "output")


@pytest.fixture
def model(recipe):
    model = util.model_with_mean()
    # Statistics of batch norm that fit the images, so that the classes differ.
    model.train()
    with torch.no_grad():
        for _, batch in zip(range(10), recipe.train_loader()):
            model.features(batch)
    model.eval()
    gather_class_statistics(model, TRAIN)
    estimate_feature_mean(model, recipe.train_loader(), max_batches=10, tolerance=0)
    return model


def evaluated(recipe, model, name=TEST):
    evaluator = recipe.evaluator(name, save=False)
    return inference_on_dataset(model, recipe.test_loader(name), evaluator)["classification"]


def test_the_predictor_is_found_and_has_the_methods_of_images(model):
    assert tde_predictors(model) == [model.predictor]
    assert methods_of(model) is IMAGE_METHODS
    assert {m.name for m in IMAGE_METHODS} == {"tde", "tau_norm", "logit_adjustment", "logn"}


def test_one_pass_gives_what_a_pass_for_each_setting_gives(recipe, model):
    tried = [
        0.0,
        2.0,
        Settings(logit_adjustment=1.0),
        Settings(region=1.0, class_=1.0, tau_norm=1.0),
    ]
    tried.append(Settings(logn=1.0))
    calls = []

    def counted(features, batch):
        calls.append(len(batch["class"]))
        return features(batch)

    with intercepted(model, "features", counted):
        found = sweep_images(
            model, recipe.test_loader(TEST), tried, lambda: recipe.evaluator(TEST, save=False)
        )
    assert sum(calls) == 40  # each image once
    for one in tried:
        option = {"posthoc": one} if isinstance(one, Settings) else {"alpha": one}
        with settings(model, **option):
            expected = evaluated(recipe, model)
        for name, value in expected.items():
            np.testing.assert_equal(found[one]["classification"][name], value)
    tops = {tuple(np.nan_to_num(list(one["classification"].values()))) for one in found.values()}
    assert len(tops) > 2  # the settings differ


def test_a_setting_without_its_statistics_fails_before_the_first_image(recipe):
    model = util.model_with_mean()
    with pytest.raises(ValueError, match="logit_adjustment=1 .*counts"):
        sweep_images(model, None, [Settings(logit_adjustment=1.0)], lambda: None)


def test_the_mean_is_that_of_the_features_of_all_images(recipe, model):
    loader = recipe.train_loader()
    batches = [batch for _, batch in zip(range(6), loader)]
    with torch.no_grad():
        features = torch.cat([model.features(batch) for batch in batches])
    logits = model.predictor.cls_score(features).double()
    found = estimate_feature_mean(model, batches, max_batches=6, tolerance=0)
    assert found.num_foreground == (96,) and not model.training
    torch.testing.assert_close(model.predictor.feature_mean.mean, features.mean(0))
    statistics = model.predictor.statistics
    torch.testing.assert_close(statistics.logit_mean.double(), logits.mean(0))
    torch.testing.assert_close(statistics.logit_std.double(), logits.std(0, unbiased=False))


def test_statistics_are_counts_of_images_and_know_their_classes(model):
    known = model.predictor.statistics
    assert known.images.tolist() == known.instances.tolist() == COUNTS
    assert known.num_images == sum(COUNTS) and not known.dimension.any()
    check_class_list(model, TEST)
    MetadataCatalog.get("other_animals").thing_classes = [f"animal{i}" for i in range(10)]
    with pytest.raises(ValueError, match="animal0"):
        check_class_list(model, "other_animals")


def test_the_parts_of_a_prediction_add_up_to_it(recipe, model):
    batch = next(iter(recipe.test_loader(TEST)))
    strengths = Settings(region=1.5, class_=1.5, logit_adjustment=0.5)
    for one in (Settings(region=1.5, class_=1.5), strengths):
        with settings(model, posthoc=one):
            parts = explain_images(model, batch)
            expected = model(batch)["probabilities"].double()
        torch.testing.assert_close(parts.probs, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(parts.total, parts.indirect + parts.direct)
        torch.testing.assert_close(parts.adjusted.softmax(-1), parts.probs)
        assert parts.total.shape == (16, 10) and parts.indirect.abs().max() > 0.01
        assert parts.exemption.abs().max() < 1e-9  # there is no background
    assert parts.other.abs().max() > 0.1 and parts.steps == "alpha 1.5, logit_adjustment 0.5"


def test_the_family_is_chosen_on_one_pass(recipe, model):
    images = ImagePass(model, recipe.test_loader(CALIB))
    choice = choose_for_images(images, lambda: recipe.evaluator(CALIB, save=False))
    assert [row.method for row in choice.rows][:2] == ["factual", "tde"]
    assert {row.method for row in choice.rows} == {
        "factual", "tde", "tau_norm", "logit_adjustment", "logn", "composition",
    }  # fmt: skip
    best = max(row.metrics["balanced"] for row in choice.rows)
    assert choice.row("composition").metrics["balanced"] == best
    for row in choice.rows:
        with settings(model, posthoc=row.settings):
            assert evaluated(recipe, model, CALIB)["top1"] == row.metrics["top1"]
    assert all(one.background == "exempt" for one in choice.tried)  # which there is none of


@pytest.fixture
def trained(recipe, model, tmp_path):
    recipe.weights = str(tmp_path / "weights.pth")
    save_checkpoint(model, recipe.weights)
    return recipe


def test_a_sweep_measures_on_the_calibration_set(trained, tmp_path):
    report = run_sweep(trained, (0, 1, 4))
    assert (report["dataset"], report["metric"]) == (CALIB, "classification/balanced")
    found = {float(a): tasks for a, tasks in report["results"].items()}
    assert best_alpha(found, "classification/balanced") == report["alpha"]
    folder = tmp_path / "output"
    assert json.loads((folder / "alpha.json").read_text()) == report
    assert (folder / "alpha.png").is_file() and "balanced" in format_sweep(report)
    # The config is used as it is.
    chosen = util.recipe("tde", folder)
    chosen.cfg.merge_from_file(str(folder / "config_alpha.yaml"))
    model = load_trained(chosen)
    assert model.predictor.alpha == model.predictor.calibrated_alpha == report["alpha"]
    value = round(evaluated(chosen, model, CALIB)["top1"], 4)
    assert value == report["results"][f"{report['alpha']:g}"]["classification"]["top1"]


def test_a_sweep_of_another_setting_on_the_test_set_warns(trained, caplog):
    trained.cfg.DATASETS.CALIB = ()
    report = run_sweep(trained, (0, 1), setting="logit_adjustment", metric="classification/few")
    assert report["dataset"] == TEST and "Do not report" in caplog.text
    with pytest.raises(ValueError, match="'segm/AP'.*classification"):
        run_sweep(trained, (0,), metric="segm/AP")
    with pytest.raises(ValueError, match="DATASETS.CALIB"):
        run_sweep(trained, (0,), calibrate=0.1)


def test_estimate_writes_a_checkpoint_that_predicts(trained, tmp_path):
    trained.output_dir = str(tmp_path / "estimated")
    found = run_estimate(trained, max_batches=5, tolerance=0)
    chosen = util.recipe("tde", tmp_path)
    chosen.cfg.merge_from_file(str(tmp_path / "estimated" / "config_tde.yaml"))
    model = load_trained(chosen)
    assert torch.equal(model.predictor.feature_mean.mean, found.means[0])
    assert model.predictor.statistics.images.tolist() == COUNTS
    assert model.predictor.statistics.logit_std.all()


def test_means_of_classes_come_from_few_images_of_each(trained, tmp_path):
    part = DatasetCatalog.get(few_of_each_class(TRAIN, 3))
    assert np.bincount(part.labels).tolist() == [min(n, 3) for n in COUNTS]
    trained.output_dir = str(tmp_path / "few")
    found = run_estimate(trained, max_batches=5, tolerance=0, images_per_class=3)
    assert found.num_batches == 5 and found.num_without_mean == (0,)


def test_two_settings_side_by_side_are_of_detectors(recipe, model):
    message = f"{TEST} has a class for each image.*report.py --compare.*sweep_posthoc.py"
    with pytest.raises(ValueError, match=message):
        evaluate_beside(recipe, model, Settings(), "model")
