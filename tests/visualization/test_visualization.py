"""Pictures and charts show what they are given; no display, no global matplotlib state."""

import subprocess
import sys

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text

from lvis_tde.visualization.charts import plot_ap_over_alpha, plot_group_ap
from lvis_tde.visualization.class_charts import (
    ap_against_images,
    change_bars,
    confusion_bars,
    highest_ap,
    plot_ap_over_images,
)
from lvis_tde.visualization.detections import draw_comparison
from lvis_tde.visualization.figure import figure_to_array
from lvis_tde.visualization.palette import GROUP_COLORS, INK, RUN_COLORS, run_colors

GREY = np.full((64, 64, 3), 128, np.uint8)
NAMES = ["head", "middle", "tail"]
GROUPS = ["f", "c", "r"]


def _instances(classes, scores, masks=True):
    instances = Instances((64, 64))
    boxes = torch.tensor([[8.0, 20.0, 40.0, 52.0]] * len(classes)).reshape(-1, 4)
    instances.pred_boxes = Boxes(boxes)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.scores = torch.tensor(scores)
    if masks:
        instances.pred_masks = torch.zeros(len(classes), 64, 64, dtype=torch.bool)
        instances.pred_masks[:, 20:52, 8:40] = True
    return instances


def _record(category, segmentation=None):
    annotation = {"bbox": [8, 20, 32, 32], "bbox_mode": BoxMode.XYWH_ABS, "category_id": category}
    if segmentation is not None:
        annotation["segmentation"] = segmentation
    return {"annotations": [annotation]}


def _pixels(picture, group):
    """Number of pixels in a group's color, apart from the legend at the bottom."""
    color = 255 * np.array(to_rgb(GROUP_COLORS[group]))
    return int((np.abs(picture[:-34].astype(float) - color).max(-1) < 30).sum())


def test_comparison_draws_each_object_in_the_color_of_its_group():
    for category, group in enumerate(GROUPS):
        picture = draw_comparison(
            GREY,
            [("truth", _record(category)), ("predicted", _instances([category], [0.9]))],
            class_names=NAMES,
            class_frequency=GROUPS,
        )
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert picture.shape[1] > 2 * 420
        for other in GROUPS:
            assert (_pixels(picture, other) > 300) == (other == group)


def test_comparison_leaves_out_low_scores_and_surplus_objects():
    def draw(instances, **options):
        return draw_comparison(
            GREY, [("", instances)], class_names=NAMES, class_frequency=GROUPS, **options
        )

    empty = draw(_instances([], []))
    np.testing.assert_array_equal(draw(_instances([2], [0.2])), empty)
    assert _pixels(draw(_instances([2], [0.2]), score_threshold=0.1), "r") > 300
    one = draw(_instances([0], [0.9]))
    np.testing.assert_array_equal(draw(_instances([2, 0], [0.4, 0.9]), max_objects=1), one)


def test_polygons_rle_and_masks_give_the_same_outline():
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[20:52, 8:40] = 1
    ends = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=0))
    runs = np.diff(ends, prepend=0, append=mask.size).tolist()
    # A mask's outline has its corners cut.
    polygon = [8.5, 20, 39.5, 20, 40, 20.5, 40, 51.5, 39.5, 52, 8.5, 52, 8, 51.5, 8, 20.5]
    pictures = [
        draw_comparison(GREY, [("", _record(1, segmentation))], class_names=NAMES)
        for segmentation in ([polygon], mask_utils.encode(mask), {"size": [64, 64], "counts": runs})
    ]
    np.testing.assert_array_equal(pictures[1], pictures[2])
    difference = np.abs(pictures[0].astype(int) - pictures[1]).max(-1) > 40
    assert difference.mean() < 0.001
    assert not np.array_equal(
        pictures[0], draw_comparison(GREY, [("", _record(1))], class_names=NAMES)
    )


def test_marks_follow_class_and_place():
    def draw(instances, truth):
        return draw_comparison(GREY, [("", instances)], class_names=NAMES, truth=truth)

    right, wrong = _record(1), _record(0)
    elsewhere = _record(1)
    elsewhere["annotations"][0]["bbox"] = [50, 2, 10, 10]
    prediction = _instances([1], [0.9])
    assert not np.array_equal(draw(prediction, right), draw(prediction, wrong))
    np.testing.assert_array_equal(draw(prediction, elsewhere), draw(prediction, wrong))
    # In an image that shows nothing, each object is wrong.
    np.testing.assert_array_equal(draw(prediction, {"annotations": []}), draw(prediction, wrong))


