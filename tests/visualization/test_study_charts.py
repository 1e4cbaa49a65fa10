"""Charts of a study: what is drawn is what was given, and odd studies are drawn, too."""

import math

import pytest
from matplotlib.colors import to_rgb

from lvis_tde.visualization.figure import figure_to_array
from lvis_tde.visualization.learning_curves import (
    plot_gain_by_momentum,
    plot_gain_over_ap,
    plot_learning_curves,
)
from lvis_tde.visualization.palette import METHOD_LETTERS, METHOD_NAMES, series_styles
from lvis_tde.visualization.study_charts import plot_glance, plot_ranks, plot_runs


def marks(axes):
    """Points that have a marker."""
    lines = [line for line in axes.get_lines() if line.get_marker() not in ("None", "", None)]
    return {tuple(map(float, point)) for line in lines for point in zip(*line.get_data())}


def words(axes):
    return [text.get_text() for text in axes.texts]


def inside(figure):
    """All words are within the figure."""
    figure_to_array(figure)
    width, height = figure.get_figwidth() * figure.dpi, figure.get_figheight() * figure.dpi
    for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]:
        box = text.get_window_extent()
        assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height, text


def test_a_dot_for_each_run_and_a_name_for_each_recipe():
    runs = {
        "softmax": {"factual": (1.0, 14.0), "tde": (4.0, 15.0), "own": (2.0, 12.0)},
        "de-confound, with a long name of its own": {"factual": (3.0, 16.0), "logn": (1, math.nan)},
        "nothing": {"factual": (math.nan, 3.0), "tde": (-100.0, 3.0)},
    }
    figure = plot_runs(runs)
    (axes,) = figure.axes
    assert {(1, 14), (4, 15), (2, 12), (3, 16)} <= marks(axes)
    assert {"T", "own", "softmax  14.0"} <= set(words(axes)) and "Ln" not in words(axes)
    assert not any("nothing" in one for one in words(axes))
    inside(figure)
    with pytest.raises(ValueError, match="recipes is empty"):
        plot_runs({})


def test_a_line_for_each_training_at_a_glance():
    runs = {
        "softmax": {
            "factual": {"AP": (12.0, 1.5, 3), "APr": (0.5, math.nan, 1)},
            "composition": {"AP": (14.0, 2.0, 3), "APr": (4.0, 0.5, 3)},
        },
        "a training with a name that is much too long for its place": {
            "factual": {"AP": (13.0, math.nan, 1)}
        },
    }
    figure = plot_glance(runs)
    for axes, values in zip(figure.axes, ({12, 14, 13}, {0.5, 4})):
        assert {x for x, _ in marks(axes)} == values
    intervals = [tuple(line.get_xdata()) for line in figure.axes[0].get_lines()]
    assert (10.5, 13.5) in intervals and (12, 16) in intervals
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(runs)
    inside(figure)
    for label in figure.axes[0].get_yticklabels():
        assert label.get_window_extent().x0 >= 0
    with pytest.raises(ValueError, match="recipes is empty"):
        plot_glance({})


def test_all_methods_at_a_glance_and_nothing_undefined():
    runs = {m: {"AP": (10.0 + i, math.nan, 1)} for i, m in enumerate(METHOD_NAMES)}
    runs["tde"] = {"AP": (-100.0, math.nan, 1)}
    axes = plot_glance({"softmax": runs, "other": runs}).axes[0]
    found = marks(axes)
    assert {x for x, _ in found} == {10.0 + i for i in range(len(runs)) if i != 1}
    shapes = {line.get_marker() for line in axes.get_lines()} - {"None"}
    assert len(shapes) == len(runs) - 1
    # The dots of one training are nearer to its line than to the next one's.
    assert all(abs(y - round(y)) < 0.5 for _, y in found) and len(found) == 2 * (len(runs) - 1)


def test_ranks_in_the_order_of_ap():
    ranks = {"a": {"AP": 2, "APr": 1, "APc": 2, "APf": 2}, "b": {"AP": 1, "APr": 2.5}}
    figure = plot_ranks(ranks)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    found = {(x, round(y)) for x, y in marks(axes)}
    assert found == {(1, 0), (2.5, 0), (2, 1), (1, 1)}
    inside(plot_ranks({f"run {i}": {"AP": i} for i in range(60)}))
    with pytest.raises(ValueError, match="runs is empty"):
        plot_ranks({})


