"""Arithmetic of the benchmark on choices without held-out images against closed forms."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from benchmarks import unheld, unheld_regions
from benchmarks.sigmoid_parts_regions import Regions
from benchmarks.unheld_measures import MEASURES, shares
from benchmarks.unheld_regions import augment, fit, refitted
from lvis_tde.layers.classifier import CosineMultiHeadClassifier
from lvis_tde.posthoc import Settings, logit_adjustment, tde


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shares_are_the_softmax_of_the_foreground_alone():
    logits = torch.randn(50, 5, generator=_generator())
    expected = logits[:, :-1].softmax(1)
    torch.testing.assert_close(shares(logits.softmax(1)), expected)


def test_each_class_counts_alike():
    given = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]])
    labels, counts = torch.tensor([0, 0, 0, 1]), torch.tensor([3.0, 1.0])
    assert MEASURES["balanced accuracy"](given, labels, counts) == pytest.approx(50)
    expected = (given[:3, 0].log().mean() + given[3, 1].log()) / 2
    found = MEASURES["balanced likelihood"](given, labels, counts)
    assert found == pytest.approx(float(expected))


def test_logit_adjustment_by_the_prior_makes_false_shares_equal():
    # Logits that know nothing but the prior: every class's false share is its prior's share of
    # all others, and without it they are equal.
    counts = torch.tensor([100.0, 30.0, 10.0, 3.0, 1.0])
    logits = F.pad(counts.log().expand(5, -1), (0, 1))
    labels = torch.arange(5)

    def steepness(beta):
        adjusted = logit_adjustment(logits, counts, beta)
        return MEASURES["equal false shares"](shares(adjusted.softmax(1)), labels, counts)

    assert steepness(1.0) == pytest.approx(0, abs=1e-6)
    # Each class is seen as false over the four others, whatever its own region is.
    assert steepness(0.0) == pytest.approx(-1, abs=1e-6)
    assert steepness(0.5) == pytest.approx(-0.5, abs=1e-6)


def test_augmentation_is_the_generators_and_keeps_the_range():
    image = torch.randint(0, 256, (3, 40, 60), generator=_generator()).to(torch.uint8)
    first, again = (augment(image, _generator(3)) for _ in range(2))
    assert torch.equal(first, again)
    other = augment(image, _generator(4))
    assert first.shape != other.shape
    for one in (first, other):
        assert one.min() >= 0 and one.max() <= 255
        assert 0.55 < one.shape[1] / 40 < 1.75 and 0.55 < one.shape[2] / 60 < 1.75


def _solver(steps):
    return SimpleNamespace(
        BASE_LR=0.1,
        MOMENTUM=0.9,
        WEIGHT_DECAY=1e-4,
        MAX_ITER=steps,
        GAMMA=0.1,
        STEPS=(steps // 2,),
        WARMUP_ITERS=2,
        CLIP_GRADIENTS=SimpleNamespace(ENABLED=True, CLIP_VALUE=1.0),
    )


def test_fit_tells_separable_classes_apart():
    labels = torch.arange(3).repeat(40)
    features = F.one_hot(labels, 3).float() + 0.1 * torch.randn(120, 3, generator=_generator())
    torch.manual_seed(0)
    classifier = CosineMultiHeadClassifier(3, 3, norm="none", num_heads=1)
    fit(classifier, features, labels, F.cross_entropy, _solver(60))
    assert (classifier(features).argmax(1) == labels).all()


def _regions(norm="none", heads=1):
    images, each = 12, 6
    labels = torch.arange(3).repeat(images * each // 3)  # 2 is the background
    features = torch.randn(len(labels), 4, generator=_generator())
    classifier = CosineMultiHeadClassifier(4, 3, norm=norm, num_heads=heads)
    mean = torch.tensor([1.0, 0.5, -0.5, 0.2])
    cosine, pull = classifier.effect_terms(features, mean)
    regions = Regions(
        run=SimpleNamespace(seed=1, sigmoid=False),
        split="train",
        logits=classifier(features).detach(),
        features=features,
        boxes=torch.zeros(len(labels), 4),
        cosine=cosine,
        pull=pull.detach(),
        mean=mean,
        means=torch.zeros(2, 4),
        center=mean,
        similarity=0.5,
        weight=classifier.weight.detach(),
        bias=None,
        images=[{"image_id": i, "number": each} for i in range(images)],
        nms=0.5,
        threshold=0.0,
        limit=10,
    )
    regions.__dict__["labels"] = labels  # what it would find in the annotations
    predictor = SimpleNamespace(cls_score=classifier, use_sigmoid_ce=False)
    return regions, SimpleNamespace(SOLVER=_solver(5)), predictor


def test_refitted_logits_are_of_classifiers_that_did_not_see_the_image():
    regions, cfg, predictor = _regions()
    labels, classifier, (images, each) = regions.labels, predictor.cls_score, (12, 6)
    before = classifier.weight.clone()
    found = refitted(regions, cfg, predictor)
    assert torch.equal(classifier.weight, before)
    # Another label of an image changes the logits of the other half's images, not of its own.
    regions.__dict__["labels"] = torch.cat([(labels[:each] + 1) % 3, labels[each:]])
    changed = (refitted(regions, cfg, predictor).logits != found.logits).any(1).view(images, each)
    assert not changed[0].any() and changed.any(1).sum() == images // 2


@pytest.mark.parametrize("norm, heads", [("none", 1), ("deconfound", 2)])
def test_refitted_terms_are_those_of_each_folds_classifier(monkeypatch, norm, heads):
    regions, cfg, predictor = _regions(norm, heads)
    made = []

    def recorded(classifier, *args):
        fit(classifier, *args)
        made.append(classifier)

    monkeypatch.setattr(unheld_regions, "fit", recorded)
    found = refitted(regions, cfg, predictor)
    direct = tde(found.logits, found.cosine, found.pull, region=1.0, class_=1.0)
    total = 0
    for classifier in made:
        logits = classifier(regions.features).detach()
        own = torch.isclose(found.logits, logits, atol=1e-5).all(1)
        expected = classifier.direct_effect(logits, regions.features, regions.mean, 1.0)
        torch.testing.assert_close(direct[own], expected[own].detach(), atol=1e-5, rtol=1e-5)
        total += int(own.sum())
    assert len(made) == 2 and total == len(direct)


def _result(seed, gains):
    trained = {"AP": 20.0, "APr": 5.0}
    chosen = {
        way: {
            name: {**trained, "words": "alpha 1", "AP": 20 + gains.get(way, 0.0)}
            for name in unheld.METHODS
        }
        for way in unheld.WAYS
    }
    return {"kind": "glyphs", "seed": seed, "name": "softmax", "as trained": trained,
            "chosen": chosen}  # fmt: skip


def test_table_has_the_share_of_the_mean_gain():
    timid = "training images, share: AP"
    results = [
        _result(0, {unheld.HELD_OUT: 1.0, timid: 1.0}),
        _result(1, {unheld.HELD_OUT: 3.0, timid: 0.0}),
    ]
    gains, strengths = unheld.tables(results).values()
    rows = {row[0]: row[1:] for row in gains}
    assert rows[unheld.HELD_OUT][0] == "+2.00"
    assert rows[timid][0] == "+0.50 (25 %)"
    assert rows[timid][1] == "+0.00"  # no gain to have a share of
    assert {row[0]: row[1:] for row in strengths}[timid][0] == "alpha 1; alpha 1"
    assert "| chosen by |" in unheld.markdown(unheld.tables(results))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_methods_choose_from_the_weakest_on(sigmoid):
    for settings in unheld.candidates(sigmoid).values():
        assert settings[0] == Settings() and len(set(settings)) == len(settings)