def _saturation(picture):
    return (picture.max(-1).astype(int) - picture.min(-1)).astype(float)


def test_subject_keeps_its_color_and_the_rest_is_pale():
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = 200
    options = dict(class_names=NAMES, panel_size=256)
    empty = [("", {"annotations": []})]
    plain = draw_comparison(image, empty, **options)
    pale = draw_comparison(image, empty, subject=(20, 20, 44, 44), **options)
    top = (plain.shape[0] - 256 - 14, 14)  # the title's height
    inside = (slice(top[0] + 100, top[0] + 150), slice(14 + 100, 14 + 150))
    corner = (slice(top[0] + 220, top[0] + 250), slice(14 + 220, 14 + 250))
    np.testing.assert_array_equal(pale[inside], plain[inside])
    assert _saturation(pale[corner]).mean() < 0.7 * _saturation(plain[corner]).mean()


def test_subject_is_drawn_heavier_and_others_without_scores():
    box = (8, 20, 40, 52)

    def draw(category, subject):
        return draw_comparison(
            GREY,
            [("", _instances([category], [0.9]))],
            class_names=NAMES,
            class_frequency=GROUPS,
            subject=subject,
        )

    here, elsewhere = draw(2, box), draw(2, (50, 50, 60, 60))
    assert _pixels(here, "r") > 1.5 * _pixels(elsewhere, "r") > 300
    # Where nothing is found, the place is marked all the same.
    missed = [("", {"annotations": []})]
    marked = draw_comparison(GREY, missed, class_names=NAMES, subject=box)
    assert not np.array_equal(
        marked, draw_comparison(GREY, missed, class_names=NAMES, subject=(50, 50, 60, 60))
    )


def test_title_and_footnote_fit_however_narrow_the_picture():
    image = np.full((90, 30, 3), 128, np.uint8)
    words = "words that are too long for this width"
    plain = draw_comparison(image, [("", _record(0))], class_names=NAMES)
    picture = draw_comparison(
        image, [(words, _record(0))], class_names=NAMES, title=words, footnote=words
    )
    assert picture.shape[1] == plain.shape[1] and picture.shape[0] > plain.shape[0]
    assert (picture[:, -10:] == 255).all() and (picture[:40] < 200).any()


def test_boxes_without_masks_and_other_sizes():
    image = np.zeros((30, 90, 3), np.uint8)
    instances = _instances([0], [0.9], masks=False)
    picture = draw_comparison(image, [("", instances)], class_names=NAMES, panel_size=300)
    assert picture.shape[1] == 300 + 2 * 14


def test_without_legend_a_picture_is_shorter_and_otherwise_the_same():
    options = {"class_names": NAMES, "class_frequency": "r" * len(NAMES)}
    picture, bare = (
        draw_comparison(GREY, [("", _record(1))], legend=legend, **options)
        for legend in (True, False)
    )
    assert bare.shape[0] < picture.shape[0] and bare.shape[1] == picture.shape[1]
    np.testing.assert_array_equal(bare[: 34 + 420], picture[: 34 + 420])


def test_picture_mistakes():
    with pytest.raises(ValueError, match="float64"):
        draw_comparison(GREY / 255, [("", _record(0))], class_names=NAMES)
    with pytest.raises(ValueError, match="panels is empty"):
        draw_comparison(GREY, [], class_names=NAMES)


def _results(*values):
    return {"segm": dict(zip(("AP", "APr", "APc", "APf"), values))}


def test_bars_have_the_height_of_the_values():
    runs = {"softmax": _results(20.0, 5.0, 22.0, 31.0), "tde": _results(24.0, 15.0, 25.0, 31.5)}
    figure = plot_group_ap(runs)
    heights = sorted(bar.get_height() for bar in figure.axes[0].patches)
    expected = [v for run in runs.values() for v in run["segm"].values()]
    assert heights == sorted(expected)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {f"{value:.1f}" for value in expected} == set(texts)


