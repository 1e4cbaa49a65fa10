"""Cases in which other fast evaluators differ from ``lvis``, and inputs that must be refused."""

import copy
import logging

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from lvis_cases import official_metrics, rectangle
from lvis_table import CASES, HEIGHT, WIDTH, A, B, dataset, found, image, truth

from lvis_tde.evaluation import compare_lvis, evaluate_lvis


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_lvis(name, iou_type):
    annotations, results = CASES[name]()
    expected = official_metrics(annotations, results, iou_type)
    before = copy.deepcopy((annotations, results))
    rows = {}
    for engine in ("native", "lvis"):
        result = evaluate_lvis(annotations, results, iou_type, engine=engine)
        rows[engine] = result.per_category
        assert list(result.metrics) == list(expected)
        for metric in expected:
            assert abs(result.metrics[metric] - expected[metric]) <= 1e-12, (engine, metric)
    np.testing.assert_equal(rows["native"], rows["lvis"])
    assert (annotations, results) == before
    assert 0 < expected["AP"]


def good():
    return dataset([image(1, negative=[2]), image(2)], [truth(A), truth(B, 3)]), [found(A, 0.9)]


def without(key, where):
    data, results = good()
    for entry in data[where]:
        del entry[key]
    return data, results


def with_detections(**more):
    data, results = good()
    return data, [*results, {**found(A, 0.5), **more}, {**found(B, 0.5), **more}]


def annotation_with(**more):
    data, results = good()
    data["annotations"][1].update(more)
    return data, results


@pytest.mark.parametrize(
    "problem, message",
    [
        (annotation_with(id=0), "1 annotations with id 0"),
        (annotation_with(image_id=77), "1 annotations with an unknown 'image_id'.* 77"),
        (annotation_with(category_id=78), "1 annotations with an unknown 'category_id'.* 78"),
        (without("neg_category_ids", "images"), "2 images without 'neg_category_ids'.* 1:"),
        (without("not_exhaustive_category_ids", "images"), "2 images without 'not_exhaustive"),
        (without("frequency", "categories"), "3 categories without a 'frequency'.* 1:"),
        (without("area", "annotations"), "2 annotations without 'area'"),
        (with_detections(score=float("nan")), "2 detections with a NaN score.* 1:"),
        (with_detections(score=float("inf")), "2 detections with an infinite score.* 1:"),
        (
            with_detections(bbox=[1.0, 2.0, float("nan"), 4.0]),
            "2 detections with a NaN or inf.* 1:",
        ),
        (with_detections(bbox=[1, 2, 3]), r"detection 1 .*bbox=.*expected \[x, y, width, height"),
        (with_detections(bbox="box"), "detection 1 .*bbox='box'"),
        (with_detections(image_id=[1]), "2 detections with a image_id that is no id.* \\[1\\]"),
        (with_detections(segmentation={"size": [0, 9], "counts": ""}), r"detection 1 .*size=\[0"),
        (with_detections(segmentation=7), "detection 1 .*neither polygons nor an RLE"),
        (with_detections(image_id=9), "2 detections with an unknown image_id.* 9:"),
        (with_detections(category_id=0), "2 detections with an unknown category_id.* 0:"),
        (with_detections(score="high"), "no number"),
    ],
)
@pytest.mark.parametrize("engine", ["native", "lvis"])
def test_wrong_input_is_refused(problem, message, engine):
    with pytest.raises(ValueError, match=message):
        evaluate_lvis(*problem, "bbox", engine=engine)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"iou_type": "keypoints"}, "keypoints"),
        ({"engine": "fast"}, "fast"),
        ({"engine": "lvis", "iou_type": "boundary"}, "boundary"),
        ({"per_category": 0}, "per_category"),
        ({"max_dets": 0}, "max_dets=0 .*leaves no detection"),
        ({"max_dets": -2}, "max_dets=-2"),
    ],
)
def test_unknown_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_lvis(*good(), **arguments)


@pytest.mark.parametrize("key", ["bbox", "segmentation"])
def test_a_detection_without_what_the_first_one_has_is_refused(key):
    data, results = good()
    results.append(found(B, 0.5))
    if key == "segmentation":
        del results[0]["bbox"]
    del results[1][key]
    with pytest.raises(ValueError, match=f"1 detections without {key}.* 1:"):
        evaluate_lvis(data, results)


def an_rle(height=HEIGHT, width=WIDTH, cut=0):
    rle = mask_utils.encode(rectangle(A, height, width))
    return {"size": [height, width], "counts": rle["counts"].decode()[: -cut or None]}


