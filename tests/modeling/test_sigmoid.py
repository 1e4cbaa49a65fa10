"""The box predictor with sigmoids, against Detectron2 main's own and against closed forms."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from predictor_util import C, D, make_predictor, make_proposals, with_mean

from lvis_tde import tde_logits
from lvis_tde.modeling.sigmoid import (
    BoxPredictor,
    FixedWeights,
    SigmoidFastRCNNOutputLayers,
    class_weights,
    federated_classes,
    sigmoid_cross_entropy,
)

HAS_SIGMOIDS = hasattr(FastRCNNOutputLayers, "sigmoid_cross_entropy_loss")
MAIN = pytest.mark.skipif(not HAS_SIGMOIDS, reason="release 0.6 has no sigmoids to compare with")
WEIGHTS = FixedWeights([5.0, 1.0, 3.0, 2.0, 4.0])
FEDERATED = dict(
    use_fed_loss=True, get_fed_loss_cls_weights=WEIGHTS, fed_loss_num_classes=C - 1
)  # fmt: skip
KEPT = dict(keep_sum="factual")
LABELS = ([0, 2, C], [C, 4, 2])


def make_sigmoid(**options):
    predictor = make_predictor(use_sigmoid_ce=True, **options)
    torch.nn.init.normal_(predictor.cls_score.weight)
    if options.get("norm") == "none":
        torch.nn.init.normal_(predictor.cls_score.bias)
    return predictor


def probs_of(predictor, x):
    return predictor.predict_probs(predictor(x), make_proposals([0] * len(x)))[0]


def binary_entropies(logits, labels):
    """(R, C), from the definition."""
    p = logits.double().sigmoid()[:, :-1]
    target = torch.eye(C + 1, dtype=torch.double)[torch.tensor(labels)][:, :-1]
    return -(target * p.log() + (1 - target) * (1 - p).log())


@pytest.mark.parametrize("norm", ["none", "deconfound"])
def test_the_loss_is_the_sum_of_binary_entropies(norm):
    predictor = make_sigmoid(norm=norm, loss_weight={"loss_cls": 0.5})
    predictions = predictor(torch.rand(6, D))
    with EventStorage():
        losses = predictor.losses(predictions, make_proposals(*LABELS))
    expected = binary_entropies(predictions[0], sum(LABELS, [])).sum() / 6 * 0.5
    torch.testing.assert_close(losses["loss_cls"], expected.float())
    assert predictor.feature_mean.mean.any()


def test_the_federated_loss_counts_the_classes_of_the_batch_and_drawn_ones():
    predictor = make_sigmoid(norm="none", **FEDERATED)
    predictions, seen = predictor(torch.rand(6, D)), set()
    by_class = binary_entropies(predictions[0], sum(LABELS, [])).sum(0) / 6
    # Classes 0, 2, 4 and the background are there, so one more makes C of them: 1 or 3, or none.
    for count in (C - 1, C):
        predictor.fed_loss_num_classes = count
        for seed in range(20):
            torch.manual_seed(seed)
            with EventStorage():
                loss = predictor.losses(predictions, make_proposals(*LABELS))["loss_cls"].item()
            seen.add(round(loss, 4))
    present = by_class[[0, 2, 4]].sum()
    expected = {present, present + by_class[1], present + by_class[3]}
    assert seen == {round(value.item(), 4) for value in expected}


@MAIN
@pytest.mark.parametrize("options", [{}, FEDERATED])
@pytest.mark.parametrize("labels", [LABELS, ([C, C], [C]), ([1],)])
def test_neutral_settings_train_as_upstream(options, labels):
    ours = make_predictor(use_sigmoid_ce=True, norm="none", **options)
    theirs = make_predictor(FastRCNNOutputLayers, use_sigmoid_ce=True, **options)
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing.missing_keys
    x, found = torch.rand(sum(map(len, labels)), D), []
    for predictor in (ours, theirs):
        torch.manual_seed(3)
        with EventStorage():
            losses = predictor.losses(predictor(x), make_proposals(*labels))
        predictor.zero_grad()
        sum(losses.values()).backward()
        found.append((losses, predictor.cls_score.weight.grad, predictor.cls_score.bias.grad))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][2], found[1][2])


@MAIN
def test_the_losses_for_release_06_are_mains():
    theirs = make_predictor(
        FastRCNNOutputLayers, use_sigmoid_ce=True, **{**FEDERATED, "fed_loss_num_classes": 3}
    )
    logits, generator = torch.randn(8, C + 1), torch.Generator().manual_seed(0)
    for seed in range(10):
        labels = torch.randint(C + 1, (8,), generator=generator)[: seed + 1]
        torch.manual_seed(seed)
        expected = theirs.sigmoid_cross_entropy_loss(logits[: seed + 1], labels)
        torch.manual_seed(seed)
        kept = federated_classes(labels, WEIGHTS(), 3)
        torch.testing.assert_close(
            sigmoid_cross_entropy(logits[: seed + 1], labels, kept), expected
        )


def test_the_predictor_for_release_06_has_mains_weights_and_probabilities():
    predictor = make_predictor(SigmoidFastRCNNOutputLayers, use_sigmoid_ce=True, **FEDERATED)
    names = {
        f"{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in ("weight", "bias")
    }
    assert set(predictor.state_dict()) == names | {"fed_loss_cls_weights"}
    x = torch.rand(3, D)
    torch.testing.assert_close(probs_of(predictor, x), predictor(x)[0].sigmoid())
    softmax = make_predictor(SigmoidFastRCNNOutputLayers)
    torch.testing.assert_close(probs_of(softmax, x), softmax(x)[0].softmax(1))


def test_predictors_share_no_weights():
    first, second = (make_sigmoid(norm="none", **FEDERATED) for _ in range(2))
    state = {**first.state_dict(), "fed_loss_cls_weights": torch.full((C,), 9.0)}
    first.load_state_dict(state)
    assert torch.equal(second.fed_loss_cls_weights, WEIGHTS()) and WEIGHTS()[0] == 5


def test_predictors_of_one_function_share_no_weights():
    weights = torch.arange(1.0, C + 1)
    options = {**FEDERATED, "get_fed_loss_cls_weights": lambda: weights}
    predictor = SigmoidFastRCNNOutputLayers(
        ShapeSpec(channels=D),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        num_classes=C,
        use_sigmoid_ce=True,
        **options,
    )
    predictor.fed_loss_cls_weights.zero_()
    assert weights.all()


def test_bad_federated_options():
    cls = SigmoidFastRCNNOutputLayers
    if HAS_SIGMOIDS:
        assert BoxPredictor is FastRCNNOutputLayers
    with pytest.raises(ValueError, match="needs use_sigmoid_ce=True"):
        make_predictor(cls, **FEDERATED)
    with pytest.raises(ValueError, match="2 weights for 5 classes"):
        options = {**FEDERATED, "get_fed_loss_cls_weights": FixedWeights([1, 2])}
        make_predictor(cls, use_sigmoid_ce=True, **options)
    with pytest.raises(ValueError, match="'sigmoid_uncounted' has no class_image_count"):
        class_weights("sigmoid_uncounted", 0.5)
    counts = [{"id": 2, "image_count": 9}, {"id": 1, "image_count": 4}]
    MetadataCatalog.get("sigmoid_counts").class_image_count = counts
    assert class_weights(("sigmoid_counts",), 0.5).tolist() == [2, 3]


@pytest.mark.parametrize("gradients", [True, False])
def test_probabilities_in_closed_form(gradients):
    alpha = 0.4
    predictor = with_mean(make_sigmoid(norm="none", num_heads=1, alpha=alpha))
    x, weight = torch.rand(6, D), predictor.cls_score.weight.detach()
    d = predictor.feature_mean.mean / predictor.feature_mean.mean.norm()
    with torch.set_grad_enabled(gradients):
        predictions = predictor(x)
        z = predictions[0].detach().clone()
        first, second = predictor.predict_probs(predictions, make_proposals([0] * 4, [0] * 2))
    assert torch.equal(predictions[0], z)
    expected = (z - alpha * (x @ d)[:, None] * (weight @ d)).sigmoid()
    expected[:, -1] = z[:, -1].sigmoid()  # no class: as upstream has it
    torch.testing.assert_close(torch.cat([first, second]), expected)

    pull = (weight @ d)[:-1]
    for region, class_ in ((0.4, 0.0), (0.0, 0.4), (0.7, 0.2), (0.4, 0.4)):
        predictor.alpha, predictor.alpha_region = class_, region
        term = region * pull.mean() + class_ * (pull - pull.mean())
        expected[:, :-1] = (z[:, :-1] - (x @ d)[:, None] * term).sigmoid()
        torch.testing.assert_close(probs_of(predictor, x), expected)


@pytest.mark.parametrize("norm", ["none", "cosine", "capsule", "deconfound"])
def test_tde_of_every_normalization(norm):
    predictor = with_mean(make_sigmoid(norm=norm, alpha=0.7))
    x = torch.rand(4, D)
    mean, classifier = predictor.feature_mean.mean, predictor.cls_score
    t = tde_logits(x, classifier, mean, 0.7)
    torch.testing.assert_close(probs_of(predictor, x)[:, :-1], t.sigmoid()[:, :-1])
    # The bias is no part of what is removed.
    with torch.no_grad():
        classifier.bias.add_(1)
    torch.testing.assert_close(probs_of(predictor, x)[:, :-1], (t + 1).sigmoid()[:, :-1])


def test_equal_strengths_are_the_one_alpha():
    one = with_mean(make_sigmoid(alpha=0.6))
    two = with_mean(make_sigmoid(alpha=0.6, alpha_region=0.6))
    as_alpha = make_sigmoid(alpha_region=-1.0)
    assert as_alpha.alpha_region is None and as_alpha.strengths == (1.5, 1.5)
    x = torch.rand(4, D)
    assert torch.equal(probs_of(one, x), probs_of(two, x))


def test_keep_sum_undoes_what_all_classes_share():
    predictor = with_mean(make_sigmoid(alpha=1.0, posthoc=KEPT))
    x = torch.rand(5, D)
    factual, kept = predictor(x)[0].sigmoid(), probs_of(predictor, x)
    torch.testing.assert_close(kept[:, :-1].sum(1), factual[:, :-1].sum(1))
    assert not torch.allclose(kept, factual, atol=1e-3)
    predictor.alpha_region = 7.0
    torch.testing.assert_close(probs_of(predictor, x), kept)
    predictor.alpha = 0.0
    torch.testing.assert_close(probs_of(predictor, x), factual)


@pytest.mark.parametrize("options", [{}, dict(posthoc=KEPT), dict(alpha_region=0.3)])
def test_without_mean_or_strength_probabilities_are_factual(options):
    for predictor in (
        make_sigmoid(norm="none", **options),
        with_mean(make_sigmoid(norm="none", **{**options, "alpha": 0, "alpha_region": None})),
    ):
        x = torch.rand(5, D)
        upstream = make_predictor(BoxPredictor, use_sigmoid_ce=True)
        upstream.load_state_dict(predictor.state_dict(), strict=False)
        assert torch.equal(probs_of(predictor, x), probs_of(upstream, x))


@pytest.mark.parametrize("options", [{}, dict(posthoc=KEPT), dict(norm="none", alpha_region=0.1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, options):
    predictor = with_mean(make_sigmoid(alpha=0.4, **FEDERATED, **options))
    x, proposals = torch.rand(4, D).to(dtype).float(), make_proposals([0, 1, C, 2])
    expected = probs_of(predictor, x)
    with torch.autocast("cpu", dtype=dtype), EventStorage():
        predictions = predictor(x.to(dtype))
        (probs,) = predictor.predict_probs(predictions, proposals)
        losses = predictor.losses(predictions, proposals)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert predictions[0].dtype == probs.dtype == torch.float32
    torch.testing.assert_close(probs, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("labels", [([],), ([], []), ([C, C], [C])])
def test_without_foreground_or_regions(labels):
    predictor = with_mean(make_sigmoid(posthoc=KEPT, **FEDERATED))
    before = predictor.feature_mean.mean.clone()
    x = torch.rand(sum(map(len, labels)), D, requires_grad=True)
    with EventStorage():
        losses = predictor.losses(predictor(x), make_proposals(*labels))
    assert torch.isfinite(losses["loss_cls"]) and torch.equal(predictor.feature_mean.mean, before)
    assert (losses["loss_cls"] > 0) == (len(x) > 0)
    if len(x):
        losses["loss_cls"].backward()
        assert x.grad.isfinite().all() and x.grad.any()
    instances, _ = predictor.inference(predictor(x.detach()), make_proposals(*labels))
    assert len(instances) == len(labels) and sum(map(len, instances)) <= len(x) * C


@pytest.mark.parametrize("norm", ["cosine", "capsule", "deconfound"])
def test_cosine_classifiers_start_at_a_prior(norm):
    predictor = make_predictor(use_sigmoid_ce=True, norm=norm, alpha=0)
    x = torch.randn(200, D)
    torch.testing.assert_close(predictor.cls_score.bias.sigmoid(), torch.full((C + 1,), 0.01))
    assert predictor(x)[0].mean().sigmoid().item() == pytest.approx(0.01, rel=0.5)
    assert predictor.cls_score.bias.requires_grad and "with a bias" in str(predictor)
    # The linear one starts as upstream's, and a softmax of cosines has no bias.
    assert not make_predictor(use_sigmoid_ce=True, norm="none").cls_score.bias.any()
    assert make_predictor(norm=norm).cls_score.bias is None


def test_compiles_as_one_graph():
    predictor = with_mean(make_sigmoid(alpha=0.4, alpha_region=0.2)).eval()
    x, proposals = torch.rand(5, D), make_proposals([0, 1, 2], [3, 4])
    with torch.no_grad():
        expected = predictor.predict_probs(predictor(x), proposals)
        compiled = torch.compile(predictor.predict_probs, fullgraph=True, backend="eager")
        for a, b in zip(compiled(predictor(x), proposals), expected):
            torch.testing.assert_close(a, b)


def test_the_default_alpha_is_said_to_be_a_softmaxs(caplog):
    probs_of(with_mean(make_sigmoid()), torch.rand(2, D))
    assert "which nobody chose" in caplog.text and "sigmoids need far less" in caplog.text
