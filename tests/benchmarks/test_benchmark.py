"""The benchmark tool runs, and its instruments measure what they say. Nothing is timed here."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from benchmarks.common import peak_memory
from benchmarks.data import calibrate, clustered_boxes, detection_scores

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_head_prints_all_three_and_ratios_last(tool, capsys):
    size = ["--proposals", "20", "--features", "16", "--classes", "7", "--repeats", "1"]
    tool.main(["head", *size, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert list(result["seconds"]) == [
        "softmax (Detectron2)",
        "TDE, authors' formulation",
        "TDE, this project",
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


def test_a_missing_module_is_named(tool, capsys, monkeypatch):
    monkeypatch.setitem(tool.BENCHMARKS, "weather", "none")
    with pytest.raises(SystemExit):
        tool.main(["weather"])
    assert "no benchmarks.weather" in capsys.readouterr().err


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