@pytest.mark.parametrize(
    "problem, message",
    [
        (
            with_detections(segmentation=an_rle(HEIGHT + 1)),
            "2 .*another size than their.* '1, .129",
        ),
        (with_detections(segmentation=an_rle(cut=2)), "2 .*do not fill its size .*first is 1:"),
        (with_detections(segmentation={**an_rle(), "counts": "garbage"}), "2 .*do not fill"),
        (with_detections(segmentation={**an_rle(), "counts": [5, 5]}), "detection 1 .*do not fill"),
        (with_detections(segmentation=[[1e300] * 6]), "detection 1 .*that is no polygon"),
        (annotation_with(segmentation=an_rle(WIDTH - 1), category_id=1), "annotation 2 .*in an im"),
        (annotation_with(segmentation=an_rle(cut=3), category_id=1), "annotation 2 .*do not fill"),
    ],
)
@pytest.mark.parametrize("engine", ["native", "lvis"])
def test_masks_that_are_none_are_refused(problem, message, engine):
    data, results = problem
    if "annotation" in message:
        if engine == "lvis":
            pytest.skip("the official package reads the annotations itself")
        results = [found(B, 0.9)]
    with pytest.raises(ValueError, match=message):
        evaluate_lvis(data, results, "segm", engine=engine)
    evaluate_lvis(data, results, "bbox", engine=engine)


@pytest.mark.parametrize("engine", ["native", "lvis"])
@pytest.mark.parametrize("iou_type", ["segm", "boundary"])
def test_boxes_alone_have_no_mask_ap(engine, iou_type):
    data, results = good()
    del results[0]["segmentation"]
    if (engine, iou_type) != ("lvis", "boundary"):
        with pytest.raises(ValueError, match="1 detections without segm.*--iou-type bbox"):
            evaluate_lvis(data, results, iou_type, engine=engine)
    assert evaluate_lvis(data, results, "bbox", engine=engine).metrics["AP"] > 0


def test_a_segmentation_that_is_none_is_refused():
    data, results = annotation_with(segmentation=[[1, 2]], category_id=1)
    with pytest.raises(ValueError, match="annotation 2 has a segmentation"):
        evaluate_lvis(data, results)


@pytest.mark.parametrize("engine", ["native", "lvis"])
def test_no_detections_are_zeros_with_a_warning(engine, caplog):
    with caplog.at_level(logging.WARNING, logger="lvis_tde"):
        result = evaluate_lvis(good()[0], [], "bbox", engine=engine)
    # What has no ground truth is undefined, as with detections that are all elsewhere.
    elsewhere = evaluate_lvis(good()[0], [found(B, 0.5, 2, bbox=[0, 0, 1, 1])], "bbox")
    assert result.metrics == elsewhere.metrics
    assert set(result.metrics.values()) == {0.0, -100.0} and result.metrics["APc"] == -100
    assert len(result.metrics) == 13
    assert "No detections" in caplog.text


def test_a_difference_from_no_detections_is_undefined_without_ground_truth():
    data, results = good()
    found = compare_lvis(data, [], results, "bbox", bootstrap=5)
    assert found.a.metrics["APc"] == found.b.metrics["APc"] == -100
    assert np.isnan(found.difference["APc"]) and found.difference["AP"] > 0


def test_table_by_category():
    annotations, results = CASES["categories_without_ground_truth"]()
    rows = evaluate_lvis(annotations, results).per_category
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert rows[0] == {
        "id": 1,
        "name": "c1",
        "frequency": "r",
        "image_count": 5,
        "AP": pytest.approx(50.0),
        "AP50": pytest.approx(50.0),
        "AR": pytest.approx(100.0),
        "num_gt": 1,
        "num_dt": 2,
    }
    # The third category is neither annotated nor known to be absent.
    assert np.isnan(rows[1]["AP"]) and [r["num_dt"] for r in rows[1:]] == [1, 0]


def test_mask_area_decides_the_size_on_request():
    # The mask is small, the box medium; unmatched, it is a false positive in its size only.
    annotations = dataset([image()], [truth((5, 5, 20, 20)), truth(B)])
    results = [found((5, 5, 20, 20), 0.5), found((70, 5, 20, 20), 0.9, bbox=[60, 5, 50, 50])]
    by_box = evaluate_lvis(annotations, results).metrics
    by_mask = evaluate_lvis(annotations, results, mask_area=True).metrics
    for result in results:
        del result["bbox"]
    assert by_mask == evaluate_lvis(annotations, results).metrics
    assert by_box["APs"] == pytest.approx(100) and by_mask["APs"] == pytest.approx(50)
