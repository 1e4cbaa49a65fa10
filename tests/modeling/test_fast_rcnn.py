"""The box predictor alone, with explicit arguments; upstream Detectron2 is the oracle."""

import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from predictor_util import C, D, make_predictor, make_proposals, with_mean

from lvis_tde import exempt_background, tde_logits


def test_forward_is_factual_in_both_modes():
    predictor, x = with_mean(make_predictor()), torch.rand(4, D)
    scores, deltas, features = predictor.train()(x)
    assert scores.shape == (4, C + 1) and deltas.shape == (4, 4 * C) and features is x
    torch.testing.assert_close(predictor.eval()(x)[0], scores)
    torch.testing.assert_close(predictor.cls_score(x), scores)


def test_pooled_features_are_flattened():
    assert make_predictor()(torch.rand(4, D, 1, 1))[2].shape == (4, D)


def test_losses_equal_upstream_on_the_same_logits():
    predictor, upstream = make_predictor(), make_predictor(FastRCNNOutputLayers)
    proposals = make_proposals([0, 2, C], [C, 4])
    predictions = predictor(torch.rand(5, D))
    with EventStorage():
        ours = predictor.losses(predictions, proposals)
        theirs = upstream.losses(predictions[:2], proposals)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_the_mean_is_that_of_foreground_rois_class_0_included():
    predictor = make_predictor(mean_momentum=0.75)
    x = torch.rand(5, D)
    with EventStorage() as storage:
        predictor.losses(predictor(x), make_proposals([0, C, 4], [C, 0]))
        latest = {key: value for key, (value, _) in storage.latest().items()}
    mean = 0.25 * x[[0, 2, 4]].mean(0)
    torch.testing.assert_close(predictor.feature_mean.mean, mean)
    assert latest["tde/num_fg"] == 3
    assert latest["tde/mean_norm"] == pytest.approx(mean.norm().item())
    halves = x[[0, 2, 4]].unflatten(1, (2, -1))
    cosine = torch.cosine_similarity(halves, mean.unflatten(0, (2, -1))[None], dim=2).mean()
    assert latest["tde/fg_cosine_to_mean"] == pytest.approx(cosine.item(), abs=1e-5)


def test_a_validation_loss_does_not_move_the_mean():
    predictor = make_predictor()
    with EventStorage(), torch.no_grad():
        predictor.losses(predictor(torch.rand(2, D)), make_proposals([0, 1]))
    assert (predictor.feature_mean.mean == 0).all()


def test_double_precision():
    predictor = make_predictor(mean_momentum=0.9).double()
    proposals = make_proposals([0, C])
    for instances in proposals:
        for name in ("proposal_boxes", "gt_boxes"):
            boxes = instances.get(name)
            boxes.tensor = boxes.tensor.double()
    x = torch.rand(2, D, dtype=torch.double)
    with EventStorage():
        losses = predictor.losses(predictor(x), proposals)
    assert losses["loss_cls"].dtype == torch.double
    torch.testing.assert_close(predictor.feature_mean.mean, 0.1 * x[0])


@pytest.mark.parametrize("labels", [([],), ([], []), ([C, C], [C])])
def test_no_foreground(labels):
    predictor = make_predictor()
    x = torch.rand(sum(map(len, labels)), D, requires_grad=True)
    with EventStorage() as storage:
        losses = predictor.losses(predictor(x), make_proposals(*labels))
        assert not any(key.startswith("tde/") for key in storage.latest())
    assert (predictor.feature_mean.mean == 0).all()
    if len(x):
        sum(losses.values()).backward()
        assert torch.isfinite(x.grad).all() and torch.isfinite(losses["loss_cls"])


def test_gradients_reach_features_and_weights():
    predictor, x = make_predictor(), torch.rand(3, D, requires_grad=True)
    with EventStorage():
        losses = predictor.losses(predictor(x), make_proposals([0, 3, C]))
    losses["loss_cls"].backward()
    assert x.grad.abs().sum() > 0 and predictor.cls_score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("background_exempt", [True, False])
