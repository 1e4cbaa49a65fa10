"""The predictor of image classifiers; the classifier and posthoc's functions are the oracle."""

import logging
from pathlib import Path

import formula_util
import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from lvis_tde import posthoc, tde_logits
from lvis_tde.layers.functional import normalize_weight
from lvis_tde.modeling.image_losses import ImageLoss
from lvis_tde.modeling.image_predictor import ScaledClassifier, TDEImagePredictor

C, D = 5, 8
COUNTS = torch.tensor([100, 40, 20, 5, 1])


def make(num_classes=C, **options):
    torch.manual_seed(0)
    return TDEImagePredictor(ShapeSpec(channels=D), num_classes=num_classes, **options)


def with_mean(predictor):
    predictor.feature_mean.mean.copy_(torch.rand(D, generator=torch.Generator().manual_seed(2)))
    return predictor


def with_counts(predictor):
    predictor.statistics.set_annotations(
        images=COUNTS, instances=COUNTS, dimension=torch.ones(C), num_images=int(COUNTS.sum())
    )
    return predictor


def probs(predictor, x):
    with torch.no_grad():
        return predictor.predict_probs(predictor(x))


def test_a_training_step_forgets_what_was_chosen():
    predictor = make()
    predictor.calibrated_alpha, predictor.chosen = 1.5, "alpha 1.5 by top1 on birds"
    with EventStorage():
        output, labels = predictor(torch.rand(4, D)), torch.arange(4)
        with torch.no_grad():
            predictor.losses(output, labels)
        assert (predictor.calibrated_alpha, bool(predictor.chosen)) == (1.5, True)
        predictor.losses(output, labels)
    assert (predictor.calibrated_alpha, predictor.chosen) == (None, "")


def test_forward_is_factual_in_both_modes():
    predictor, x = with_mean(make()), torch.rand(4, D)
    logits, features = predictor.train()(x)
    assert logits.shape == (4, C) and features is x
    torch.testing.assert_close(predictor.eval()(x)[0], logits)


@pytest.mark.parametrize("norm", ["cosine", "capsule", "deconfound", "none"])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_probabilities_are_the_softmax_of_tde(norm, alpha):
    predictor, x = with_mean(make(norm=norm, alpha=alpha)), torch.randn(6, D)
    logits = tde_logits(x, predictor.cls_score, predictor.feature_mean.mean, alpha)
    torch.testing.assert_close(probs(predictor, x), logits.softmax(-1).detach())


ALL = {"background": False}
STEPS = [
    ("logit_adjustment", 1.0, lambda z, w, b: posthoc.logit_adjustment(z, COUNTS, 1.0, **ALL)),
    ("norcal", 0.7, lambda z, w, b: z - 0.7 * COUNTS.log()),
    ("tau_norm", 0.5, lambda z, w, b: posthoc.tau_norm(z, w, 0.5, bias=b, **ALL)),
]


@pytest.mark.parametrize("norm", ["deconfound", "none"])
@pytest.mark.parametrize("name, strength, step", STEPS, ids=[one[0] for one in STEPS])
def test_every_class_counts_the_last_too(name, strength, step, norm):
    predictor, x = with_counts(make(norm=norm, posthoc={name: strength}, alpha=0)), torch.rand(6, D)
    classifier = predictor.cls_score
    if norm == "none":
        torch.nn.init.normal_(classifier.bias)
    weight = normalize_weight(classifier.weight, 2, norm, 1 / 32)
    adjusted = step(predictor(x)[0], weight, classifier.bias)
    expected = adjusted.softmax(-1)
    torch.testing.assert_close(probs(predictor, x), expected.detach())
    background = predictor.posthoc.background
    predictor.background_exempt = background != "exempt"  # has no meaning without one
    torch.testing.assert_close(probs(predictor, x), expected.detach())


def test_settings_without_statistics_and_of_sigmoids_are_refused():
    with pytest.raises(ValueError, match="LOGIT_ADJUSTMENT"):
        probs(make(posthoc={"logit_adjustment": 1.0}), torch.rand(1, D))
    with pytest.raises(ValueError, match="alpha_region"):
        make(alpha_region=0.3)


def test_means_of_the_classes_have_their_own_mean_for_a_center():
    predictor, x, means = make(alpha=0.0), torch.rand(4, D), torch.rand(C, D)
    predictor.statistics.set_class_means(means, torch.zeros(D))
    predictor.posthoc = posthoc.Settings(class_means=3.0)
    logits = posthoc.class_means(predictor(x)[0], x, means, 3.0, background=False)
    torch.testing.assert_close(probs(predictor, x), logits.softmax(1))


