"""Weights of images and bootstrap intervals, against ``lvis`` and against plain repetition."""

import copy
from statistics import NormalDist

import numpy as np
import pytest
from lvis_cases import official_metrics, problem

from lvis_tde.evaluation import Detections, GroundTruth, compare_lvis, evaluate_lvis
from lvis_tde.evaluation.bootstrap import Resampler, images_shown, interval, resampled
from lvis_tde.evaluation.native import Matches, match_all

NAMES = ("AP", "AP50", "AP75", "APr", "APc", "APf")


def without_ties(results, seed):
    order = np.random.default_rng(seed).permutation(len(results))
    return [{**one, "score": (rank + 1) / 1000} for one, rank in zip(results, order.tolist())]


def repeated(annotations, results, counts):
    """Each image as often as ``counts`` says, under further ids."""
    annotations = copy.deepcopy(annotations)
    images, truths = annotations["images"], annotations["annotations"]
    annotations["images"], annotations["annotations"], out = [], [], []
    for image in images:
        for copy_number in range(counts[image["id"]]):
            new = image["id"] + 10_000 * copy_number
            annotations["images"].append({**image, "id": new})
            for one in truths:
                if one["image_id"] == image["id"]:
                    number = len(annotations["annotations"]) + 1
                    annotations["annotations"].append({**one, "id": number, "image_id": new})
            out += [{**one, "image_id": new} for one in results if one["image_id"] == image["id"]]
    return annotations, out


def drawn(annotations, seed):
    ids = [image["id"] for image in annotations["images"]]
    rng = np.random.default_rng(seed)
    return dict(zip(ids, np.bincount(rng.integers(0, len(ids), len(ids)), minlength=len(ids))))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_a_weight_is_that_many_images(iou_type):
    compared = 0
    for seed in range(40):
        annotations, results = problem(seed, True)
        results = without_ties(results, seed)
        counts = {image: int(n) for image, n in drawn(annotations, seed).items()}
        twice, of_twice = repeated(annotations, results, counts)
        if not of_twice or not results:
            continue
        expected = official_metrics(twice, of_twice, iou_type)
        got = evaluate_lvis(annotations, results, iou_type, image_weights=counts).metrics
        for name in expected:
            assert abs(got[name] - expected[name]) <= 1e-9, (seed, name)
        compared += expected["AP"] > 0
    assert compared > 10


def test_weights_of_one_change_nothing_and_scale_does_not_matter():
    for seed in range(20):
        annotations, results = problem(seed, True)
        if not results:
            continue
        plain = evaluate_lvis(annotations, results, "bbox").metrics
        ids = [image["id"] for image in annotations["images"]]
        assert evaluate_lvis(annotations, results, "bbox", image_weights={}).metrics == plain
        third = evaluate_lvis(
            annotations, results, "bbox", image_weights=dict.fromkeys(ids, 1 / 3)
        ).metrics
        assert third == pytest.approx(plain, abs=1e-9)


def test_what_one_category_weighs_does_not_round_another():
    def box(number, image, category, x, **more):
        ids = {"id": number, "image_id": image, "category_id": category}
        return {**ids, "bbox": [x, 0.0, 10.0, 10.0], "area": 100.0, **more}

    images = [{"id": i, "width": 90, "height": 10, "neg_category_ids": []} for i in (1, 2)]
    for image in images:
        image.update(not_exhaustive_category_ids=[], neg_category_ids=[2])
    annotations = {
        "images": images,
        "categories": [{"id": i, "name": str(i), "frequency": "f"} for i in (1, 2)],
        "annotations": [box(1, 1, 1, 0), box(2, 2, 2, 0), box(3, 2, 2, 20)],
    }
    for one in annotations["annotations"]:
        one["segmentation"] = [[0.0, 0.0, 10.0, 0.0, 10.0, 10.0]]
    results = [box(1, 1, 1, 0, score=0.9), box(2, 2, 2, 40, score=0.8), box(3, 2, 2, 0, score=0.7)]
    plain = evaluate_lvis(annotations, results, "bbox")
    for heavy in (1e-300, 0.1, 1e20, 1e300):
        found = evaluate_lvis(annotations, results, "bbox", image_weights={1: heavy})
        assert found.per_category == plain.per_category
        assert found.metrics == plain.metrics and 0 < found.metrics["AP"] < 100


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weights_are_named(weight):
    annotations, results = problem(3, True)
    image = annotations["images"][0]["id"]
    with pytest.raises(ValueError, match=f"the first is {image!r}"):
        evaluate_lvis(annotations, results, "bbox", image_weights={image: weight})