def test_bars_of_seeds_are_means_with_a_dot_each():
    figure = plot_group_ap({"tde": [_results(1.0, 2.0, 3.0, 4.0), _results(3.0, 4.0, 5.0, 6.0)]})
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == [2.0, 3.0, 4.0, 5.0]
    assert [sorted(line.get_ydata()) for line in axes.lines] == [[1, 3], [2, 4], [3, 5], [4, 6]]


@pytest.mark.parametrize("undefined", [float("nan"), -100.0])
def test_group_without_classes_has_no_bar(undefined):
    figure = plot_group_ap({"own run": _results(10.0, undefined, 10.0, 10.0)})
    assert len(figure.axes[0].patches) == 3
    assert "n/a" in [text.get_text() for text in figure.axes[0].texts]


def test_bars_are_colored_by_group_or_by_run():
    def colors(runs):
        bars = plot_group_ap(dict.fromkeys(runs, _results(1.0, 1.0, 1.0, 1.0))).axes[0].patches
        return [to_hex(bar.get_facecolor()).upper() for bar in bars]

    assert colors(["any"]) == [INK, *GROUP_COLORS.values()]
    assert colors(["tde", "b"]) == [RUN_COLORS["tde"]] * 4 + [run_colors(["tde", "b"])["b"]] * 4


def test_runs_have_different_colors():
    own = run_colors(["a", "tde", "b", "softmax", "c", "d"])
    assert own["tde"] == RUN_COLORS["tde"] and own["softmax"] == RUN_COLORS["softmax"]
    assert list(own) == ["a", "tde", "b", "softmax", "c", "d"]
    assert len(set(own.values())) == 6 and not set(own.values()) & set(GROUP_COLORS.values())
    assert len(run_colors([str(i) for i in range(20)])) == 20


def _row(name, frequency, images, ap, **more):
    return dict(name=name, frequency=frequency, image_count=images, AP=ap, num_gt=3, **more)


def test_classes_are_dots_of_their_groups_color():
    rows = [_row("a", "r", 2, 10.0), _row("b", "f", 300, 41.0), _row("c", "r", 5, 0.0)]
    figure = ap_against_images({"one": (rows, ([2, 300], [5.0, 41.0])), "two": ([], ([], []))})
    one, two = figure.axes
    dots = {
        tuple(point): to_hex(dots.get_facecolor()[0]).upper()
        for dots in one.collections
        for point in dots.get_offsets().tolist()
    }
    assert dots == {(2, 10): GROUP_COLORS["r"], (5, 0): GROUP_COLORS["r"]} | {
        (300, 41): GROUP_COLORS["f"]
    }
    assert list(one.lines[0].get_ydata()) == [5.0, 41.0] and len(two.lines[0].get_ydata()) == 0
    assert one.get_ylim() == two.get_ylim() and one.get_ylim()[1] > 60
    assert [highest_ap(r) for r in ([], rows[:1], rows[:2])] == [20, 20, 60]
    assert highest_ap([_row("a", "r", 1, 100.0)]) == 100


def test_runs_are_lines_over_the_groups():
    lines = {"tde": ([2, 30, 400], [5.0, 20.0, 60.0]), "softmax": ([2, 400], [0.0, 61.0])}
    axes = plot_ap_over_images(lines, bounds=(10, 100)).axes[0]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert drawn[:2] == [(x, y) for x, y in lines.values()]
    assert [line.get_color() for line in axes.lines[:2]] == [RUN_COLORS[run] for run in lines]
    assert [x for x, _ in drawn[2:]] == [[10, 10], [100, 100]]
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 61 and axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["rare", "common", "frequent"]
    # A group without points has no room.
    (text,) = plot_ap_over_images({"a": ([200, 400], [1, 2])}, bounds=(10, 100)).axes[0].texts
    assert text.get_text() == "frequent"
    assert plot_ap_over_images({"a": ([], [])}, bounds=(10, 100)).axes[0].get_ylim() == (0, 100)
    with pytest.raises(ValueError, match="runs is empty"):
        plot_ap_over_images({}, bounds=(10, 100))


