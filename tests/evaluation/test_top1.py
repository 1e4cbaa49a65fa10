"""Top-1 accuracy, groups, calibration and intervals against closed forms and loops."""

import time

import numpy as np
import pytest

from lvis_tde.evaluation import compare_top1, evaluate_top1
from lvis_tde.evaluation.shifts import SHIFTS, prior_aware_top1, shifted_images, shifted_prior
from lvis_tde.evaluation.top1 import top1_of_predictions

COUNTS = (500, 101, 100, 20, 19, 0)


def problem(n=600, seed=0, counts=COUNTS, sharpness=2.0):
    """Probabilities that favor the label; classes in random order with different sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(
        len(counts), n, p=np.arange(1, len(counts) + 1) / sum(range(len(counts) + 1))
    )
    logits = rng.normal(size=(n, len(counts)))
    logits[np.arange(n), labels] += sharpness * rng.random(n)
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(1, keepdims=True), labels


def test_metrics_are_means_over_the_classes_of_a_group():
    probabilities, labels = problem()
    result = evaluate_top1(probabilities, labels, COUNTS, classes=list("abcdef"))
    right = probabilities.argmax(1) == labels
    by_class = [100 * right[labels == c].mean() for c in range(6)]
    assert result.metrics["top1"] == pytest.approx(100 * right.mean())
    assert result.metrics["many"] == pytest.approx(np.mean(by_class[:2]))
    assert result.metrics["medium"] == pytest.approx(np.mean(by_class[2:4]))
    assert result.metrics["few"] == pytest.approx(np.mean(by_class[4:]))
    assert result.metrics["balanced"] == pytest.approx(np.mean(by_class))
    assert [row["frequency"] for row in result.per_class] == list("ffccrr")
    assert [row["name"] for row in result.per_class] == list("abcdef")
    assert [row["accuracy"] for row in result.per_class] == pytest.approx(by_class)
    assert [row["images"] for row in result.per_class] == np.bincount(labels).tolist()
    assert sum(row["predicted"] for row in result.per_class) == len(labels)


def test_groups_and_classes_without_test_images():
    labels = np.array([0, 0, 1])
    result = evaluate_top1(np.eye(3)[[0, 1, 1]], labels, (200, 150, 50), bootstrap=20)
    assert result.metrics["many"] == result.metrics["balanced"] == 75
    assert np.isnan([result.metrics["medium"], result.metrics["few"]]).all()
    assert np.isnan(result.intervals["few"]).all() and np.isnan(result.per_class[2]["accuracy"])
    assert not np.isnan(list(result.shifted.values())).any()


def test_calibration_error_in_closed_form():
    # 10 images with confidence 0.9 of which 6 are right; 10 with 0.6 of which 6 are right.
    confidence = np.repeat([0.9, 0.6], 10)
    wrong = np.array([0] * 6 + [1] * 4 + [0] * 6 + [1] * 4, dtype=bool)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    result = evaluate_top1(probabilities, wrong.astype(int), (10, 10))
    assert result.metrics["ece"] == pytest.approx(100 * (0.5 * 0.3 + 0.5 * 0.0))
    images, mean, accuracy = result.reliability[~np.isnan(result.reliability[:, 1])].T
    assert images.tolist() == [10, 10]
    assert mean.tolist() == pytest.approx([0.6, 0.9]) and accuracy.tolist() == [0.6, 0.6]


def test_calibration_error_equals_a_loop_over_bins():
    probabilities, labels = problem(seed=3)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = evaluate_top1(probabilities, labels, COUNTS).metrics["ece"]
    assert found == pytest.approx(100 * expected)


def test_a_calibrated_model_has_little_calibration_error():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 1, 40000)
    labels = (rng.random(len(p)) > p).astype(int)
    assert evaluate_top1(np.stack([p, 1 - p], 1), labels, (9, 9)).metrics["ece"] < 1


def test_intervals_are_those_of_binomials():
    """Drawing a class's images makes the number of right ones binomial."""
    labels = np.repeat([0, 1], [400, 100])
    right = np.concatenate([np.arange(400) < 300, np.arange(100) < 20])
    probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
    result = evaluate_top1(probabilities, labels, (200, 5), bootstrap=4000)
    for name, mean, variance in (
        ("many", 0.75, 0.75 * 0.25 / 400),
        ("few", 0.2, 0.2 * 0.8 / 100),
        ("balanced", 0.475, (0.75 * 0.25 / 400 + 0.2 * 0.8 / 100) / 4),
        ("top1", 0.64, (400 * 0.75 * 0.25 + 100 * 0.2 * 0.8) / 500**2),
    ):
        expected = 100 * (mean + 1.96 * np.sqrt(variance) * np.array([-1, 1]))
        assert result.metrics[name] == pytest.approx(100 * mean)
        assert result.intervals[name] == pytest.approx(expected, abs=1), name
    assert set(result.intervals) == {*result.metrics, *result.shifted}


