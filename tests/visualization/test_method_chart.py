"""The chart of methods shows what it is given."""

import math

import pytest

from lvis_tde.visualization.charts import plot_group_ap
from lvis_tde.visualization.class_charts import plot_ap_over_images
from lvis_tde.visualization.figure import figure_to_array
from lvis_tde.visualization.method_chart import plot_methods
from lvis_tde.visualization.method_curves import plot_method_curves
from lvis_tde.visualization.palette import RUN_COLORS, RUN_NAMES, run_colors

METHODS = [("factual", 5.0, 20.0), ("tde", 9.0, 22.0), ("logn", math.nan, 21.0), ("own", 9, 22.0)]


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_a_dot_and_a_name_for_each_method_a_panel_for_each_model():
    figure = plot_methods({"softmax": METHODS, "sigmoid": METHODS[:2]})
    first, second = figure.axes
    dots = [line for line in first.get_lines() if line.get_marker() == "o"]
    assert sorted(tuple(dot.get_xydata()[0]) for dot in dots) == [(5, 20), (9, 22), (9, 22)]
    assert words(first) == ["as trained  20.0", "TDE  22.0", "own  22.0"]
    assert [axes.get_title("left") for axes in figure.axes] == ["softmax", "sigmoid"]
    # Names of methods that do the same are not on top of each other.
    heights = [text.xy[1] for text in first.texts]
    low, high = first.get_ylim()
    assert min(b - a for a, b in zip(heights, heights[1:])) > 0.07 * (high - low)
    assert figure_to_array(figure).std() > 1


def test_nothing_to_show():
    (axes,) = plot_methods({"softmax": [("tde", -100.0, 3.0)]}).axes
    assert words(axes) == ["n/a"]
    with pytest.raises(ValueError, match="models is empty"):
        plot_methods({})


@pytest.mark.parametrize("first", [[(None, 3.0), (1.0, 3.0)], [(-100.0, 3.0), (1.0, 3.0)], []])
def test_a_curve_without_its_first_point_marks_no_trained_model(first):
    curves = {"tde": first, "norcal": [(2.0, 2.0), (3.0, 2.5)]}
    figure = plot_method_curves(curves, chosen=(3.0, 2.5), words="x")
    assert figure_to_array(figure).std() > 1
    (axes,) = figure.axes
    at = [tuple(p) for line in axes.get_lines() for p in line.get_xydata()[:-1].tolist()]
    assert (2.0, 2.0) in at and axes.get_xlim()[0] > 0
    large = [line for line in axes.get_lines() if line.get_markersize() == 8]
    assert len(large) == (not first)
    assert all(tuple(line.get_xydata()[0]) == (2.0, 2.0) for line in large)


def test_names_of_all_runs_of_the_demo_fit_on_the_charts():
    runs = list(RUN_NAMES)
    assert runs == list(RUN_COLORS) and len(set(run_colors(runs).values())) == len(runs)
    task = {"segm": {"AP": 12.0, "APr": 3.0, "APc": 14.0, "APf": 20.0}}
    for chosen in (runs[:2], runs[:6], runs):
        lines = {run: ([1, 10, 100], [1.0, 2.0, 3.0]) for run in chosen}
        figures = [
            plot_group_ap(dict.fromkeys(chosen, task)),
            plot_ap_over_images(lines, bounds=(10, 100)),
        ]
        for figure in figures:
            width = figure.get_figwidth() * figure.dpi
            assert max(text.get_window_extent().x1 for text in figure.texts) <= width
            named = [text.get_text() for text in figure.texts]
            assert [name for name in named if name in RUN_NAMES.values()] == [
                RUN_NAMES[run] for run in chosen
            ]
