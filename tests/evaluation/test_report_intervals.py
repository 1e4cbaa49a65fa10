"""Intervals of reports: who gives them, how many resamples, and what the pages show."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from lvis_tde.calibration.beside import evaluate_beside
from lvis_tde.calibration.paired import PairedIntervals
from lvis_tde.data.long_tailed import register_long_tailed
from lvis_tde.engine import YacsRecipe
from lvis_tde.evaluation import LVISEvaluator, compare_resampled, evaluate_lvis
from lvis_tde.evaluation.bootstrap import report_resamples
from lvis_tde.posthoc import Settings

NAME, SIZE = "coco_with_intervals", 64


def coco(path, num_images, first):
    """A file in COCO's format; its classes are on 2, 4 and 6 of 6 images."""
    rng = np.random.default_rng(first)
    images, annotations = [], []
    for i in range(num_images):
        image = {"id": first + i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE}
        images.append(image)
        for category in range(3):
            if i % 3 <= category:
                x, y = rng.integers(0, 40, 2).tolist()
                box = [float(x), float(y), 20.0, 16.0]
                ids = {"id": len(annotations) + 1, "image_id": first + i, "category_id": category}
                annotations.append({**ids, "bbox": box, "area": 320.0, "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(("wren", "heron", "crow"))]
    data = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(data))
    return annotations


@pytest.fixture
def own(tmp_path):
    """A user's files in COCO's format, and predictions: (evaluator, feed)."""
    coco(tmp_path / "train.json", 6, 1)
    annotations = coco(tmp_path / "val.json", 24, 100)
    options = {"train_json": tmp_path / "train.json", "bounds": (2, 4), "cache_dir": tmp_path}
    register_long_tailed(NAME, tmp_path / "val.json", tmp_path, missing_images="note", **options)
    rng = np.random.default_rng(0)

    def feed(evaluator):
        for image in range(100, 124):
            here = [one for one in annotations if one["image_id"] == image]
            corners = np.array([one["bbox"][:2] for one in here]) + rng.normal(0, 2, (len(here), 2))
            boxes = np.hstack([corners, corners + (20, 16)]).astype(np.float32)
            found = Instances((SIZE, SIZE), pred_boxes=Boxes(torch.from_numpy(boxes)))
            found.scores = torch.from_numpy(rng.uniform(0, 1, len(here)).astype(np.float32))
            found.pred_classes = torch.tensor([one["category_id"] for one in here])
            evaluator.process([{"image_id": image}], [{"instances": found}])
        return evaluator

    yield LVISEvaluator(NAME), feed
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_own_files_in_coco_format_have_intervals(own, tmp_path):
    evaluator, feed = own
    plain = feed(evaluator.fresh_copy())
    plain.evaluate()
    assert plain.lvis_results["bbox"].intervals == {}
    evaluator.for_report(40)
    assert feed(evaluator).evaluate()["bbox"]["APr"] > 0
    truth = MetadataCatalog.get(NAME).json_file
    expected = evaluate_lvis(truth, evaluator.detections(), "bbox", bootstrap=40)
    got = evaluator.lvis_results["bbox"]
    assert got.intervals == expected.intervals
    (page,) = evaluator.write_report(str(tmp_path / "report"))
    text = page.read_text()
    spans = [got.intervals[name] for name in ("AP", "AP50", "APr", "APc", "APf")]
    spans += [row["interval"] for row in got.per_category]
    for low, high in spans:
        assert low < high and f"<small>{low:.1f} to {high:.1f}</small>" in text


def test_number_of_resamples(own):
    assert [report_resamples(n) for n in (1, 600, 2000, 4000, 10_000, 19_809)] == [
        *(1000, 1000, 1000, 500, 200, 200)
    ]
    evaluator, _ = own
    evaluator.for_report()
    assert evaluator.bootstrap == 1000
    evaluator.for_report(7)
    assert evaluator.bootstrap == 1000  # it has its own number now
    for options, given, expected in (
        ({}, 0, 0),
        ({"bootstrap": 5}, 9, 5),
        ({"engine": "lvis"}, 9, 0),
    ):
        other = LVISEvaluator(NAME, **options)
        other.for_report(given)
        assert other.bootstrap == expected


def test_results_that_cannot_be_compared(own):
    evaluator, feed = own
    detections = feed(evaluator).evaluate() and evaluator.detections()
    truth = MetadataCatalog.get(NAME).json_file
    runs = [
        evaluate_lvis(truth, detections, "bbox", bootstrap=b, seed=s)
        for b, s in ((0, 0), (9, 0), (9, 1), (8, 0))
    ]
    with pytest.raises(ValueError, match="needs results with bootstrap=N"):
        compare_resampled(runs[1], runs[0])
    for other in runs[2:]:
        with pytest.raises(ValueError, match="different draws"):
            compare_resampled(runs[1], other)
    with pytest.raises(ValueError, match="of bbox, the other of segm"):
        compare_resampled(runs[1], dataclasses.replace(runs[1], iou_type="segm"))
    same = compare_resampled(runs[1], runs[1])
    assert same.difference["AP"] == 0 and same.intervals["AP"] == (0, 0) and same.wins["AP"] == 0


def test_pages_of_an_evaluation(tiny_cfg, tiny_model, tiny_set, tmp_path):
    name = tiny_set["val"]
    recipe = YacsRecipe(tiny_cfg("deconfound", "DATASETS.TEST", (name,), "INPUT.MIN_SIZE_TEST", 64))
    model = tiny_model().eval()
    page = tmp_path / "output" / "report" / name / "bbox" / "report.html"
    recipe.evaluate(model, bootstrap=0)
    assert "<small>" not in page.read_text()
    recipe.evaluate(model, bootstrap=5)
    assert "<small>" in page.read_text()
    # With other settings beside the model's own there is the difference, too.
    model.roi_heads.box_predictor.feature_mean.mean.normal_()
    evaluate_beside(recipe, model, Settings(), "m", bootstrap=5)
    assert "Is alpha 1.5 better than TDE off?" in page.read_text()
    evaluate_beside(recipe, model, Settings(), "m", bootstrap=0)
    assert "better than" not in page.read_text()


def test_cocos_own_evaluator_has_none_and_says_so(own, tiny_set):
    assert PairedIntervals(own[0], 10).remark == ""
    theirs = COCOEvaluator(NAME, ("bbox",), False, use_fast_impl=False)
    found = PairedIntervals(theirs, 10)
    assert found.remark.startswith("No intervals: COCOEvaluator evaluates the set")
    assert found.of(theirs) == {"intervals": {}, "gains": {}}
    assert PairedIntervals(theirs, 0).remark == ""
