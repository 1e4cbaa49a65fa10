"""Figures of a set and confusions of a detector in it, on files small enough to count by hand."""

import argparse

import pytest
from detectron2.data import MetadataCatalog

from benchmarks import generated_set
from benchmarks.generated_set import lvis_statistics, markdown
from benchmarks.set_confusions import confusion_shares, confusions, most_confused
from benchmarks.set_figures import choose_examples
from benchmarks.set_statistics import families, groups, set_statistics


def _category(number, name, frequency, family):
    definition = f"the emoji U+1F{number} of the family {family}"
    return {"id": number, "name": name, "frequency": frequency, "def": definition}


def _object(image, category, box, **more):
    return {"image_id": image, "category_id": category, "bbox": list(box), **more}


@pytest.fixture
def hand_made():
    """Three images of 100 x 100: a frequent bird and two rare fish; a bird and a common cup; none.

    Boxes of 20 x 20, 40 x 40 (right at the border) and 60 x 60; the first two fish overlap by half.
    """
    labels = [
        _object(1, 1, (10, 10, 20, 20)),
        _object(1, 2, (40, 40, 20, 20)),
        _object(1, 2, (50, 40, 20, 20)),
        _object(2, 1, (60, 20, 40, 40)),
        _object(2, 3, (0.5, 20, 59, 60), area=10_000),
    ]
    images = [
        {"id": 1, "neg_category_ids": [3], "not_exhaustive_category_ids": [2]},
        {"id": 2, "neg_category_ids": [2], "not_exhaustive_category_ids": []},
        {"id": 3, "neg_category_ids": [1], "not_exhaustive_category_ids": []},
    ]
    return {
        "images": [{"width": 100, "height": 100, **image} for image in images],
        "annotations": [{"id": i + 1, **a} for i, a in enumerate(labels)],
        "categories": [
            _category(1, "bird", "f", "animal"),
            _category(2, "gold_fish", "r", "animal"),
            _category(3, "cup", "c", "dishware"),
        ],
    }


def test_counts_of_images_and_classes(hand_made):
    found = set_statistics(hand_made)
    classes, images = found["Classes"], found["Images"]
    assert classes["classes"] == 3 and classes["families"] == 2
    assert classes["rare, %"] == classes["frequent, %"] == pytest.approx(100 / 3)
    assert classes["images of the most frequent class"] == 2
    assert classes["images of the rarest class"] == 1
    assert images["images"] == 3 and images["boxes"] == 5
    assert images["boxes per image, mean"] == pytest.approx(5 / 3)
    assert images["boxes per image, median"] == 2
    # Bird and fish, bird and cup, nothing.
    assert images["classes per image, mean"] == pytest.approx(4 / 3)
    assert images["boxes per class and image, mean"] == pytest.approx(5 / 4)
    assert images["of them with several, %"] == 25
    assert images["classes listed as absent per image, mean"] == 1
    assert images["classes not annotated exhaustively, % of class and image"] == 25


def test_sizes_borders_and_overlaps_of_boxes(hand_made):
    boxes = set_statistics(hand_made)["Boxes"]
    assert boxes["sqrt(box area / image area), median"] == pytest.approx(0.2)
    # 400 three times, 1600, and an area of its own of 10,000.
    assert boxes["small (area below 32 x 32 px), %"] == pytest.approx(60)
    assert boxes["medium, %"] == boxes["large (area from 96 x 96 px), %"] == pytest.approx(20)
    # One ends at the right border, one half a pixel from the left one.
    assert boxes["box ends within 1 px of the border, %"] == pytest.approx(40)
    assert boxes["other boxes cover 10% of the box, %"] == pytest.approx(40)


def test_groups_that_occur_together(hand_made):
    together = set_statistics(hand_made)["Together in an image"]
    assert together["images of a rare class that also show a frequent one, %"] == 100
    assert together["images of a rare class that also show a common one, %"] == 0
    assert together["images of a frequent class that also show a rare one, %"] == 50
    assert together["images of a common class that also show a frequent one, %"] == 100


