"""The benchmark tool runs, and its instruments measure what they say. Nothing is timed here."""

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances

from benchmarks.authors import AuthorsOutputLayers
from benchmarks.common import peak_memory
from benchmarks.data import calibrate, clustered_boxes, detection_scores
from benchmarks.model import build
from benchmarks.scaling import exponent

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_head_prints_all_and_ratios_last(tool, capsys):
    size = ["--proposals", "20", "--features", "16", "--classes", "7", "--repeats", "1"]
    tool.main(["head", *size, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert list(result["seconds"]) == [
        "softmax (Detectron2)",
        "TDE, authors' formulation",
        "TDE, this project",
        "sigmoid (Detectron2)",
        "softmax, all linear steps",
        "softmax, those and TDE",
        "sigmoid, all linear steps",
        "sigmoid, those and TDE",
        "sigmoid, logit adjustment and keep_sum",
        "sigmoid, class means",
    ]
    assert result["threads"] == 1 and list(result)[-1] == "ratios"
    tool.main(["head", *size])
    assert "TDE / softmax" in capsys.readouterr().out


def test_mask_measures_both_modes(tool, capsys):
    size = ["--detections", "2", "--foreground", "2", "--classes", "9", "--repeats", "1"]
    tool.main(["mask", *size, "--json"])
    result = json.loads(capsys.readouterr().out)
    for table in (*result["seconds"].values(), *result["peak megabytes"].values()):
        assert table.keys() == {"Detectron2", "this project", "this project, cosine"}
        assert all(value > 0 for value in table.values())


def test_scaling_has_both_sides_of_each_step(tool, capsys, tmp_path):
    size = ["--proposals", "60", "--features", "16", "--images", "2", "--repeats", "1"]
    figure = tmp_path / "scaling.png"
    command = ["scaling", *size, "--classes", "20", "40", "--figure", str(figure), "--json"]
    tool.main([*command, "--warmup", "0"])
    result = json.loads(capsys.readouterr().out)
    steps = ("head, seconds", "head, megabytes", "NMS, seconds", "evaluation, seconds")
    for step in steps:
        assert len(result[step]) == 4 and all(value > 0 for value in result[step].values())
    assert len(result["report, seconds"]) == 2
    assert figure.stat().st_size > 10_000
    assert exponent({80: 1.0, 100: 3.0, 200: 12.0}) == pytest.approx(2)


def test_the_authors_predictor_is_ours_in_another_formulation():
    args = argparse.Namespace(device="cpu", seed=0, batch=1, size=64)
    models = {name: build(name, args).eval() for name in ("authors' formulation", "this project")}
    authors, ours = models.values()
    assert type(authors.roi_heads.box_predictor) is AuthorsOutputLayers
    assert authors.roi_heads.box_predictor.state_dict().keys() == (
        ours.roi_heads.box_predictor.state_dict().keys()
    )
    features = torch.rand(5, 1024, generator=torch.Generator().manual_seed(0))
    boxes = Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]]).expand(5, 4))
    proposals = [Instances((64, 64), proposal_boxes=boxes)]
    probs = []
    for model in models.values():
        predictor = model.roi_heads.box_predictor
        predictor.feature_mean.mean.copy_(features.mean(dim=0))
        with torch.no_grad():
            probs.append(predictor.predict_probs(predictor(features), proposals)[0])
    torch.testing.assert_close(*probs, rtol=0, atol=1e-4)


def test_glyph_classifier_gives_a_row_per_number_of_images(tool, capsys, color_font):
    size = ["--classes", "3", "--test-per-class", "2", "--image-size", "16", "--steps", "2"]
    tool.main(
        ["glyph_classifier", *size, "--per-class", "2", "4", "--font", str(color_font), "--json"]
    )
    result = json.loads(capsys.readouterr().out)
    curve = result["% by training images per class"]
    assert list(curve) == ["2", "4"]
    for row in curve.values():
        assert 0 <= row["top-1"] <= row["family"] <= 100 == row["top-5"]


def test_classification_loader_shows_both_loaders(tool, capsys):
    size = ["--images", "20", "--batch", "4", "--seconds", "0.01"]
    tool.main(["classification_loader", *size, "--json"])
    rates = json.loads(capsys.readouterr().out)["rates"]
    step = rates.pop("training step, ResNet-32, from memory")
    assert list(rates) == ["crop, flip, 0 workers", "crop, flip, RandAugment, 0 workers"]
    assert step["images/s"] > 0
    for row in rates.values():
        assert list(row) == ["torchvision's DataLoader", "this project", "ratio"]
        assert all(value > 0 for value in row["this project"].values())


def test_bad_numbers_are_refused(tool):
    with pytest.raises(ValueError, match="--repeats 0"):
        tool.main(["head", "--repeats", "0"])


def test_peak_memory_is_that_of_the_tensors_held_at_once():
    def call():
        for _ in range(3):
            first = torch.zeros(1000, 1000)  # 4 MB
            second = first + 1
            del first
        return second

    # The third 4 MB are the new `second`, made while `first` and the old one are there.
    assert peak_memory(call, "cpu") == pytest.approx(12, abs=0.1)


def test_scores_are_probabilities_with_the_wanted_number_of_candidates():
    generator = torch.Generator().manual_seed(0)
    boxes, owner = clustered_boxes(200, (80, 100), 9, generator)
    scores = detection_scores(owner, 50, 2000, 1e-3, generator)
    assert boxes.shape == (200, 4) and (boxes[:, 2:] >= boxes[:, :2]).all()
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(200))
    assert abs(int((scores[:, :-1] > 1e-3).sum()) - 2000) < 40


def test_calibrate_solves_a_falling_function():
    assert calibrate(lambda x: 10 - x, 3, 0.0, 10.0) == pytest.approx(7)
