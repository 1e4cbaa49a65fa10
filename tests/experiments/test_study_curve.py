import json

import pytest

from lvis_tde.experiments.study.curve import curve_of, iterations_of, training_seconds


def write(folder, rows, tail=""):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.json").write_text(text + tail)


def test_no_training_has_no_curve(tmp_path):
    assert curve_of(tmp_path) == [] and iterations_of(tmp_path) == 0
    assert training_seconds(tmp_path) == 0


def test_scalars_of_tde_and_evaluations_without_their_prefixes(tmp_path):
    first = {"iteration": 19, "time": 0.5, "lr": 0.1, "tde/fg_cosine_to_mean": 0.123456, "tde/x": 1}
    second = {"iteration": 39, "time": 0.5, "calib/APr": 3.0, "tde/x": float("nan")}
    write(tmp_path, [first, second, {"iteration": 59, "lr": 0.1}])
    assert curve_of(tmp_path) == [
        {"iteration": 19, "fg_cosine_to_mean": 0.1235, "x": 1},
        {"iteration": 39, "APr": 3.0},
    ]
    points = [{"iteration": 19, "AP": 1.5}, {"iteration": 29, "AP": 2.5}]
    assert curve_of(tmp_path, points) == [
        {"iteration": 19, "fg_cosine_to_mean": 0.1235, "x": 1, "AP": 1.5},
        {"iteration": 29, "AP": 2.5},
        {"iteration": 39, "APr": 3.0},
    ]
    assert iterations_of(tmp_path) == 60


def test_what_was_trained_again_counts_once(tmp_path):
    rows = [{"iteration": i, "time": 0.5, "tde/x": i} for i in (19, 39)]
    again = [{"iteration": i, "time": 0.25, "tde/x": -i} for i in (39, 59)]
    write(tmp_path, [*rows, *again], tail='{"iteration": 79, "ti')
    assert [row["x"] for row in curve_of(tmp_path)] == [19, -39, -59]
    assert training_seconds(tmp_path) == 20 * 0.5 + 40 * 0.25


@pytest.mark.parametrize("number", [30, 1000])
def test_long_curves_are_thinned_and_keep_evaluations(tmp_path, number):
    rows = [{"iteration": i, "tde/x": i} for i in range(number)]
    for i in range(0, number, 10):
        rows[i]["calib/AP"] = 1.0
    write(tmp_path, rows)
    found = [row["iteration"] for row in curve_of(tmp_path)]
    evaluated = set(range(0, number, 10))
    assert evaluated <= set(found) and found == sorted(found)
    assert len(found) == min(number, 40 + len(evaluated)) and number - 1 in found


def test_undefined_aps_are_no_points(tmp_path):
    write(tmp_path, [{"iteration": 4, "calib/bbox/AP": 3.0, "calib/bbox/APr": -100.0}])
    assert curve_of(tmp_path) == [{"iteration": 4, "bbox/AP": 3.0}]
