"""The parts of a prediction: they add up, and they are those of the predictor's own output."""

import pytest
import torch
from heads_util import TDE_NAMES, build, predictors, training_image, zoo_config
from predictor_util import C, D, make_predictor, make_proposals, with_mean

from lvis_tde import exempt_background, tde_logits
from lvis_tde.calibration.explain import explain, explain_detections


@pytest.mark.parametrize("norm", ["none", "cosine", "capsule", "deconfound"])
@pytest.mark.parametrize("background_exempt", [True, False])
def test_effects_add_up_to_the_prediction(norm, background_exempt):
    options = dict(norm=norm, background_exempt=background_exempt, alpha=2.0)
    predictor = with_mean(make_predictor(**options))
    x = torch.rand(6, D) * 3
    parts = explain(predictor, x)
    assert (parts.total - parts.indirect - parts.direct).abs().max() < 1e-6
    classifier, mean = predictor.cls_score, predictor.feature_mean.mean
    torch.testing.assert_close(parts.total.float(), classifier(x))
    torch.testing.assert_close(parts.direct.float(), tde_logits(x, classifier, mean, 2.0))
    (probs,) = predictor.predict_probs(predictor(x), make_proposals([0] * 6))
    torch.testing.assert_close(parts.probs.float(), probs)
    torch.testing.assert_close(parts.factual_probs, parts.total.softmax(1))
    # What exemption did: it moved probability between background and foreground, and no more.
    torch.testing.assert_close(parts.exemption.sum(1), torch.zeros(6).double())
    torch.testing.assert_close(parts.direct_probs + parts.exemption, parts.probs)
    if background_exempt:
        assert torch.equal(parts.probs, exempt_background(parts.total, parts.direct))
        torch.testing.assert_close(parts.probs[:, C], parts.factual_probs[:, C])
    else:
        assert not parts.exemption.any()


def test_cosine_per_head():
    predictor = with_mean(make_predictor(norm="none"))
    x, mean = torch.rand(3, D), predictor.feature_mean.mean
    halves = [torch.cosine_similarity(x[:, s], mean[None, s]) for s in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(explain(predictor, x).cosine.float(), torch.stack(halves, dim=1))


def test_without_tde_there_is_no_indirect_effect():
    for predictor, alpha in ((make_predictor(), 1.5), (with_mean(make_predictor()), 0.0)):
        parts = explain(predictor, torch.rand(2, D), alpha)
        assert parts.alpha == 0 and not parts.indirect.any()
        assert torch.equal(parts.probs, parts.factual_probs)


def test_rows():
    parts = explain(with_mean(make_predictor()), torch.rand(4, D))
    some = parts[torch.tensor([2, 0])]
    assert len(some) == 2 and torch.equal(some.direct[1], parts.direct[0])
    assert torch.equal(some.exemption[0], parts.exemption[2])


def test_mistakes():
    with pytest.raises(ValueError, match=rf"\(2, 3\), expected \(R, {D}\)"):
        explain(make_predictor(), torch.rand(2, 3))
    with pytest.raises(ValueError, match="alpha=-1"):
        explain(make_predictor(), torch.rand(2, D), -1)


@pytest.mark.parametrize(
    "name",
    [
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
        "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    ],
)
def test_every_detection_is_explained(name):
    cfg = zoo_config(name)
    cfg.MODEL.ROI_HEADS.NAME = TDE_NAMES[cfg.MODEL.ROI_HEADS.NAME]
    model = build(cfg).eval()
    for predictor in predictors(model):
        predictor.feature_mean.mean.uniform_(0, 1)
    inputs = [training_image(cfg, seed=seed) for seed in range(2)]
    with torch.no_grad():
        expected = model(inputs)
    for (found, parts), output in zip(explain_detections(model, inputs), expected):
        instances = output["instances"]
        assert len(found) == len(parts) == len(instances) > 0
        torch.testing.assert_close(found.scores, instances.scores)
        rows = torch.arange(len(found))
        of_class = parts.probs[rows, found.pred_classes]
        torch.testing.assert_close(of_class.float(), found.scores, rtol=1e-4, atol=1e-6)
        assert (parts.total - parts.indirect - parts.direct).abs().max() < 1e-6
        heads = 2 * len(predictors(model))
        assert parts.cosine.shape == (len(found), heads)
    stronger = explain_detections(model, inputs, alpha=3.0)[0][1]
    assert stronger.alpha == 3 and predictors(model)[0].alpha == 1.5


@pytest.mark.parametrize("background_exempt", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_other_steps_are_named_and_told_apart(alpha, background_exempt):
    options = dict(posthoc={"logit_adjustment": 0.5, "tau_norm": 1.0}, alpha=alpha)
    predictor = with_mean(make_predictor(background_exempt=background_exempt, **options))
    ones = torch.ones(C, dtype=torch.int64)
    predictor.statistics.set_annotations(
        images=ones.cumsum(0), instances=ones, dimension=ones, num_images=9
    )
    x = torch.rand(4, D) * 3
    parts = explain(predictor, x)
    joint = "" if background_exempt else ", joint"
    others = f"tau_norm 1, logit_adjustment 0.5{joint}"
    assert parts.steps == ("alpha 0.8, " if alpha else "") + others
    (probs,) = predictor.predict_probs(predictor(x), make_proposals([0] * 4))
    torch.testing.assert_close(parts.probs.float(), probs)
    t = tde_logits(x, predictor.cls_score, predictor.feature_mean.mean, alpha)
    torch.testing.assert_close(parts.direct.float(), t)
    assert parts.other[:, :-1].any() and not parts.other[:, -1].any()
    torch.testing.assert_close(parts.direct_probs, parts.adjusted.softmax(1))
    assert parts.exemption.any() == background_exempt
    assert explain(predictor, x, 0.0).steps == others