def test_the_mean_is_that_of_all_images_and_the_loss_is_the_cross_entropy():
    predictor, x, labels = make(mean_momentum=0.75), torch.rand(5, D), torch.tensor([0, 4, 1, 4, 2])
    predictor.statistics.set_logits(torch.ones(C), torch.ones(C))
    predictor.statistics.set_class_means(torch.ones(C, D), torch.zeros(D))
    with EventStorage() as storage:
        predictions = predictor(x)
        loss = predictor.losses(predictions, labels)
        latest = {key: value for key, (value, _) in storage.latest().items()}
    assert set(loss) == {"loss_cls"}
    torch.testing.assert_close(loss["loss_cls"], F.cross_entropy(predictions[0], labels))
    mean = 0.25 * x.mean(0)
    torch.testing.assert_close(predictor.feature_mean.mean, mean)
    assert not predictor.statistics.logit_std.any()
    assert not predictor.statistics.class_means.any()
    assert latest["tde/mean_norm"] == pytest.approx(mean.norm().item())
    halves = x.unflatten(1, (2, -1))
    cosine = torch.cosine_similarity(halves, mean.unflatten(0, (2, -1))[None], dim=2).mean()
    assert latest["tde/cosine_to_mean"] == pytest.approx(cosine.item(), abs=1e-5)
    right = (predictions[0].argmax(1) == labels).float().mean()
    assert latest["image_classifier/accuracy"] == pytest.approx(right.item())
    assert not any("loss" in key or "-" in key for key in latest)


def test_a_validation_loss_moves_nothing():
    predictor = make()
    predictor.statistics.set_logits(torch.ones(C), torch.ones(C))
    with EventStorage(), torch.no_grad():
        predictor.losses(predictor(torch.rand(2, D)), torch.tensor([0, 1]))
    assert not predictor.feature_mean.mean.any() and predictor.statistics.logit_std.all()


def test_no_image_has_a_loss_of_zero_and_gradients():
    predictor, x = with_mean(make()), torch.rand(0, D, requires_grad=True)
    before = predictor.feature_mean.mean.clone()
    with EventStorage() as storage:
        loss = predictor.losses(predictor(x), torch.zeros(0, dtype=torch.long))["loss_cls"]
        loss.backward()
        assert not storage.latest()
    assert loss == 0 and predictor.cls_score.weight.grad is not None
    torch.testing.assert_close(predictor.feature_mean.mean, before)
    assert probs(predictor, x.detach()).shape == (0, C)


