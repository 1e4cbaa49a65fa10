"""The box predictor with every post-hoc step; the pure functions of lvis_tde.posthoc on its logits,
with the statistics that it was given, are the oracle."""

import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.events import EventStorage
from predictor_util import C, D, make_predictor, make_proposals, with_mean

from lvis_tde import posthoc
from lvis_tde.layers.functional import normalize_weight
from lvis_tde.modeling.statistics import ClassStatistics, class_hash
from lvis_tde.posthoc import Settings

COUNTS = torch.tensor([100, 40, 9, 2, 0])
DIMENSION = torch.tensor([1.7, 1.5, 1.2, 1.0, 1.0])
MEAN = torch.tensor([-1.0, -2.0, -3.0, -4.0, -2.5])
STD = torch.tensor([1.0, 0.5, 2.0, 1.5, 0.7])
NAMES = ["ant", "bee", "cat", "dog", "eel"]
TOTAL = 120
MEANS = torch.rand(C, D, generator=torch.Generator().manual_seed(5))
CENTER = MEANS.mean(0) / 2
SIMILARITY = 0.4
ALL = dict(tau_norm=0.5, logn=0.3, logit_adjustment=0.4, norcal=0.2, fracal=1.5, class_means=0.6)


def with_statistics(predictor):
    predictor.statistics.set_annotations(
        images=COUNTS,
        instances=2 * COUNTS,
        dimension=DIMENSION,
        num_images=TOTAL,
        names=NAMES,
        groups="rrcff",
    )
    predictor.statistics.set_logits(MEAN, STD)
    predictor.statistics.set_class_means(MEANS, CENTER, SIMILARITY)
    return with_mean(predictor)


def make(sigmoid, norm="none", **options):
    predictor = make_predictor(norm=norm, use_sigmoid_ce=sigmoid, **{"alpha": 0.0, **options})
    torch.nn.init.normal_(predictor.cls_score.weight)
    if predictor.cls_score.bias is not None:
        torch.nn.init.normal_(predictor.cls_score.bias)
    return with_statistics(predictor)


def probs_of(predictor, x):
    return predictor.predict_probs(predictor(x), make_proposals([0] * len(x)))[0]


def weights_of(predictor):
    one = predictor.cls_score
    weight = normalize_weight(one.weight, one.num_heads, one.norm, one.gamma).detach()
    return weight * one.scale, None if one.bias is None else one.bias.detach()


def by_hand(predictor, z, x, name, strength):
    """Logits after one step, with background, by the pure functions."""
    if name == "tau_norm":
        weight, bias = weights_of(predictor)
        return posthoc.tau_norm(z, weight, strength, bias=bias)
    if name == "logn":
        return posthoc.logn(z, MEAN, STD, strength=strength)
    if name == "norcal":
        return posthoc.norcal(z, COUNTS, strength).log()
    if name == "fracal":
        return posthoc.fracal(z, COUNTS, DIMENSION, strength, total=TOTAL).log()
    if name == "class_means":
        return posthoc.class_means(z, x, MEANS, strength, center=CENTER, similarity=SIMILARITY)
    return posthoc.logit_adjustment(z, COUNTS, strength)


@pytest.mark.parametrize("norm", ["none", "deconfound"])
@pytest.mark.parametrize("name", ALL)
def test_each_step_of_a_softmax(name, norm):
    predictor = make(False, norm, posthoc={name: 0.7})
    x = torch.rand(6, D)
    z = predictor(x)[0].detach()
    adjusted = by_hand(predictor, z, x, name, 0.7)
    torch.testing.assert_close(probs_of(predictor, x), posthoc.exempt(z, adjusted))
    predictor.background_exempt = False
    torch.testing.assert_close(probs_of(predictor, x), adjusted.softmax(1))