def test_curves_are_means_over_the_iterations_that_seeds_share():
    seeds = {
        "0": [{"iteration": 9, "APr": 1.0}, {"iteration": 19, "APr": 2.0, "APr_tde": 4.0}],
        "1": [{"iteration": 9, "APr": 3.0}, {"iteration": 19, "weight_norm_r": 0.5}],
    }
    figure = plot_learning_curves({"softmax": seeds, "none": {"0": []}})
    assert len(figure.axes) == 4  # nobody has cosines
    norms, rare = figure.axes[:2]
    assert "rare 0.50" in words(norms) and "n/a" in words(figure.axes[2])
    assert {"as trained 2.0", "TDE 4.0"} <= set(words(rare))
    assert all(axes.get_ylim()[0] == 0 for axes in figure.axes)
    assert rare.get_ylim() == figure.axes[3].get_ylim()
    inside(figure)
    for nothing, text in (({}, "it is empty"), ({"softmax": {"0": [{"iteration": 1}]}}, "softmax")):
        with pytest.raises(ValueError, match=f"no curve: {text}"):
            plot_learning_curves(nothing)


def test_gains_lie_where_the_momentum_is_with_their_intervals():
    gains = {
        "softmax": {"0": {"AP": ([1.0, 2.0], 0.7)}, "0.9": {"AP": ([3.0], math.nan)}},
        "de-confound": {"AdamW": {"AP": ([0.5], math.nan), "APr": ([2.5], math.nan)}},
    }
    figure = plot_gain_by_momentum(gains)
    axes = figure.axes[0]
    ticks = dict(zip([t.get_text() for t in axes.get_xticklabels()], axes.get_xticks()))
    assert ticks["0"] == 0 and ticks["0.9"] == pytest.approx(1) and ticks["AdamW"] > 1.3
    heights = sorted(y for _, y in marks(axes))
    assert heights == [0.5, 1.0, 1.5, 2.0, 3.0]  # the dots of two seeds are there, too
    ends = [line.get_ydata() for line in axes.get_lines() if len(set(line.get_xdata())) == 1]
    assert any(tuple(map(float, one)) == pytest.approx((0.8, 2.2)) for one in ends)
    assert {"softmax", "de-confound"} <= set(words(axes))
    inside(figure)
    for nothing in ({}, {"softmax": {}}):
        with pytest.raises(ValueError, match="families is empty"):
            plot_gain_by_momentum(nothing)


def test_gains_lie_over_the_ap_of_the_same_checkpoint():
    rows = [
        {"iteration": 9, "AP": 2.0, "AP_tde": 3.0, "APr": 0.0, "APr_tde": 0.5},
        {"iteration": 14},  # of training alone
        {"iteration": 19, "AP": 6.0, "AP_tde": 5.5, "APr": 1.0, "APr_tde": math.nan},
    ]
    names = ("0", "0.9", "0.98", "AdamW")
    families = {"softmax": {name: {"0": rows, "1": rows[:1]} for name in names}, "other": {}}
    figure = plot_gain_over_ap(families)
    above, below, *empty = figure.axes
    curves = [line for line in above.get_lines() if line.get_marker() == "."]
    assert [list(zip(*one.get_data())) for one in curves[:2]] == [[(2, 1), (6, -0.5)], [(2, 1)]]
    assert marks(below) and {y for _, y in marks(below)} == {0.5} and len(empty) == 2
    colors = [one.get_color() for one in curves[::2]]
    light = [sum(to_rgb(color)) for color in colors[:3]]
    assert len(set(colors)) == 4 and light == sorted(light, reverse=True)
    assert {f"momentum {n}" for n in names[:3]} | {"AdamW"} <= {t.get_text() for t in figure.texts}
    inside(figure)
    with pytest.raises(ValueError, match="families is empty"):
        plot_gain_over_ap({"softmax": {}})


def test_recipes_are_told_apart_by_color_and_marker():
    titles = ["cosine", "softmax", *(f"recipe {i}" for i in range(9)), "de-confound"]
    found = series_styles(titles)
    assert list(found) == titles
    assert len({color for color, _ in found.values()}) == len(titles)
    assert len({marker for _, marker in found.values()}) == len(titles)
    assert found["softmax"] == series_styles(["softmax"])["softmax"]
    assert len({*METHOD_LETTERS.values()}) == len(METHOD_LETTERS)
    assert METHOD_LETTERS.keys() <= METHOD_NAMES.keys()
