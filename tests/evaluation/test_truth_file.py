"""Annotation files of several kinds give the same numbers, however they are read."""

import json

import numpy as np
import pytest
from lvis_cases import official_metrics
from lvis_table import A, B, C, dataset, found, image, polygon, rles, truth

from lvis_tde.evaluation import Detections, GroundTruth, evaluate_lvis
from lvis_tde.evaluation.confusion import OUTCOMES, RANKS, rare_confusions
from lvis_tde.evaluation.truth_file import load_truth

# The numbers of images that LVIS's own groups are made of.
LVIS = (10, 100)


def content(**of_first):
    """Two images that show class 1; the first object has something of its own."""
    data = dataset([image(1, [2, 3]), image(2, [2, 3])], [truth(A), truth(B), truth(C, 1, 2)])
    for one, counted in zip(data["categories"], (5, 50, 500)):
        one.update(image_count=counted, instance_count=counted)
    for one in data["images"]:
        one["file_name"] = f"{one['id']}.png"
    data["annotations"][0].update(of_first)
    return data


def saved(path, data):
    path.write_text(json.dumps(data))
    return path


def several(results=(A, B)):
    return [found(box, 0.9 - 0.1 * i) for i, box in enumerate(results)]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(
    "of_first", [{}, {"area": None}, {"iscrowd": 1}, {"iscrowd": 0}, {"ignore": 1}]
)
def test_numbers_do_not_depend_on_the_way_a_file_is_read(of_first, iou_type, tmp_path):
    path = saved(tmp_path / "val.json", content(**of_first))
    results = several()
    ways = [load_truth(path), load_truth(path, bounds=LVIS), load_truth(path, train=path)]
    assert [remark for _, remark in ways] == [""] * 3
    plain, *others = [evaluate_lvis(data, results, iou_type) for data, _ in ways]
    for other in others:
        np.testing.assert_equal(other.metrics, plain.metrics)
        assert other.per_category[0] == plain.per_category[0]
    left_out = of_first.get("iscrowd") or of_first.get("ignore")
    assert plain.per_category[0]["num_gt"] == (2 if left_out else 3)
    if not of_first.get("iscrowd"):
        # An area that is not known is that of the object.
        data = content(**{key: value for key, value in of_first.items() if key == "ignore"})
        assert plain.metrics == pytest.approx(official_metrics(data, results, iou_type))


def test_an_unknown_area_is_refused_where_nothing_completes_it():
    for engine in ("native", "lvis"):
        with pytest.raises(ValueError, match="1 annotations without 'area'.* 1:"):
            evaluate_lvis(content(area=None), several(), "bbox", engine=engine)


def test_groups_by_other_bounds_of_a_file_without_counts_are_remarked(tmp_path):
    data = content()
    for one in data["categories"]:
        del one["image_count"], one["instance_count"]
    path = saved(tmp_path / "val.json", data)
    assert load_truth(path)[1] == ""
    # Its own images are no training images, even where an object without an area completes it.
    data["annotations"][0]["area"] = None
    (tmp_path / "other.json").write_text(json.dumps(data))
    grouped, remark = load_truth(tmp_path / "other.json")
    assert remark == "" and not any("image_count" in one for one in grouped["categories"])
    assert [one["frequency"] for one in grouped["categories"]] == ["r", "c", "f"]
    regrouped, remark = load_truth(path, bounds=(1, 2))
    assert "does not say how many training images" in remark
    assert [c["frequency"] for c in regrouped["categories"]] == ["c", "r", "r"]
    # With the training set, or with its numbers in the file, they are known.
    assert load_truth(path, bounds=(1, 2), train=path)[1] == ""
    assert load_truth(saved(path, content()), bounds=(1, 2))[1] == ""


@pytest.mark.parametrize("iou_type", ["segm", "boundary"])
def test_polygons_need_the_size_of_their_image(iou_type):
    data, results = content(), several()
    del data["images"][1]["height"], data["images"][1]["width"]
    assert evaluate_lvis(data, results, "bbox").metrics["AP"] > 0
    with pytest.raises(ValueError, match="1 images without 'height' and 'width'.* 2: .*add both"):
        evaluate_lvis(data, results, iou_type)
    # Run lengths have their size.
    data["annotations"][2]["segmentation"] = rles(C)[0]
    whole = evaluate_lvis(content(), results, iou_type).metrics
    assert evaluate_lvis(data, results, iou_type).metrics == whole
    for drawn in ({"segmentation": [polygon(*C)]}, {"segmentation": None, "bbox": list(C)}):
        with pytest.raises(ValueError, match="1 images without 'height' and 'width'.* 2: "):
            evaluate_lvis(data, [*results, {**found(C, 0.5, 1, 2), **drawn}], iou_type)
    plain = {**found(C, 0.5, 1, 2), "segmentation": rles(C)[2]}
    assert evaluate_lvis(data, [*results, plain], iou_type).metrics["AP"] > whole["AP"]


def test_confusions_of_objects_without_boxes():
    data, results = content(), [*several(), found(C, 0.9, 3, 2)]
    expected = rare_confusions(GroundTruth.load(data), Detections.from_results(results))
    assert expected.outcomes == {OUTCOMES[0]: 2, OUTCOMES[3]: 1}
    assert expected.ranks == {RANKS[0]: 2, RANKS[2]: 1}
    for one in data["annotations"]:
        del one["bbox"]
    data["annotations"][1]["segmentation"] = rles(B)[0]
    assert rare_confusions(GroundTruth.load(data), Detections.from_results(results)) == expected
    del data["images"][0]["height"]
    with pytest.raises(ValueError, match="1 images without 'height' and 'width'.* 1: "):
        rare_confusions(GroundTruth.load(data), Detections.from_results(results))
    del data["annotations"][1]["segmentation"], data["images"]
    data["images"] = content()["images"]
    with pytest.raises(ValueError, match="annotation 2 has a segmentation that is neither"):
        rare_confusions(GroundTruth.load(data), Detections.from_results(results))


def test_confusions_of_two_classes_of_one_name():
    data, results = content(), [found(A, 0.9, 2)]
    for one in data["categories"][:2]:
        one["name"] = "bat"
    got = rare_confusions(GroundTruth.load(data), Detections.from_results(results))
    assert got.pairs == {("bat (1)", "bat (2)"): 1}
    assert got.frequencies == {"bat (1)": "r", "bat (2)": "c"}


@pytest.mark.parametrize("limits", [(300, 5), (1, 1), (1, 10000), (2, 1)])
def test_limits_by_image_and_by_category_meet(limits):
    """The last category is beyond the limit of its image; brute force picks what remains."""
    data = content()
    results = [found(A, 0.9), found(B, 0.8), found(C, 0.7, 1, 2), found(A, 0.1, 3)]
    per_image, per_category = limits
    kept, images, categories = [], {}, {}
    for one in sorted(results, key=lambda r: -r["score"]):
        images[one["image_id"]] = images.get(one["image_id"], 0) + 1
        if images[one["image_id"]] <= per_image:
            categories[one["category_id"]] = categories.get(one["category_id"], 0) + 1
            if categories[one["category_id"]] <= per_category:
                kept.append(one)
    expected = official_metrics(data, kept, "bbox", max_dets=-1)
    got = evaluate_lvis(data, results, "bbox", per_image, per_category=per_category).metrics
    assert got == pytest.approx(expected, abs=1e-12)
