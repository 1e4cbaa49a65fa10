"""Columns, result files, and what they cost."""

import io
import json

import numpy as np
import pytest
from lvis_cases import problem

from lvis_tde.evaluation import Detections, detections, evaluate_lvis, result_file


def as_json(results):
    """What a file can hold of the results."""
    out = json.loads(json.dumps(results, default=lambda value: value.decode()))
    return out


@pytest.mark.parametrize("with_boxes", [True, False])
def test_results_survive_columns_and_files(with_boxes, tmp_path):
    _, results = problem(5, with_boxes)
    assert len(results) > 5
    columns = Detections.from_results(results)
    assert list(columns.results()) == as_json(results)
    path = tmp_path / "results.json"
    with open(path, "w") as file:
        columns.write_json(file)
    assert json.loads(path.read_text()) == as_json(results)
    assert list(Detections.from_file(path).results()) == as_json(results)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_a_file_read_in_pieces_is_the_same(block, tmp_path, monkeypatch):
    annotations, results = problem(5)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(as_json(results), indent=2))
    monkeypatch.setattr(result_file, "BLOCK", block)
    monkeypatch.setattr(detections, "_ROWS", 3)
    assert list(Detections.from_file(path).results()) == as_json(results)
    truth = tmp_path / "annotations.json"
    truth.write_text(json.dumps(annotations, default=lambda value: value.decode()))
    expected = evaluate_lvis(annotations, results).metrics
    for engine in ("native", "lvis"):
        assert evaluate_lvis(str(truth), path, engine=engine).metrics == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": 1}', "no JSON list"),
        ('[{"a": 1}', "ends within"),
        ('[{"a": "' + 40 * "x", "ends within its JSON list: Unterminated string.* at character 7"),
        (
            "  [" + 3 * '{"a": 1}, ' + "{'bad': 1}" + 9 * ', {"a": 1}' + "]",
            "no JSON: Expecting property name .* at character 34: ..'bad",
        ),
        ("[1]", "no detection"),
        ("[]garbage", "behind its JSON list: 'garbage'"),
        ("[] " + 20 * " " + '[{"a": 1}]', "behind its JSON list"),
    ],
)
@pytest.mark.parametrize("block", [3, result_file.BLOCK])
def test_a_file_that_is_no_list_of_detections_is_refused(
    text, message, block, tmp_path, monkeypatch
):
    monkeypatch.setattr(result_file, "BLOCK", block)
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Detections.from_file(path)


def test_no_detections(tmp_path):
    empty = Detections.concatenate([])
    assert len(empty) == 0
    text = io.StringIO()
    empty.write_json(text)
    assert text.getvalue() == "[]"
    path = tmp_path / "results.json"
    path.write_text(" []\n \n")
    assert len(Detections.from_file(path)) == 0


def test_concatenation_keeps_order_and_uncommon_segmentations():
    _, results = problem(4)
    parts = [Detections.from_results(results[i : i + 4]) for i in range(0, len(results), 4)]
    assert list(Detections.concatenate(parts).results()) == as_json(results)


def test_a_detection_costs_its_columns_and_its_run_lengths():
    rle = {"size": [480, 640], "counts": "0" * 100}
    result = {"image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
    columns = Detections.from_results([{**result, "segmentation": rle}] * 1000)
    assert columns.nbytes / 1000 < 200
    assert np.array_equal(columns.offsets[:3], [0, 100, 200])