def test_what_a_file_cannot_tell_is_empty(hand_made):
    for image in hand_made["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for category in hand_made["categories"]:
        del category["def"], category["frequency"]
    found = set_statistics(hand_made)
    assert found["Classes"]["families"] is None
    assert found["Classes"]["rare, %"] == 100  # up to two images each
    assert found["Images"]["classes listed as absent per image, mean"] is None
    assert families(hand_made) == {} and set(groups(hand_made).values()) == {"r"}
    nothing = {"images": [], "annotations": [], "categories": hand_made["categories"]}
    assert set_statistics(nothing)["Images"]["boxes per image, mean"] is None


def test_lvis_v1_as_published():
    found = lvis_statistics()
    classes, images = found["Classes"], found["Images"]
    # Gupta et al.: 337 rare, 461 common and 405 frequent classes.
    for name, number in (("rare", 337), ("common", 461), ("frequent", 405)):
        assert classes[f"{name}, %"] == pytest.approx(100 * number / 1203)
    assert images["boxes per image, mean"] == pytest.approx(1_270_141 / 100_170)


def _detection(image, category, box, score):
    return {**_object(image, category, box), "score": score}


@pytest.fixture
def detections():
    return [
        # The bird of image 1: a low score of its own class, a higher one of the fish.
        _detection(1, 1, (10, 10, 20, 20), 0.3),
        _detection(1, 2, (11, 10, 20, 20), 0.6),
        # Nearer to the second fish than to the first, which it also covers by more than half.
        _detection(1, 1, (48, 40, 20, 20), 0.9),
        # The first fish: only with a low score.
        _detection(1, 3, (40, 40, 20, 20), 0.04),
        # Right, and then a cup whose box is too small.
        _detection(2, 1, (60, 20, 40, 40), 0.8),
        _detection(2, 3, (0, 20, 20, 60), 0.99),
    ]


def test_an_object_is_taken_for_the_best_detection_that_is_nearest_to_it(hand_made, detections):
    assert confusions(hand_made, detections, 0.05) == [(1, 2), (2, None), (2, 1), (1, 1), (3, None)]
    assert confusions(hand_made, detections, 0.0)[1] == (2, 3)
    assert confusions(hand_made, [], 0.0) == [(1, None), (2, None), (2, None), (1, None), (3, None)]


def test_shares_by_group_and_family(hand_made, detections):
    pairs = confusions(hand_made, detections, 0.0)
    shares = confusion_shares(hand_made, pairs)
    rare = shares["r"]
    assert rare["objects"] == 2 and rare["c"] == rare["f"] == 50
    assert rare["right"] == rare["r"] == rare["nothing"] == 0
    # Taken for a cup, which is of another family, and a bird, which is of the same.
    assert rare["family"] == 50
    # Predicted wrongly were a fish, a cup and a bird: of what a fish can be taken for, half.
    assert rare["family by chance"] == 50
    assert shares["f"]["right"] == shares["f"]["r"] == 50 and shares["f"]["family"] == 100
    assert shares["c"]["nothing"] == 100 and shares["c"]["family"] is None
    assert most_confused(hand_made, pairs) == [("gold fish", "bird", 1), ("gold fish", "cup", 1)]


def test_examples_show_most_groups_and_few_objects():
    def record(*classes):
        return {"annotations": [{"category_id": c} for c in classes]}

    records = [record(0, 1), record(0, 1, 2), record(*[0, 1, 2] * 3), record(2, 1, 0, 0)]
    assert choose_examples(records, "rcf", 5) == [records[1], records[3], records[0]]
    assert choose_examples(records, "rcf", 1) == [records[1]]


def test_tables_have_empty_cells_for_what_is_not_known(hand_made):
    columns = {"here": set_statistics(hand_made), "LVIS": lvis_statistics()}
    text = markdown(
        {
            "statistics": {
                title: {row: {c: t[title].get(row) for c, t in columns.items()} for row in rows}
                for title, rows in columns["here"].items()
            }
        }
    )
    lines = text.splitlines()
    assert "| Classes | here | LVIS |" in lines
    assert "| classes | 3 | 1,203 |" in lines
    assert "| sqrt(box area / image area), median | 0.20 |  |" in lines


def test_the_tool_writes_tables_and_pictures(tiny_set, tmp_path, capsys):
    folder = MetadataCatalog.get(tiny_set["train"]).image_root
    parser = argparse.ArgumentParser()
    generated_set.add_arguments(parser)
    out = str(tmp_path / "pictures")
    args = parser.parse_args(["--set", folder, "--output", out, "--examples", "1"])
    text = generated_set.markdown(generated_set.run(args))
    assert "| classes | 7 | 7 | 1,203 |" in text
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "counts.png",
        "examples.png",
    }
