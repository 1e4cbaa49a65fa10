"""Weights of images that are far apart, against exact fractions and against one evaluation each."""

from fractions import Fraction

import numpy as np
import pytest
from lvis_cases import problem

from lvis_tde.evaluation import Detections, GroundTruth, evaluate_lvis, native
from lvis_tde.evaluation.bootstrap import Resampler, images_shown, resampled


def matches_of(seed, iou_type="bbox"):
    """Matches with every oddity: tied scores, ignored objects, detections that cannot be false."""
    annotations, results = problem(seed, True)
    if not results:
        return None
    truth, columns = GroundTruth.load(annotations), Detections.from_results(results)
    return native.match_all(truth, columns, iou_type, 300)


def spread(rng, shape, lowest):
    weights = np.exp(rng.uniform(np.log(lowest), np.log(360), shape))
    weights[rng.random(shape) < 0.2] = 0.0
    return weights


def exact_ap(matches, weights, category, threshold):
    """AP of the area "all" by its definition, in fractions; NaN without ground truth."""
    weights = [Fraction(float(w)) for w in weights]
    counts = ~matches.ignore[:, 0] & (matches.truth_labels == category)
    total = sum(weights[i] for i in matches.truth_images[counts])
    if not total:
        return np.nan
    place = {d: k for k, d in enumerate(matches.candidates.tolist())}
    rows = np.flatnonzero(matches.labels == category)
    rows = rows[np.argsort(-matches.scores[rows], kind="stable")]
    true = false = Fraction(0)
    curve = []
    for row in rows.tolist():
        weight, k = weights[matches.images[row]], place.get(row)
        if k is not None and matches.matched[k, threshold, 0]:
            if not matches.ignored[k, threshold, 0] and weight:
                true += weight
                curve.append((true / total, true / (true + false)))
        elif not matches.exempt[row, 0]:
            false += weight
    recalls = np.linspace(0, 1, 101)
    slack = Fraction(1, 10**12)
    best = [
        max([p for r, p in curve if r * (1 + slack) >= Fraction(t)], default=0) for t in recalls
    ]
    return float(sum(best, Fraction(0)) / 101)


@pytest.mark.parametrize("lowest", [1e-3, 1e-15, 1e-37])
def test_average_precision_is_that_of_exact_fractions(lowest):
    compared = 0
    for seed in range(25):
        matches, rng = matches_of(seed), np.random.default_rng(seed)
        if matches is None:
            continue
        weights = spread(rng, matches.num_images, lowest)
        found = native.evaluate(matches, weights)
        assert found.recall.max() <= 1
        drawn = Resampler(matches).average_precision(weights[None])[0]
        for category in range(matches.num_categories):
            for threshold in (0, 2, 5):
                expected = exact_ap(matches, weights, category, threshold)
                one = found.precision[threshold, :, category, 0].mean()
                assert np.isnan(expected) if one < 0 else one == pytest.approx(expected, abs=1e-9)
                assert drawn[threshold, category] == pytest.approx(expected, abs=1e-9, nan_ok=True)
                compared += expected > 0
    assert compared > 40


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-20, 1e-37, 1e20])
@pytest.mark.parametrize("lowest", [1.0, 1e-13])
def test_each_resample_is_an_evaluation_of_its_weights(scale, lowest):
    for seed in range(12):
        matches, rng = matches_of(seed), np.random.default_rng(seed)
        if matches is None:
            continue
        counts = rng.integers(0, 4, (8, matches.num_images))
        weights = counts * spread(rng, matches.num_images, lowest) * scale
        if lowest == 1.0:
            weights = counts * scale
        got = Resampler(matches).average_precision(weights.astype(float))
        for one, row in zip(got, weights.astype(float)):
            precision = native.evaluate(matches, row).precision[..., 0]
            expected = np.where(precision[:, 0] < 0, np.nan, precision.mean(1))
            np.testing.assert_allclose(one, expected, atol=1e-9)


def box(number, image, x, width, height, **more):
    ids = {"id": number, "image_id": image, "category_id": 1}
    return {**ids, "bbox": [x, 0.0, width, height], "area": width * height, **more}


