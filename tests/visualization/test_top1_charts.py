"""Charts of classifiers: what they draw is where the numbers are."""

import numpy as np
import pytest

from lvis_tde.visualization.charts import TOP1_BARS, plot_group_ap
from lvis_tde.visualization.figure import figure_to_array
from lvis_tde.visualization.palette import run_colors
from lvis_tde.visualization.top1_charts import plot_reliability, plot_shifts, plot_top1_runs

SEED = {"top1": 50.0, "many": 70.0, "medium": 50.0, "few": 30.0}
SHIFTED = {"forward50": 60.0, "uniform": 50.0, "backward50": 40.0}


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in axes.texts] + [
        t.get_text() for t in figure.texts
    ]


def test_bars_of_accuracies_with_intervals():
    runs = {"a": {"top1": SEED}, "b": {"top1": {**SEED, "few": float("nan")}}}
    ends = {"a": {"few": (25.0, 36.0)}, "b": {"few": (float("nan"),) * 2}}
    figure = plot_group_ap(runs, task="top1", metrics=TOP1_BARS, intervals=ends)
    (axes,) = figure.axes
    assert sorted(bar.get_height() for bar in axes.patches) == [30, 50, 50, 50, 50, 70, 70]
    assert {tuple(line.get_ydata()) for line in axes.lines} == {(25, 36)}
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "all images",
        "many",
        "medium",
        "few",
    ]
    assert "n/a" in texts(figure)


def test_a_row_for_each_run_and_a_block_for_each_set():
    runs = {"softmax": [SEED, {**SEED, "top1": 54.0}], "tau": [SEED, {**SEED, "few": 36.0}]}
    nothing = {"softmax": [{**SEED, "few": float("nan")}]}
    ends = {"x": {"tau": {"few": (27.0, 39.0)}}}
    figure = plot_top1_runs({"x": runs, "y": nothing}, intervals=ends, names={"tau": "tau-norm"})
    assert len(figure.axes) == 8
    all_images, _, _, few = figure.axes[:4]
    assert [t.get_text() for t in all_images.get_yticklabels()] == ["softmax", "tau-norm"]
    means = [float(line.get_xdata()[0]) for line in all_images.lines if line.get_markersize() == 6]
    assert means[-2:] == [52, 50]
    assert any(np.array_equal(line.get_xdata(), (27, 39)) for line in few.lines)
    assert {"52.0", "33.0", "x", "y", "n/a"} <= set(texts(figure))
    assert figure_to_array(figure).std() > 0
    with pytest.raises(ValueError, match="needs a run"):
        plot_top1_runs({"x": {}})


def test_a_line_for_each_run_over_shifted_sets():
    runs = {"softmax": SHIFTED, "tde": [SHIFTED, {**SHIFTED, "backward50": 44.0}]}
    ends = {"softmax": {name: (value - 1, value + 1) for name, value in SHIFTED.items()}}
    figure = plot_shifts(runs, intervals=ends)
    (axes,) = figure.axes
    lines = [line.get_ydata().tolist() for line in axes.lines if len(line.get_ydata()) == 3]
    assert lines == [[60, 50, 40], [60, 50, 42]]
    assert len(axes.collections) == 1
    assert [t.get_text() for t in axes.get_xticklabels()] == ["50", "uniform", "50"]
    assert {"softmax  40.0", "de-confound, TDE on  42.0"} <= set(texts(figure))
    with pytest.raises(ValueError, match="empty"):
        plot_shifts({})


def test_a_panel_of_calibration_for_each_run():
    bins = np.array([[0, np.nan, np.nan], [30, 0.5, 0.4], [10, 0.9, 0.7]])
    figure = plot_reliability({"a": bins, "b": bins}, errors={"a": 12.5})
    assert len(figure.axes) == 2
    (dots,) = figure.axes[0].collections
    assert dots.get_offsets().tolist() == [[50, 40], [90, 70]]
    assert "12.5" in figure.axes[0].get_title(loc="left")
    with pytest.raises(ValueError, match="empty"):
        plot_reliability({})


def test_ten_unknown_runs_have_different_colors():
    assert len(set(run_colors("abcdefghij").values())) == 10
