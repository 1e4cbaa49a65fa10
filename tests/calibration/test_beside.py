"""Two settings of a model from one pass over the images."""

import json
from pathlib import Path

import pytest
from detectron2.evaluation import inference_on_dataset

from lvis_tde.calibration.beside import evaluate_beside, parse_settings
from lvis_tde.calibration.settings import settings, tde_predictors
from lvis_tde.engine import YacsRecipe
from lvis_tde.posthoc import Settings


@pytest.fixture
def recipe(tiny_cfg, tiny_set):
    return YacsRecipe(tiny_cfg("deconfound", "DATASETS.TEST", (tiny_set["val"],)))


@pytest.fixture
def model(tiny_model):
    model = tiny_model().eval()
    model.roi_heads.box_predictor.feature_mean.mean.normal_()
    return model


def test_both_are_what_an_evaluation_of_each_gives(recipe, model, tiny_set, tmp_path):
    name, expected, scores = tiny_set["val"], [], []
    for strengths in (Settings(), None):
        with settings(model, posthoc=strengths):
            evaluator = recipe.evaluator(name, save=False)
            expected.append(inference_on_dataset(model, recipe.test_loader(name), evaluator))
            scores.append(evaluator.detections().scores.tolist())
    found = evaluate_beside(recipe, model, Settings(), "tde/model.pth")
    assert found == expected[1]
    folder = Path(recipe.output_dir)
    results = json.loads((folder / "inference" / name / "lvis_instances_results.json").read_text())
    assert [one["score"] for one in results] == pytest.approx(scores[1]) != scores[0]
    assert tde_predictors(model)[0].alpha == 1.5 and not model.training
    text = (folder / "report" / name / "bbox" / "report.html").read_text()
    assert f"<h1>Box AP on {name}: tde/model.pth, TDE off / alpha 1.5</h1>" in text
    for metrics in expected:
        assert f"<td>{metrics['bbox']['AP']:.1f} <br><small>" in text
    assert "AP TDE off" in text and "AP alpha 1.5" in text and "change of AP" in text
    assert (folder / "report" / name / "segm" / "changes.png").is_file()


def test_nothing_to_compare(recipe, model):
    with pytest.raises(ValueError, match="predicts with alpha 1.5, so there is nothing"):
        evaluate_beside(recipe, model, Settings(region=1.5, class_=1.5), "m")
    with pytest.raises(ValueError, match="logit_adjustment=1 .*needs counts"):
        evaluate_beside(recipe, model, Settings(logit_adjustment=1.0), "m")


def test_settings_in_words():
    assert parse_settings("off") == Settings()
    assert parse_settings("alpha=1") == Settings(region=1.0, class_=1.0)
    assert parse_settings("norcal=0.5,background=joint") == Settings(norcal=0.5, background="joint")
    for text, told in (
        ("beta=1", "'beta=1' sets none of alpha"),
        ("", "sets none of"),
        ("alpha=much", "'much' is no number"),
        ("alpha=-1", "-1.0"),
        ("background=no", "background='no'"),
    ):
        with pytest.raises(ValueError, match=told):
            parse_settings(text)