def test_intervals_cover_the_truth():
    truth, covered = np.array([0.9, 0.6, 0.3]), 0
    labels = np.repeat(np.arange(3), 80)
    for seed in range(200):
        right = np.random.default_rng(seed).random(240) < truth[labels]
        probabilities = np.eye(3)[np.where(right, labels, (labels + 1) % 3)]
        low, high = evaluate_top1(
            probabilities, labels, (200, 50, 5), bootstrap=150, seed=seed
        ).intervals["balanced"]
        covered += low <= 60 <= high
    assert 0.9 <= covered / 200 <= 0.98


def test_one_seed_gives_the_same_intervals():
    probabilities, labels = problem()
    found = [evaluate_top1(probabilities, labels, COUNTS, bootstrap=50, seed=s) for s in (1, 1, 2)]
    assert found[0].intervals == found[1].intervals != found[2].intervals


def test_many_resamples_take_little_time():
    probabilities, labels = problem(10000, counts=tuple(range(1, 101)))
    start = time.process_time()
    evaluate_top1(probabilities, labels, range(1, 101), bootstrap=1000)
    assert time.process_time() - start < 4  # 0.7 s on an idle core


def test_comparison_is_paired():
    probabilities, labels = problem(seed=5)
    better = probabilities.copy()
    rare = np.flatnonzero(labels == 4)[:10]
    better[rare] = np.eye(6)[4]
    a, b = (evaluate_top1(p, labels, COUNTS) for p in (probabilities, better))
    gained = int((probabilities[rare].argmax(1) != 4).sum())
    found = compare_top1(a, b)
    assert (found.gained, found.lost) == (gained, 0)
    assert found.difference["top1"] == pytest.approx(100 * gained / len(labels))
    assert found.difference["few"] == pytest.approx(b.metrics["few"] - a.metrics["few"])
    assert found.difference["backward50"] == pytest.approx(
        b.shifted["backward50"] - a.shifted["backward50"]
    )
    assert found.intervals["few"][0] > 0 and found.wins["few"] == 1
    assert found.difference["many"] == 0 and found.intervals["many"] == (0, 0)
    assert found.wins["many"] == 0.5
    # Far narrower than what either run's own interval would say.
    alone = evaluate_top1(probabilities, labels, COUNTS, bootstrap=500).intervals["top1"]
    assert np.ptp(found.intervals["top1"]) < 0.5 * np.ptp(alone)


def test_comparison_finds_images_by_id():
    probabilities, labels = problem(50)
    order = np.random.default_rng(0).permutation(50)
    a = evaluate_top1(probabilities, labels, COUNTS)
    b = evaluate_top1(probabilities[order], labels[order], COUNTS, image_ids=order)
    found = compare_top1(a, b, bootstrap=10)
    assert (found.gained, found.lost) == (0, 0)
    other = evaluate_top1(probabilities[:40], labels[:40], COUNTS)
    with pytest.raises(ValueError, match="10 images that only one run has, the first is 40"):
        compare_top1(a, other)
    with pytest.raises(ValueError, match="another image_count"):
        compare_top1(a, evaluate_top1(probabilities, labels, (500, 101, 100, 21, 19, 0)))
    with pytest.raises(ValueError, match="images with another label"):
        compare_top1(a, evaluate_top1(probabilities, (labels + 1) % 6, COUNTS))


def test_what_is_no_probability_is_refused():
    probabilities, labels = problem(20)
    ids = np.arange(100, 120)
    broken = probabilities.copy()
    broken[[3, 7], 2] = np.nan
    with pytest.raises(ValueError, match="2 images with NaN probabilities, the first is 103"):
        evaluate_top1(broken, labels, COUNTS, image_ids=ids)
    with pytest.raises(ValueError, match="softmax of the logits"):
        evaluate_top1(np.log(probabilities), labels, COUNTS)
    with pytest.raises(ValueError, match="6 classes, but training images of 5"):
        evaluate_top1(probabilities, labels, COUNTS[:5])
    with pytest.raises(ValueError, match="the first is 6"):
        evaluate_top1(probabilities, np.full(20, 6), COUNTS)
    with pytest.raises(ValueError, match="not empty"):
        evaluate_top1(probabilities[:0], labels[:0], COUNTS)
    with pytest.raises(ValueError, match=r"bounds.*\(100, 20\)"):
        evaluate_top1(probabilities, labels, COUNTS, bounds=(100, 20))


def lade_mask(labels, counts, factor, reverse):
    """LADE's rule, in its own order of loops (notebooks/imagenet-shift-calib.ipynb)."""
    n, total = np.bincount(labels).min(), len(counts)
    left = np.zeros(total, dtype=int)
    for rank, c in enumerate(sorted(range(total), key=lambda c: -counts[c])):
        exponent = (total - 1 - rank if reverse else rank) / (total - 1)
        left[c] = n * factor**exponent
    mask = np.zeros(len(labels), dtype=bool)
    for i, label in enumerate(labels):
        if left[label] > 0:
            left[label] -= 1
            mask[i] = True
    return mask