def test_predict_probs(background_exempt, gradients):
    predictor = with_mean(make_predictor(background_exempt=background_exempt))
    x, proposals = torch.rand(5, D), make_proposals([0, 1, 2], [3, 4])
    with torch.set_grad_enabled(gradients):
        predictions = predictor(x)
        before = predictions[0].clone()
        probs = predictor.predict_probs(predictions, proposals)
        assert torch.equal(predictions[0], before)
    assert [len(p) for p in probs] == [3, 2]
    t = tde_logits(x, predictor.cls_score, predictor.feature_mean.mean, predictor.alpha)
    expected = exempt_background(predictor(x)[0], t) if background_exempt else t.softmax(1)
    probs = torch.cat(probs)
    torch.testing.assert_close(probs, expected)
    torch.testing.assert_close(probs.sum(1), torch.ones(5))
    assert (probs >= 0).all() and (probs <= 1).all()


def test_alpha_0_is_the_softmax_of_the_factual_logits():
    predictor = with_mean(make_predictor(alpha=0))
    x = torch.rand(3, D)
    (probs,) = predictor.predict_probs(predictor(x), make_proposals([0, 1, 2]))
    torch.testing.assert_close(probs, predictor(x)[0].softmax(1))


def test_zero_mean_means_no_tde_and_one_warning(caplog):
    predictor = make_predictor()
    x, proposals = torch.rand(2, D), make_proposals([0, 1])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            (probs,) = predictor.predict_probs(predictor(x), proposals)
    torch.testing.assert_close(probs, predictor(x)[0].softmax(1))
    assert sum("mean is zero" in record.getMessage() for record in caplog.records) == 1


def test_inference_without_proposals():
    predictor = with_mean(make_predictor())
    instances, kept = predictor.inference(predictor(torch.rand(0, D)), make_proposals([], []))
    assert [len(i) for i in instances] == [0, 0] and [len(k) for k in kept] == [0, 0]


def test_inference_with_alpha_0_equals_upstream():
    predictor = with_mean(make_predictor(alpha=0, test_score_thresh=0.01))
    upstream = make_predictor(FastRCNNOutputLayers, test_score_thresh=0.01)
    predictions, proposals = predictor(torch.rand(6, D)), make_proposals([0] * 4, [0] * 2)
    ours, kept = predictor.inference(predictions, proposals)
    theirs, expected = upstream.inference(predictions[:2], proposals)
    for a, b, i, j in zip(ours, theirs, kept, expected):
        assert torch.equal(i, j) and torch.equal(a.pred_classes, b.pred_classes)
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    predictor = with_mean(make_predictor())
    x, proposals = (torch.rand(4, D) * 100).to(dtype).float(), make_proposals([0, 1, C, 2])
    (expected,) = predictor.predict_probs(predictor(x), proposals)
    with torch.autocast("cpu", dtype=dtype), EventStorage():
        predictions = predictor(x.to(dtype))
        (probs,) = predictor.predict_probs(predictions, proposals)
        losses = predictor.losses(predictions, proposals)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert predictions[0].dtype == probs.dtype == torch.float32
    assert predictor.feature_mean.mean.dtype == torch.float32
    torch.testing.assert_close(probs, expected, rtol=0, atol=1e-6)