def test_other_bad_arguments():
    annotations, results = problem(3, True)
    with pytest.raises(ValueError, match="the first is 987654"):
        evaluate_lvis(annotations, results, "bbox", image_weights={987654: 1.0})
    with pytest.raises(ValueError, match="bootstrap=-1"):
        evaluate_lvis(annotations, results, "bbox", bootstrap=-1)
    with pytest.raises(ValueError, match="bootstrap=0"):
        compare_lvis(annotations, results, results, "bbox", bootstrap=0)
    for options in ({"bootstrap": 10}, {"image_weights": {}}):
        with pytest.raises(ValueError, match="'lvis'"):
            evaluate_lvis(annotations, results, "bbox", engine="lvis", **options)


def test_resamples_are_evaluations_of_the_images_drawn():
    """Percentiles of evaluations run one by one on images that the same generator draws."""
    for seed in (3, 7, 11, 18):
        annotations, results = problem(seed, True)
        results = without_ties(results, seed)
        ids = sorted(image["id"] for image in annotations["images"])
        rng = np.random.default_rng(5)
        values = {name: [] for name in NAMES}
        for _ in range(40):
            counts = np.bincount(rng.integers(0, len(ids), len(ids)), minlength=len(ids))
            weights = dict(zip(ids, counts.tolist()))
            found = evaluate_lvis(annotations, results, "bbox", image_weights=weights).metrics
            for name in NAMES:
                values[name].append(found[name] if found[name] > -1 else np.nan)
        truth, columns = GroundTruth.load(annotations), Detections.from_results(results)
        frequencies = [category["frequency"] for category in truth.categories]
        matches = match_all(truth, columns, "bbox", 300)
        (got,) = resampled([Resampler(matches)], frequencies, 40, 5)
        for name in NAMES:
            np.testing.assert_allclose(got[name], values[name], atol=1e-8)


@pytest.mark.parametrize("num_images, quantile", [(2, 12.706), (11, 2.228), (61, 2.000)])
def test_few_images_widen_the_interval_as_student_says(num_images, quantile):
    values = np.array([NormalDist(3.0, 2.0).inv_cdf(p) for p in np.linspace(0, 1, 100_001)[1:-1]])
    low, high = interval(values, 3.0, num_images)
    expected = 2.0 * quantile * (num_images / (num_images - 1)) ** 0.5
    assert (3 - low, high - 3) == pytest.approx((min(expected, 3 - values[0]),) * 2, rel=0.003)


def test_the_offset_of_resamples_is_taken_off():
    """Classes on few images: resamples have a higher AP, and the interval is about the metric."""
    rng = np.random.default_rng(0)
    (matches,) = simulated_matches(rng, 300, (0.605,), np.full(30, 0.01))
    (values,) = resampled([Resampler(matches)], ["r"] * 30, 400, 0)
    precision = Resampler(matches).average_precision(np.ones((1, 300)))
    metric = 100 * float(np.nanmean(precision))
    assert values["APr"].mean() > metric + 0.05
    low, high = interval(values["APr"], metric, 90)
    assert low < metric < high


def test_a_class_on_one_image_has_the_whole_range():
    assert interval(np.array([3.0, np.nan, 1.0, 2.0]), 2.0, 1) == (1.0, 3.0)
    assert np.isnan(interval(np.array([np.nan, np.nan]), np.nan, 5)).all()


def test_a_seed_repeats_and_another_does_not():
    annotations, (results,) = simulated(np.random.default_rng(7), 30, (0.6,))
    one, two, other = (
        evaluate_lvis(annotations, results, "bbox", bootstrap=50, seed=seed) for seed in (1, 1, 2)
    )
    assert one.intervals["AP"] == two.intervals["AP"] != other.intervals["AP"]
    assert one.metrics == evaluate_lvis(annotations, results, "bbox").metrics
    for row in one.per_category:
        low, high = row["interval"]
        assert np.isnan(low) or 0 <= low <= high <= 100
        assert np.isnan(row["AP"]) or low <= high


def test_comparison_is_paired():
    annotations, (results,) = simulated(np.random.default_rng(7), 30, (0.6,))
    better = evaluate_lvis(annotations, results, "bbox", bootstrap=60, seed=3)
    same = compare_lvis(annotations, results, results, "bbox", bootstrap=60, seed=3)
    assert same.difference["AP"] == 0 and same.intervals["AP"] == (0, 0) and same.wins["AP"] == 0
    assert same.a.intervals == same.b.intervals
    assert same.a.intervals["AP"] == better.intervals["AP"]
    none = compare_lvis(annotations, [], results, "bbox", bootstrap=60, seed=3)
    assert none.difference["AP"] == pytest.approx(better.metrics["AP"])
    # The width is that of the better side alone.
    (low, high), ends = none.intervals["AP"], better.intervals["AP"]
    assert high - low == pytest.approx(ends[1] - ends[0])
    reverse = compare_lvis(annotations, results, [], "bbox", bootstrap=60, seed=3)
    assert reverse.wins["AP"] == 0 and reverse.difference["AP"] == -none.difference["AP"]
    assert [row["id"] for row in none.per_category] == [row["id"] for row in better.per_category]