def two_images(ignored):
    """A detection on an object that does not count, in image 1; a false and a true one in 2."""
    images = [
        {"id": i, "width": 99, "height": 99, "neg_category_ids": [1]}
        | {"not_exhaustive_category_ids": []}
        for i in (1, 2)
    ]
    annotations = {
        "images": images,
        "categories": [{"id": 1, "name": "a", "frequency": "r"}],
        "annotations": [box(1, 1, 0, 30, 30, ignore=ignored), box(2, 2, 0, 30, 30)],
    }
    results = [
        box(1, 1, 0, 30, 30, score=0.9),
        box(2, 2, 60, 30, 30, score=0.8),
        box(3, 2, 0, 30, 30, score=0.7),
    ]
    return annotations, results


@pytest.mark.parametrize("light", [1e-3, 1e-13, 1e-15, 1e-37])
def test_a_heavy_image_whose_match_is_ignored_changes_nothing(light):
    annotations, results = two_images(ignored=1)
    weights = {1: 360.0, 2: light}
    found = evaluate_lvis(annotations, results, "bbox", image_weights=weights, bootstrap=20)
    assert found.metrics["AP"] == found.metrics["APs"] == pytest.approx(50)
    values = found.resamples.metrics["AP"]
    assert np.nanmax(values) == np.nanmin(values) == pytest.approx(50)


@pytest.mark.parametrize("weight", [1e-320, 1e-37, 1.0, 1e308, "whole"])
def test_only_the_ratio_of_weights_matters(weight):
    annotations, results = problem(7, True)
    ids = [image["id"] for image in annotations["images"]]
    plain = evaluate_lvis(annotations, results, "bbox", bootstrap=30)
    weights = dict.fromkeys(ids, 2**60 if weight == "whole" else weight)
    found = evaluate_lvis(annotations, results, "bbox", bootstrap=30, image_weights=weights)
    assert found.metrics == pytest.approx(plain.metrics, abs=1e-9)
    for name, ends in plain.intervals.items():
        assert found.intervals[name] == pytest.approx(ends, abs=1e-9, nan_ok=True)


def test_an_image_of_weight_zero_is_as_if_it_were_not():
    annotations, results = problem(7, True)
    kept = annotations["images"][: len(annotations["images"]) // 2 + 1]
    ids = {image["id"] for image in kept}
    zero = {i["id"]: 0 for i in annotations["images"] if i["id"] not in ids}
    fewer = {
        **annotations,
        "images": kept,
        "annotations": [a for a in annotations["annotations"] if a["image_id"] in ids],
    }
    there = [one for one in results if one["image_id"] in ids]
    assert zero and len(there) < len(results)
    found = evaluate_lvis(annotations, results, "bbox", bootstrap=30, image_weights=zero)
    expected = evaluate_lvis(fewer, there, "bbox", bootstrap=30)
    assert found.metrics == expected.metrics
    assert found.resamples.shown == expected.resamples.shown
    assert found.resamples.num_images == expected.resamples.num_images == len(kept)
    np.testing.assert_array_equal(found.resamples.of_category, expected.resamples.of_category)
    np.testing.assert_equal(found.intervals, expected.intervals)


def test_no_image_weighs_anything():
    annotations, results = problem(7, True)
    zero = {image["id"]: 0 for image in annotations["images"]}
    found = evaluate_lvis(annotations, results, "bbox", bootstrap=5, image_weights=zero)
    assert set(found.metrics.values()) == {-100.0}
    assert np.isnan([*found.intervals.values()]).all()


def test_weights_of_a_third_change_no_resample():
    matches = matches_of(3)
    plain, scaled = (
        resampled([Resampler(matches)], ["r"] * matches.num_categories, 40, 1, weights)[0]["AP"]
        for weights in (None, np.full(matches.num_images, 1 / 3))
    )
    np.testing.assert_allclose(scaled, plain, atol=1e-9)
    everywhere, _ = images_shown(matches, ["r"] * matches.num_categories)
    nowhere, _ = images_shown(matches, ["r"] * matches.num_categories, np.zeros(matches.num_images))
    assert everywhere["AP"] > 0 == nowhere["AP"]


@pytest.mark.parametrize("weight", ["2", None, [1.0], float("nan")])
def test_a_weight_is_a_number(weight):
    annotations, results = problem(7, True)
    with pytest.raises(ValueError, match="a weight is a number"):
        image = annotations["images"][0]["id"]
        evaluate_lvis(annotations, results, "bbox", image_weights={image: weight})