@pytest.mark.parametrize("norm", ["none", "cosine"])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("keep", ["", "tde", "factual"])
def test_each_step_of_sigmoids(name, norm, keep):
    predictor = make(True, norm, posthoc={name: 0.7, "keep_sum": keep})
    x = torch.rand(6, D)
    z = predictor(x)[0].detach()
    expected = z.sigmoid()
    if name == "fracal":
        shifted = posthoc.keep_sum(z[:, :-1], z[:, :-1]) if keep else z[:, :-1]
        foreground = posthoc.fracal_sigmoid(shifted, COUNTS, DIMENSION, 0.7, total=TOTAL)
    else:
        adjusted = by_hand(predictor, z, x, name, 0.7)[:, :-1]
        if name == "norcal":  # its pure function is a softmax
            adjusted = z[:, :-1] - 0.7 * COUNTS.clamp(min=1).log()
        if keep == "factual" or (keep and name != "class_means"):
            adjusted = posthoc.keep_sum(adjusted, z[:, :-1])
        foreground = adjusted.sigmoid()
    expected[:, :-1] = foreground
    torch.testing.assert_close(probs_of(predictor, x), expected)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_all_steps_with_tde_are_the_composition(sigmoid):
    settings = Settings(region=0.3, class_=0.3, **ALL)
    predictor = make(sigmoid)
    predictor.posthoc = settings
    x = torch.rand(6, D)
    weight, bias = weights_of(predictor)
    norms = weight[:-1].norm(dim=1)
    known = posthoc.Statistics(
        COUNTS, DIMENSION, MEAN, STD, norms, bias[:-1], TOTAL, MEANS, CENTER, SIMILARITY
    )
    composition = posthoc.compose(settings, known, sigmoid=sigmoid)
    terms = predictor.cls_score.effect_terms(x, predictor.feature_mean.mean)
    with torch.no_grad():
        expected = composition(predictor(x)[0], *terms, x)
    torch.testing.assert_close(probs_of(predictor, x), expected)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("norm", ["none", "deconfound"])
def test_neutral_is_factual_to_the_last_bit(sigmoid, norm):
    predictor = make(sigmoid, norm)
    x = torch.rand(7, D)
    z = predictor(x)[0]
    expected = z.sigmoid() if sigmoid else z.softmax(1)
    for keep in ("tde", "factual", ""):
        predictor.posthoc = Settings(keep_sum=keep)
        assert torch.equal(probs_of(predictor, x), expected)


def test_settings_are_those_of_the_predictor():
    predictor = make(True, alpha=0.5, alpha_region=0.2, posthoc={"norcal": 0.3, "keep_sum": ""})
    assert predictor.posthoc == Settings(0.2, 0.5, norcal=0.3, keep_sum="")
    predictor.alpha, predictor.background_exempt = 0.7, False
    assert predictor.posthoc == Settings(0.2, 0.7, norcal=0.3, keep_sum="", background="joint")
    predictor.posthoc = Settings(0.4, 0.4, logn=1.0)
    assert (predictor.alpha, predictor.alpha_region) == (0.4, None)
    assert predictor.background_exempt and predictor.posthoc == Settings(0.4, 0.4, logn=1.0)
    predictor.posthoc = Settings(0.1, 0.4)
    assert (predictor.alpha, predictor.alpha_region) == (0.4, 0.1)
    softmax = make(False)
    with pytest.raises(ValueError, match="region=0.1 and class_=0.4 need sigmoids"):
        softmax.posthoc = Settings(0.1, 0.4)
    assert softmax.posthoc == Settings()


def test_it_is_folded_anew_when_what_it_is_made_of_changes():
    predictor = make(False, posthoc={"logit_adjustment": 1.0})
    x = torch.rand(3, D)
    first = probs_of(predictor, x)
    folded = predictor.composition()
    assert predictor.composition() is folded
    other = copy.deepcopy(predictor)
    other.statistics.images.copy_(torch.tensor([1, 2, 3, 4, 5]))
    assert not torch.allclose(probs_of(other, x), first)
    assert torch.equal(probs_of(predictor, x), first)
    predictor.load_state_dict(other.state_dict())
    assert torch.equal(probs_of(predictor, x), probs_of(other, x))
    predictor.posthoc = Settings(tau_norm=1.0)
    before = probs_of(predictor, x)
    with torch.no_grad():
        predictor.cls_score.weight[0] *= 3
    z = predictor(x)[0].detach()
    expected = posthoc.exempt(z, by_hand(predictor, z, x, "tau_norm", 1.0))
    torch.testing.assert_close(probs_of(predictor, x), expected)
    assert not torch.allclose(expected, before)


def test_settings_share_the_directions_of_the_means():
    predictor, found = make(True), []
    for strength in (1.0, 2.0):
        predictor.posthoc = Settings(class_means=strength)
        found.append(predictor.composition())
    assert found[0] is not found[1] and found[0].directions is found[1].directions
    predictor.statistics.class_means[0] += 1
    assert predictor.composition().directions is not found[0].directions