def simulated(rng, num_images, skills):
    """Images of three categories, and for each skill a detector that finds that share of them."""
    categories = [
        {"id": i + 1, "name": f, "frequency": f, "image_count": 1} for i, f in enumerate("rcf")
    ]
    images, truths, detections = [], [], [[] for _ in skills]
    for image in range(1, num_images + 1):
        shown = [i + 1 for i, chance in enumerate((0.25, 0.5, 0.8)) if rng.random() < chance]
        images.append(
            {
                "id": image,
                "height": 100,
                "width": 100,
                "neg_category_ids": [i + 1 for i in range(3) if i + 1 not in shown],
                "not_exhaustive_category_ids": [],
            }
        )
        luck = rng.random(3)
        for category in (1, 2, 3):
            box = [10.0 * category, 10.0, 9.0, 9.0]
            if category in shown:
                truths.append(
                    {
                        "id": len(truths) + 1,
                        "image_id": image,
                        "category_id": category,
                        "bbox": box,
                        "area": 81.0,
                        "segmentation": [],
                        "iscrowd": 0,
                    }
                )
            for found, skill in zip(detections, skills):
                # True detections score higher, on the whole; the detectors share their luck.
                true = category in shown and luck[category - 1] < skill
                if true or rng.random() < 0.3:
                    score = float(rng.beta(4, 2) if true else rng.beta(2, 4))
                    found.append(
                        {
                            "image_id": image,
                            "category_id": category,
                            "bbox": box if true else [60.0, 60.0, 5.0, 5.0],
                            "score": score,
                        }
                    )
    return {"images": images, "categories": categories, "annotations": truths}, detections


def simulated_matches(rng, num_images, skills, rates):
    """For each skill the matches of a detector that finds that share of the objects, at one
    threshold; ``rates`` are the shares of images that show each category."""
    shape = num_images, len(rates)
    shown, luck = rng.random(shape) < rates, rng.random(shape)
    truth_labels, truth_images = np.nonzero(shown.T)
    found = []
    for skill in skills:
        # The detectors share their luck, and true detections score higher, on the whole.
        true = shown & (luck < skill)
        scores = np.where(true, rng.beta(4, 2, shape), rng.beta(2, 4, shape))
        labels, images = np.nonzero((true | (rng.random(shape) < 0.3)).T)
        candidates = np.flatnonzero(true[images, labels])
        matched = np.zeros((len(candidates), 10, 4), dtype=bool)
        matched[:, 0] = True
        found.append(
            Matches(
                images=images,
                labels=labels,
                scores=scores[images, labels],
                exempt=np.zeros((len(images), 4), dtype=bool),
                candidates=candidates,
                matched=matched,
                ignored=np.zeros_like(matched),
                truth_images=truth_images,
                truth_labels=truth_labels,
                ignore=np.zeros((len(truth_images), 4), dtype=bool),
                num_images=num_images,
                num_categories=len(rates),
                timings={},
            )
        )
    return found


@pytest.mark.parametrize(
    "sets, least, most", [(100, 0.9, 0.99), pytest.param(400, 0.93, 0.97, marks=pytest.mark.slow)]
)
def test_intervals_cover(sets, least, most):
    """The difference of two detectors is known from very many images; the interval of 95 % holds
    it in about as many of the sets."""
    # Not at one of the 101 recalls, where a single image decides over a hundredth.
    skills, rates = (0.605, 0.705), np.repeat([0.05, 0.2, 0.6], 3)
    frequencies, rng = list("rrrcccfff"), np.random.default_rng(0)

    def gain(sides):
        ones = np.ones((1, sides[0].num_images))
        one, other = (Resampler(m).average_precision(ones)[0].mean(0) for m in sides)
        by = 100 * (other - one)
        means = np.nanmean(by), np.nanmean(by[:3]), np.nanmean(by[6:])
        return dict(zip(("AP", "APr", "APf"), means))

    truth = gain(simulated_matches(rng, 200_000, skills, rates))
    covered = dict.fromkeys(truth, 0)
    for repetition in range(sets):
        sides = simulated_matches(rng, 400, skills, rates)
        shown, _ = images_shown(sides[0], frequencies)
        one, other = resampled([Resampler(m) for m in sides], frequencies, 200, repetition)
        found = gain(sides)
        for name in truth:
            low, high = interval(other[name] - one[name], found[name], shown[name])
            covered[name] += low <= truth[name] <= high
    for name, count in covered.items():
        assert least <= count / sets <= most, (name, count)