@pytest.mark.parametrize("num_classes", [1, 1000])
def test_one_class_and_a_thousand(num_classes):
    predictor, x = with_mean(make(num_classes)), torch.rand(3, D)
    found = probs(predictor, x)
    assert found.shape == (3, num_classes) and (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    with EventStorage():
        labels = torch.tensor([0, 0, num_classes - 1])
        predictor.losses(predictor(x), labels)["loss_cls"].backward()
    assert predictor.cls_score.weight.grad.isfinite().all()


def test_features_that_are_not_finite_leave_the_mean():
    predictor, x = with_mean(make()), torch.rand(3, D)
    before = predictor.feature_mean.mean.clone()
    x[1, 2] = torch.nan
    with EventStorage():
        loss = predictor.losses(predictor(x), torch.tensor([0, 1, 2]))["loss_cls"]
    assert loss.isnan()  # the training loop stops, as Detectron2's does
    torch.testing.assert_close(predictor.feature_mean.mean, before)
    assert probs(predictor, x).isfinite().all(dim=1).tolist() == [True, False, True]


def test_half_precision_features_under_autocast():
    predictor, x = with_mean(make()), torch.rand(4, D).bfloat16()
    exact = probs(predictor, x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = probs(predictor, x)
        with EventStorage():
            loss = predictor.losses(predictor(x), torch.zeros(4, dtype=torch.long))["loss_cls"]
    assert found.dtype == loss.dtype == predictor.feature_mean.mean.dtype == torch.float32
    torch.testing.assert_close(found, exact)


def test_a_zero_mean_means_no_tde_said_once(caplog):
    predictor, x = make(), torch.rand(2, D)
    with caplog.at_level(logging.WARNING):
        first, second = probs(predictor, x), probs(predictor, x)
    assert caplog.text.count("mean is zero") == 1
    torch.testing.assert_close(first, predictor(x)[0].softmax(-1).detach())
    torch.testing.assert_close(first, second)


def test_counts_are_those_given_or_of_the_statistics():
    x, labels, loss = torch.rand(3, D), torch.tensor([0, 4, 2]), ImageLoss("balanced_softmax")
    given, known = make(loss=loss, class_counts=COUNTS), with_counts(make(loss=loss))
    assert "class_counts" not in given.state_dict()
    with EventStorage():
        expected = F.cross_entropy(given(x)[0] + COUNTS.log(), labels)
        for predictor in (given, known):
            torch.testing.assert_close(predictor.losses(predictor(x), labels)["loss_cls"], expected)
        unknown = make(loss=loss)
        with pytest.raises(ValueError, match="CLASS_COUNTS"):
            unknown.losses(unknown(x), labels)
    with pytest.raises(ValueError, match="counts has shape"):
        make(loss=loss, class_counts=[1, 2])


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_counts_of_a_half_precision_model_are_exact(cast):
    counts = [100_000, 20_001, 3, 2, 1]
    predictor = make(loss=ImageLoss("balanced_softmax"), class_counts=counts)
    predictor = getattr(torch.nn.Sequential(predictor), cast)()[0]
    assert predictor.class_counts.tolist() == counts
    assert predictor.cls_score.weight.dtype == getattr(torch, {"half": "float16"}.get(cast, cast))


def test_weights_of_the_classes_are_deferred():
    predictor, x = make(loss=ImageLoss(defer_iter=3), class_counts=COUNTS), torch.rand(3, D)
    labels = torch.tensor([0, 4, 2])
    values = []
    for iteration in (2, 3):
        with EventStorage(iteration), torch.no_grad():
            values.append(predictor.losses(predictor(x), labels)["loss_cls"])
    plain = F.cross_entropy(predictor(x)[0], labels)
    torch.testing.assert_close(values[0], plain.detach())
    assert (values[1] - values[0]).abs() > 1e-3


def test_ldam_has_one_scale():
    with pytest.raises(ValueError, match="LDAM_SCALE.*tau=16"):
        make(loss=ImageLoss("ldam"))
    make(loss=ImageLoss("ldam"), tau=30.0)
    # A linear classifier has no cosines: a margin of 15 on its logits is another loss.
    with pytest.raises(ValueError, match="norm='none'.*MODEL.TDE.NORM.*'cosine'"):
        make(loss=ImageLoss("ldam"), tau=30.0, norm="none")


def test_a_scale_a_class_is_learned_on_a_frozen_classifier():
    predictor = with_mean(make(norm="none", train_only="scales", alpha=1.0))
    classifier = predictor.cls_score
    assert [n for n, p in predictor.named_parameters() if p.requires_grad] == ["cls_score.scales"]
    x, scales = torch.randn(4, D), torch.rand(C) + 0.5
    torch.nn.init.normal_(classifier.bias)
    plain = make(norm="none").cls_score
    plain.load_state_dict(classifier.state_dict(), strict=False)
    torch.testing.assert_close(classifier(x), plain(x))
    with torch.no_grad():
        classifier.scales.copy_(scales)
        plain.weight.mul_(scales[:, None])
        plain.bias.mul_(scales)
    # A linear classifier takes the factors into its weights, and so does all that comes after.
    expected = tde_logits(x, plain, predictor.feature_mean.mean, 1.0)
    torch.testing.assert_close(probs(predictor, x), expected.softmax(-1).detach())
    predictor.posthoc = posthoc.Settings(tau_norm=1.0)
    expected = posthoc.tau_norm(plain(x), plain.weight, 1.0, bias=plain.bias, **ALL).softmax(-1)
    torch.testing.assert_close(probs(predictor, x), expected.detach())
    before = predictor.feature_mean.mean.clone()
    with EventStorage():
        predictor.losses(predictor(x), torch.zeros(4, dtype=torch.long))["loss_cls"].backward()
    assert classifier.scales.grad is not None and classifier.weight.grad is None
    torch.testing.assert_close(predictor.feature_mean.mean, before)


def test_scales_equal_the_authors():
    path = Path(__file__).parents[1] / "golden" / "image_losses_reference.npz"
    reference = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    classifier = ScaledClassifier(6, 10, norm="none").double()
    with torch.no_grad():
        classifier.weight.copy_(2 * formula_util.uniform((10, 6), 1) - 1)
        classifier.bias.copy_(2 * formula_util.uniform((10,), 2) - 1)
        classifier.scales.copy_(0.5 + formula_util.uniform((10,), 3))
    logits = classifier(2 * formula_util.uniform((16, 6), 4) - 1)
    F.cross_entropy(logits, formula_util.labels(16, 10, 8)).backward()
    torch.testing.assert_close(logits.detach(), reference["lws_logits"])
    torch.testing.assert_close(classifier.scales.grad, reference["lws_scales_grad"])


def test_what_is_trained_is_one_of_three():
    with pytest.raises(ValueError, match="TRAIN_ONLY"):
        make(train_only="backbone")