@pytest.mark.parametrize("name", [name for name in ALL if name != "tau_norm"])
def test_missing_statistics_are_named(name):
    predictor = make_predictor(posthoc={name: 0.5})
    with pytest.raises(ValueError, match=f"MODEL.POSTHOC.{name.upper()}.*estimate_feature_mean"):
        probs_of(predictor, torch.rand(2, D))
    with_statistics(predictor)
    assert probs_of(predictor, torch.rand(2, D)).isfinite().all()


@pytest.mark.parametrize("sigmoid", [False, True])
def test_training_does_not_see_them(sigmoid):
    plain, adjusted = make(sigmoid), make(sigmoid, posthoc=ALL)
    adjusted.load_state_dict(plain.state_dict())
    adjusted.alpha = 1.0
    found = []
    for predictor in (plain, adjusted):
        x = torch.rand(5, D, generator=torch.Generator().manual_seed(4)).requires_grad_()
        with EventStorage():
            losses = predictor.losses(predictor(x), make_proposals([0, 2, C], [C, 4]))
        sum(losses.values()).backward()
        found.append((losses, x.grad, predictor.cls_score.weight.grad))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1:], found[1][1:]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_autocast_and_half_precision(sigmoid, dtype):
    predictor = make(sigmoid, alpha=0.3, posthoc=ALL)
    x = torch.rand(4, D).to(dtype).float()
    expected = probs_of(predictor, x)
    with torch.autocast("cpu", dtype=dtype):
        probs = probs_of(predictor, x.to(dtype))
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, expected, rtol=0, atol=1e-5)
    half = copy.deepcopy(predictor).to(dtype)
    assert torch.equal(half.statistics.logit_mean, MEAN) and half.statistics.images.dtype.is_signed


@pytest.mark.parametrize("sigmoid", [False, True])
def test_no_region_and_one_class(sigmoid):
    predictor = make(sigmoid, alpha=0.3, posthoc=ALL)
    assert probs_of(predictor, torch.rand(0, D)).shape == (0, C + 1)
    one = make_predictor(norm="none", num_heads=1, use_sigmoid_ce=sigmoid, posthoc=ALL)
    one = type(one)(
        one_shape(),
        box2box_transform=one.box2box_transform,
        num_classes=1,
        norm="none",
        use_sigmoid_ce=sigmoid,
        alpha=0.3,
        posthoc=ALL,
    )
    one.statistics.set_annotations(
        images=torch.tensor([7]), instances=torch.tensor([9]), dimension=torch.ones(1), num_images=9
    )
    one.statistics.set_logits(torch.tensor([-2.0]), torch.tensor([0.5]))
    one.statistics.set_class_means(MEANS[:1], CENTER)
    probs = probs_of(with_mean(one), torch.rand(3, D))
    assert probs.shape == (3, 2) and probs.isfinite().all()
    if not sigmoid:
        torch.testing.assert_close(probs.sum(1), torch.ones(3))


def one_shape():
    from detectron2.layers import ShapeSpec

    return ShapeSpec(channels=D)


def test_statistics_through_a_checkpoint(tmp_path, caplog):
    first, second = make(False), make_predictor(norm="none")
    DetectionCheckpointer(first, str(tmp_path)).save("model")
    DetectionCheckpointer(second).load(str(tmp_path / "model.pth"))
    for name, value in first.statistics.state_dict().items():
        assert value.any() and torch.equal(second.statistics.state_dict()[name], value), name
    # One from before there were any: loads without a word, and they are unknown.
    state = {k: v for k, v in first.state_dict().items() if not k.startswith("statistics")}
    torch.save({"model": state}, tmp_path / "old.pth")
    caplog.clear()
    DetectionCheckpointer(second).load(str(tmp_path / "old.pth"))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert not any(value.any() for value in second.statistics.state_dict().values())
    second.load_state_dict(state)  # strictly, too


def test_the_statistics_alone():
    statistics = ClassStatistics(2)
    known = statistics.known()
    assert known.counts is known.mean is known.std is known.dimension is known.num_images is None
    assert known.class_means is known.center is None
    assert class_hash("cat") != class_hash("dog") and class_hash("cat") != 0
    with pytest.raises(ValueError, match="3 values for 2 classes"):
        statistics.set_logits(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"\(2, 7\), expected \(2, 5\)"):
        ClassStatistics(2, 5).set_class_means(torch.ones(2, 7), torch.ones(5))
    with pytest.raises(ValueError, match="num_classes=0"):
        ClassStatistics(0)
    assert str(statistics) == "ClassStatistics(num_classes=2)"