def test_state_dict_round_trip():
    first, second = with_mean(make_predictor()), make_predictor()
    for parameter in second.parameters():
        torch.nn.init.normal_(parameter)
    assert {"cls_score.weight", "feature_mean.mean"} <= set(first.state_dict())
    second.load_state_dict(first.state_dict())
    x, proposals = torch.rand(3, D), make_proposals([0, 1, 2])
    for a, b in zip(
        first.predict_probs(first(x), proposals), second.predict_probs(second(x), proposals)
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(alpha=-1.0), "alpha=-1.0"),
        (dict(alpha=float("inf")), "alpha=inf"),
        (dict(num_heads=3), "num_heads=3"),
        (dict(alpha_region=0.5), "alpha_region=0.5 needs sigmoids"),
        (dict(posthoc={"beta": 1.0}), "posthoc has beta, which is none of tau_norm"),
        (dict(posthoc={"norcal": -1.0}), "norcal=-1.0 must be finite"),
        (dict(posthoc={"keep_sum": True}), "keep_sum=True must be one of"),
        (dict(use_sigmoid_ce=True, alpha_region=-2.0), "alpha_region=-2.0 must be"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make_predictor(**options)


def test_a_calibrated_alpha_is_part_of_the_checkpoint(caplog):
    first, second = make_predictor(alpha=2.0), make_predictor()
    first.calibrated_alpha = 2.0
    second.load_state_dict(first.state_dict())
    assert second.calibrated_alpha == 2.0 and second.alpha == 1.5
    assert "chosen on held-out data, is 2; this model predicts with 1.5" in caplog.text
    caplog.clear()
    make_predictor(alpha=2.0).load_state_dict(first.state_dict())
    second.load_state_dict(make_predictor().state_dict())
    assert second.calibrated_alpha is None and not caplog.text


def test_a_checkpoint_through_detectron2(tmp_path, caplog):
    first, second = with_mean(make_predictor()), make_predictor()
    first.calibrated_alpha = 1.5
    DetectionCheckpointer(first, str(tmp_path)).save("model")
    DetectionCheckpointer(second).load(str(tmp_path / "model.pth"))
    assert second.calibrated_alpha == 1.5
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert torch.equal(second.feature_mean.mean, first.feature_mean.mean)


@pytest.mark.parametrize("alpha, calibrated, told", [(1.5, None, 1), (1.5, 1.5, 0), (2.0, None, 0)])
def test_the_default_alpha_that_nobody_chose_is_told_once(alpha, calibrated, told, caplog):
    predictor = with_mean(make_predictor(alpha=alpha))
    predictor.calibrated_alpha = calibrated
    for _ in range(3):
        predictor.predict_probs(predictor(torch.rand(2, D)), make_proposals([0, 1]))
    assert caplog.text.count("which nobody chose") == told


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_alpha_is_checked_whenever_it_is_set(alpha):
    predictor = make_predictor()
    with pytest.raises(ValueError, match=f"alpha={alpha}"):
        predictor.alpha = alpha
    assert predictor.alpha == 1.5


@pytest.mark.parametrize("background_exempt", [True, False])
def test_compiles_as_one_graph(background_exempt):
    predictor = with_mean(make_predictor(background_exempt=background_exempt)).eval()
    x, proposals = torch.rand(5, D), make_proposals([0, 1, 2], [3, 4])
    with torch.no_grad():
        expected = predictor.predict_probs(predictor(x), proposals)
        compiled = torch.compile(predictor.predict_probs, fullgraph=True, backend="eager")
        for a, b in zip(compiled(predictor(x), proposals), expected):
            torch.testing.assert_close(a, b)


def test_meta_device():
    with torch.device("meta"):
        predictor = make_predictor()
    (probs,) = predictor.predict_probs(
        predictor(torch.rand(3, D, device="meta")), make_proposals([0, 1, 2])
    )
    assert probs.shape == (3, C + 1) and probs.is_meta
    predictor.to_empty(device="cpu").load_state_dict(with_mean(make_predictor()).state_dict())
    x = torch.rand(2, D)
    (probs,) = predictor.predict_probs(predictor(x), make_proposals([0, 1]))
    torch.testing.assert_close(probs.sum(1), torch.ones(2))


def test_the_removed_option_is_told(caplog):
    predictor = make_predictor(mean_momentum_lr_scaled=True, mean_momentum=0.9)
    assert predictor.feature_mean.momentum == 0.9
    assert "mean_momentum_lr_scaled was removed" in caplog.text