@pytest.mark.parametrize("name", SHIFTS)
def test_shifted_images_are_those_of_lade(name):
    rng = np.random.default_rng(0)
    counts = rng.permutation(np.arange(10, 30))
    labels = rng.permutation(np.repeat(np.arange(20), 60))
    ratio = SHIFTS[name]
    expected = lade_mask(labels, counts, min(ratio, 1 / ratio), ratio < 1)
    assert shifted_images(labels, counts, ratio).tolist() == np.flatnonzero(expected).tolist()


@pytest.mark.parametrize("name", ["forward25", "uniform", "backward5"])
def test_shifted_accuracy_is_the_mean_over_cuts(name):
    counts = np.arange(10, 0, -1)
    labels = np.repeat(np.arange(10), 200)
    right = np.random.default_rng(0).random(2000) < np.linspace(0.9, 0.1, 10)[labels]
    probabilities = np.eye(10)[np.where(right, labels, (labels + 1) % 10)]
    found = evaluate_top1(probabilities, labels, counts).shifted[name]
    cuts = [shifted_images(labels, counts, SHIFTS[name], seed) for seed in range(200)]
    assert found == pytest.approx(100 * np.mean([right[cut].mean() for cut in cuts]), abs=0.5)
    assert len({tuple(cut) for cut in cuts[:2]}) == (1 if name == "uniform" else 2)


def test_shifted_prior():
    forward = shifted_prior((7, 900, 30), 50)
    assert forward[1] / forward[0] == pytest.approx(50)
    assert forward[1] / forward[2] == pytest.approx(np.sqrt(50)) and forward.sum() == 1
    assert shifted_prior((7, 900, 30), 1 / 50)[0] == pytest.approx(forward[1])
    with pytest.raises(ValueError, match="-2"):
        shifted_prior((1, 2), -2)


def test_a_model_that_is_told_the_prior_gains_where_it_was_wrong():
    probabilities, labels = problem(4000, seed=2, counts=tuple(range(1, 21)), sharpness=1.5)
    counts = np.arange(1, 21)
    blind = evaluate_top1(probabilities, labels, counts).shifted
    told = prior_aware_top1(probabilities, labels, counts, np.ones(20))
    assert told["uniform"] == pytest.approx(blind["uniform"])
    assert told["forward50"] > blind["forward50"] and told["backward50"] > blind["backward50"]
    with pytest.raises(ValueError, match="0.0"):
        prior_aware_top1(probabilities, labels, counts, np.arange(20))


def test_what_no_evaluation_can_mean_is_refused():
    three = evaluate_top1(np.eye(3), [0, 1, 2], [100, 50, 10])
    four = evaluate_top1(np.eye(4)[:3], [0, 1, 2], [100, 50, 10, 5])
    for pair in ((three, four), (four, three)):
        with pytest.raises(ValueError, match="same class list"):
            compare_top1(*pair)
    with pytest.raises(ValueError, match="bootstrap=0"):
        compare_top1(three, three, bootstrap=0)
    with pytest.raises(ValueError, match="bootstrap=-1"):
        evaluate_top1(np.eye(3), [0, 1, 2], [100, 50, 10], bootstrap=-1)
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match=f"predictions that are none of the 2.* is {wrong}"):
            top1_of_predictions([0, wrong], [0.5, 0.5], [0, 1], [10, 10])


def test_intervals_of_single_classes():
    """Wilson's, by the equation that defines it: both ends lie 1.96 standard errors away."""
    probabilities, labels = problem(60)
    result = evaluate_top1(probabilities, labels, COUNTS, bootstrap=5)
    for row in result.per_class:
        if not row["images"]:
            assert np.isnan(row["interval"]).all()
            continue
        share = row["accuracy"] / 100
        for end in row["interval"]:
            end /= 100
            apart = 1.959964 * np.sqrt(end * (1 - end) / row["images"])
            assert abs(share - end) == pytest.approx(apart, abs=1e-9)
    assert "interval" not in evaluate_top1(probabilities, labels, COUNTS).per_class[0]
    # All right is not certain.
    sure = evaluate_top1(np.eye(2)[[0] * 5 + [1]], [0] * 5 + [1], (9, 9), bootstrap=5)
    assert sure.per_class[0]["interval"] == pytest.approx((56.55, 100), abs=0.01)


def test_differences_of_single_classes():
    probabilities, labels = problem(60)
    a, b = (evaluate_top1(p, labels, COUNTS) for p in (probabilities, probabilities[:, ::-1]))
    found = compare_top1(a, b, bootstrap=200)
    rows = [row for row in found.per_class if row["difference"] == row["difference"]]
    for row in rows:
        one, other = (r.per_class[row["id"]]["accuracy"] for r in (a, b))
        assert row["difference"] == pytest.approx(other - one)
        low, high = row["interval"]
        assert low <= row["difference"] <= high and 0 <= row["wins"] <= 1
    # The mean over classes is that of the comparison.
    mean = np.mean([row["difference"] for row in rows])
    assert mean == pytest.approx(found.difference["balanced"])