def test_changes_are_bars_from_top_to_bottom():
    rows = [_row("up", "r", 1, 30.0, before=10.0, change=20.0)]
    rows += [_row("down", "f", 1, 5.0, before=9.5, change=-4.5)]
    axes = change_bars(rows).axes[0]
    bars = sorted(axes.patches, key=lambda bar: -bar.get_y())
    assert [bar.get_width() for bar in bars] == [20.0, -4.5]
    assert [to_hex(b.get_facecolor()).upper() for b in bars] == [GROUP_COLORS[f] for f in "rf"]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["+20.0  (10 → 30)", "−4.5  (10 → 5)"]
    assert [text.get_text() for text in change_bars([]).axes[0].texts] == ["no class changed"]


def test_confusions_are_shares_and_counts():
    names = ("itself", "rare", "common", "frequent", "nothing")
    outcomes = {"a": dict(zip(names, (1, 0, 1, 1, 1))), "b": dict(zip(names, (0, 0, 0, 0, 0)))}
    mistakes = {"a": [("cat", "dog", "f", 2), ("cat", "lynx", "r", 1)], "b": []}
    shares, first, second = confusion_bars(outcomes, mistakes).axes
    assert [bar.get_width() for bar in shares.patches] == [0] * 5 + [25, 0, 25, 25, 25]
    assert [bar.get_width() for bar in first.patches] == [2, 1] and not second.patches
    assert [t.get_text() for t in first.get_yticklabels()] == ["cat → dog", "cat → lynx"]


def test_alpha_curve_draws_all_points_and_marks_the_chosen_one():
    curve = {1.0: {"AP": 3.0, "APr": 1.0}, 0.0: {"AP": 2.0, "APr": 1.5}}
    axes = plot_ap_over_alpha(curve, chosen=1.0).axes[0]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([0.0, 1.0], [2.0, 3.0]) in lines and ([0.0, 1.0], [1.5, 1.0]) in lines
    assert any(x == [1.0, 1.0] for x, _ in lines)
    assert axes.get_ylim()[0] == 0
    texts = [text.get_text() for text in axes.texts]
    assert "chosen: 1" in texts and any(text.startswith("APr") for text in texts)


def test_chart_mistakes():
    with pytest.raises(ValueError, match="'tde'.*'bbox'"):
        plot_group_ap({"tde": _results(1, 1, 1, 1)}, task="bbox")
    with pytest.raises(ValueError, match="results is empty"):
        plot_group_ap({})
    with pytest.raises(ValueError, match="curve is empty"):
        plot_ap_over_alpha({})


def test_figures_become_arrays():
    array = figure_to_array(plot_group_ap({"tde": _results(1, 2, 3, 4)}))
    assert array.shape == (380, 760, 3) and array.dtype == np.uint8
    assert array.std() > 5


@pytest.mark.parametrize("name", ["US$ to A$", "$_$"])
def test_dollars_in_names_are_no_formulas(name):
    row = {"name": name, "frequency": "r", "image_count": 3, "AP": 20.0, "num_gt": 2}
    row.update(before=1.0, change=19.0)
    figures = [
        change_bars([row]),
        plot_group_ap({name: {"segm": {"AP": 1.0}}, "b$_$": {"segm": {"AP": 2.0}}}),
        plot_ap_over_images({name: ([5.0, 500.0], [3.0, 4.0])}, bounds=(10, 100)),
    ]
    for figure in figures:
        assert figure_to_array(figure).std() > 1
        shown = [text for text in figure.findobj(Text) if name in text.get_text()]
        plain = [text for text in shown if not text.get_parse_math()]
        assert shown == plain and shown
    # Powers of ten at logarithmic axes are still formulas, also when drawn again.
    first, again = figure_to_array(figures[2]), figure_to_array(figures[2])
    np.testing.assert_array_equal(first, again)
    powers = [t for t in figures[2].findobj(Text) if "mathdefault" in t.get_text()]
    assert all(text.get_parse_math() for text in powers)
    picture = draw_comparison(GREY, [(name, _record(0))], class_names=[name, "b", "c"])
    assert picture.std() > 1


def test_pyplot_is_not_imported():
    code = "import sys, lvis_tde.visualization; sys.exit('matplotlib.pyplot' in sys.modules)"
    import detectron2.utils.visualizer  # noqa: F401  (the test says nothing if this fails)

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
