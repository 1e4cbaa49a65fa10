"""The benchmark's data, and LVIS's 1203 classes on it against the official package."""

import argparse

import numpy as np
import pytest
from lvis_cases import official_metrics

from benchmarks import evaluation as benchmark
from benchmarks.evaluation_data import DETECTIONS, HEIGHT, WIDTH, Scenes
from lvis_tde.evaluation import Detections, evaluate_lvis
from lvis_tde.evaluation.rle import encode_masks

NUM_IMAGES = 4


@pytest.fixture(scope="module")
def lvis_shaped():
    scenes, parts = Scenes(0), []
    for number in range(NUM_IMAGES):
        boxes, scores, classes, shapes = scenes.predictions(number)
        masks = np.zeros((DETECTIONS, HEIGHT, WIDTH), dtype=bool)
        scenes.paint(boxes, shapes, masks)
        counts, lengths = encode_masks(masks, boxes)
        boxes[:, 2:] -= boxes[:, :2]
        parts.append(
            Detections(
                image_ids=np.full(DETECTIONS, number + 1),
                category_ids=classes + 1,
                scores=scores,
                boxes=boxes,
                has_box=np.ones(DETECTIONS, dtype=bool),
                counts=counts,
                lengths=lengths,
                sizes=np.tile([[HEIGHT, WIDTH]], (DETECTIONS, 1)),
            )
        )
    return scenes.annotations(NUM_IMAGES), Detections.concatenate(parts)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_1203_classes(lvis_shaped, iou_type):
    annotations, detections = lvis_shaped
    expected = official_metrics(annotations, list(detections.results()), iou_type)
    result = evaluate_lvis(annotations, detections, iou_type)
    assert result.metrics == pytest.approx(expected, abs=1e-12, rel=0)
    assert 5 < expected["AP"] < 95
    assert len(result.per_category) == 1203


def test_data_depend_on_the_seed_and_the_number_only():
    one, two = Scenes(0), Scenes(0)
    for a, b in zip(one.predictions(3), two.predictions(3)):
        np.testing.assert_array_equal(a, b)
    assert (
        one.annotations(2)["annotations"]
        == two.annotations(3)["annotations"][: len(one.annotations(2)["annotations"])]
    )


def test_benchmark_of_our_side():
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    out = benchmark.run(parser.parse_args(["--images", "1", "--ours-only"]))
    assert out["detections"] == 300
    assert out["ours"]["process + evaluate"] > out["ours"]["bbox"] > 0
    with pytest.raises(ValueError, match="-1"):
        benchmark.run(parser.parse_args(["--images", "-1"]))
