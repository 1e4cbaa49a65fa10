"""Losses for long tails; numbers of the authors' own code are the oracle (tests/golden)."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from lvis_tde import TDEFastRCNNOutputLayers
from lvis_tde.calibration.explain import explain
from lvis_tde.modeling.box_loss_modules import BOX_LOSSES, EqualizationLossV2, SeesawLoss
from lvis_tde.modeling.box_losses import balanced_softmax_loss, joint_logits, seesaw_loss
from lvis_tde.posthoc import Settings

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "box_losses_reference.npz")
COUNTS = torch.from_numpy(GOLDEN["counts"])
C, D = len(COUNTS), 16
LOSSES = BOX_LOSSES[1:]


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def steps():
    yield from zip(golden("logits"), golden("labels"))


def make(loss, **options):
    torch.manual_seed(0)
    options.setdefault("norm", "none")
    options.setdefault("num_heads", 1 if options["norm"] == "none" else 2)
    predictor = TDEFastRCNNOutputLayers(
        ShapeSpec(channels=D),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=C,
        use_sigmoid_ce=loss == "eqlv2",
        loss=loss,
        get_class_counts=lambda: COUNTS,
        **{"alpha": 0.0, **options},
    )
    torch.nn.init.normal_(predictor.cls_score.weight)
    return predictor


def proposals(labels):
    boxes = Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(len(labels), 1))
    one = Instances((10, 10), proposal_boxes=boxes, gt_boxes=boxes, gt_classes=labels)
    return [one]


@pytest.mark.parametrize("kind, name", [(SeesawLoss, "seesaw"), (EqualizationLossV2, "eqlv2")])
def test_as_their_authors_over_several_steps(kind, name):
    loss = kind(C).double()
    for i, (logits, labels) in enumerate(steps()):
        logits.requires_grad_()
        value = loss(logits, labels)
        value.backward()
        state = loss.samples if name == "seesaw" else loss.gradients
        seen = golden("seesaw_samples" if name == "seesaw" else "eqlv2_gradients")[i]
        torch.testing.assert_close(state, seen, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(value, golden(f"{name}_loss")[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits.grad, golden(f"{name}_grad")[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["seesaw", "eqlv2"])
def test_scores_are_those_of_the_authors(name):
    predictor = make(name)
    for (logits, labels), scores in zip(steps(), golden(f"{name}_scores")):
        predictions = logits, logits.new_zeros(len(logits), 4), logits.new_zeros(len(logits), D)
        (probs,) = predictor.predict_probs(predictions, proposals(labels))
        shown = slice(None) if name == "seesaw" else slice(-1)
        torch.testing.assert_close(probs[:, shown], scores[:, shown], rtol=1e-6, atol=1e-9)
        assert torch.equal(predictions[0], logits)


def test_balanced_softmax_is_that_of_its_authors_beside_a_background():
    far = -1e4  # a background that is never meant
    for i, (logits, labels) in enumerate(steps()):
        names = torch.where(labels < C, labels, torch.arange(len(labels)) % C)
        classes = logits[:, :-1].clone().requires_grad_()
        with_background = torch.cat([classes, torch.full_like(classes[:, :1], far)], dim=1)
        value = balanced_softmax_loss(with_background, names, COUNTS)
        value.backward()
        torch.testing.assert_close(value, golden("balanced_loss")[i])
        torch.testing.assert_close(classes.grad, golden("balanced_grad")[i])
        # Equal classes: the plain cross entropy; the background's probability in any case.
        plain = F.cross_entropy(logits, labels)
        even = torch.full_like(COUNTS, 5)
        torch.testing.assert_close(balanced_softmax_loss(logits, labels, even), plain)
        background = torch.full_like(labels, C)
        torch.testing.assert_close(
            balanced_softmax_loss(logits, background, COUNTS), F.cross_entropy(logits, background)
        )


def test_neutral_seesaw_is_two_cross_entropies():
    for logits, labels in steps():
        found = seesaw_loss(logits, labels, COUNTS, p=0.0, q=0.0)
        foreground = labels < C
        named = F.cross_entropy(logits[foreground, :-1], labels[foreground], reduction="sum")
        objects = F.binary_cross_entropy(logits[:, -1].sigmoid(), (~foreground).double())
        torch.testing.assert_close(found, named / len(labels) + objects)


def test_joint_logits_of_large_logits():
    logits = torch.tensor([[900.0, -900.0, 800.0], [0.0, 0.0, -800.0]])
    probs = joint_logits(logits).softmax(-1)
    torch.testing.assert_close(probs, torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]))


def train(predictor, features, labels):
    with EventStorage():
        losses = predictor.losses(predictor(features), proposals(labels))
    sum(losses.values()).backward()
    return losses["loss_cls"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["none", "cosine", "capsule", "deconfound"])
def test_every_classifier_trains_with_every_loss(loss, norm):
    predictor = make(loss, norm=norm)
    optimizer = torch.optim.SGD(predictor.parameters(), lr=0.1)
    features, labels = torch.randn(40, D), torch.arange(40) % (C + 1)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        values.append(train(predictor, features, labels).item())
        optimizer.step()
    assert np.isfinite(values).all() and min(values[5:]) < values[1]
    for nothing in (torch.randn(0, D), torch.randn(5, D)):
        predictor.zero_grad()
        background = torch.full((len(nothing),), C)
        assert torch.isfinite(train(predictor, nothing, background))
        assert all(p.grad is not None and p.grad.isfinite().all() for p in predictor.parameters())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_family_works_on_top(loss):
    predictor = make(loss)
    torch.nn.init.uniform_(predictor.feature_mean.mean)
    features = torch.randn(30, D)
    images = COUNTS
    ones = torch.ones(C)
    predictor.statistics.set_annotations(
        images=images, instances=images, dimension=ones, num_images=500
    )

    def probs(settings):
        predictor.posthoc = settings
        return predictor.predict_probs(predictor(features), proposals(torch.zeros(30)))[0]

    plain = probs(Settings())
    for settings in (Settings(region=0.5, class_=0.5), Settings(logit_adjustment=1.0)):
        changed = probs(settings)
        assert changed.isfinite().all() and not torch.allclose(changed[:, :-1], plain[:, :-1])
        if loss != "eqlv2":
            torch.testing.assert_close(changed.sum(1), torch.ones(30))
            torch.testing.assert_close(changed[:, -1], plain[:, -1])  # exempt
        parts = explain(predictor, features)
        torch.testing.assert_close(parts.probs.float(), changed, rtol=1e-4, atol=1e-5)
    # Logit adjustment moves the ranking within the classes alone.
    adjusted = probs(Settings(logit_adjustment=1.0, keep_sum=""))[:, :-1]
    if loss != "eqlv2":
        share = plain[:, :-1] / COUNTS
        torch.testing.assert_close(
            adjusted / adjusted.sum(1, keepdim=True), share / share.sum(1, keepdim=True)
        )


def test_accuracies_of_the_seesaw_loss_are_those_of_its_scores():
    predictor = make("seesaw")
    features, labels = torch.randn(200, D), torch.arange(200) % (C + 1)
    with EventStorage() as storage:
        predictor.losses(predictor(features), proposals(labels))
    guess = predictor.predict_probs(predictor(features), proposals(labels))[0].argmax(1)
    shown = labels < C
    right, missed = (guess == labels).float(), (guess[shown] == C).float().mean().item()
    told = {name: value for name, (value, _) in storage.latest().items()}
    assert told["fast_rcnn/cls_accuracy"] == pytest.approx(right.mean().item())
    assert told["fast_rcnn/fg_cls_accuracy"] == pytest.approx(right[shown].mean().item())
    assert told["fast_rcnn/false_negative"] == pytest.approx(missed) and 0 < missed < 1


def test_state_is_saved_and_moves_in_training_alone():
    for loss in ("seesaw", "eqlv2"):
        predictor, other = make(loss), make(loss)
        train(predictor, torch.randn(9, D), torch.arange(9) % (C + 1))
        state = {k: v.clone() for k, v in predictor.state_dict().items() if "box_loss" in k}
        assert len(state) == 1 and all(v.any() for v in state.values())
        with torch.no_grad(), EventStorage():
            predictor.losses(predictor(torch.randn(9, D)), proposals(torch.arange(9) % C))
        other.load_state_dict(predictor.state_dict())
        for name, value in state.items():
            assert torch.equal(other.state_dict()[name], value)
        assert next(other.half().box_loss.buffers()).dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("loss", BOX_LOSSES)
def test_a_predictor_of_a_config_is_copied_and_pickled(loss, tiny_cfg):
    name = "box_losses_counts"
    records = [{"id": i, "image_count": int(n)} for i, n in enumerate(COUNTS)]
    MetadataCatalog.get(name).set(class_image_count=records)
    options = ["MODEL.TDE.LOSS", loss, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", loss == "eqlv2"]
    options += ["DATASETS.TRAIN", (name,), "MODEL.ROI_HEADS.NUM_CLASSES", C]
    predictor = TDEFastRCNNOutputLayers(tiny_cfg("deconfound", *options), ShapeSpec(channels=D))
    features, labels = torch.randn(9, D), torch.arange(9) % (C + 1)
    copies = [copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))]
    expected = train(predictor, features, labels)
    for one in copies:
        assert torch.equal(train(one, features, labels), expected)
    if loss == "balanced_softmax":
        assert torch.equal(copies[1].box_loss.counts, COUNTS.float())


def test_a_checkpoint_of_another_loss_is_told(caplog):
    state = make("seesaw").state_dict()
    make("balanced_softmax").load_state_dict(state, strict=False)
    assert "trained with the loss seesaw" in caplog.text
    caplog.clear()
    make("cross_entropy").load_state_dict(make("balanced_softmax").state_dict(), strict=False)
    assert "trained with the loss" not in caplog.text


@pytest.mark.parametrize("norm", ["none", "cosine"])
def test_sigmoids_of_eqlv2_start_where_its_authors_have_them(norm):
    probs = make("eqlv2", norm=norm).cls_score.bias.sigmoid()
    torch.testing.assert_close(probs, torch.full((C + 1,), 0.001))


def test_refused():
    with pytest.raises(ValueError, match="'ldam'.*cross_entropy, balanced_softmax, seesaw, eqlv2"):
        make("ldam")
    with pytest.raises(ValueError, match="seesaw_p=-1"):
        make("seesaw", seesaw_p=-1)
    for key, authors in (("gamma", "12"), ("mu", "0.8"), ("alpha", "4")):
        for value in (float("nan"), float("inf"), -float("inf")):
            words = rf"eqlv2_{key}={value} \(MODEL.TDE.EQLV2_{key.upper()}\).*have {authors}\."
            with pytest.raises(ValueError, match=words):
                make("eqlv2", **{f"eqlv2_{key}": value})
    shape, transform = ShapeSpec(channels=D), Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    for loss, sigmoid in (("eqlv2", False), ("seesaw", True), ("balanced_softmax", True)):
        with pytest.raises(ValueError, match=f"{loss}.*USE_SIGMOID_CE"):
            TDEFastRCNNOutputLayers(
                shape,
                box2box_transform=transform,
                num_classes=C,
                use_sigmoid_ce=sigmoid,
                loss=loss,
            )
    for counts, words in ((None, "needs the training images"), (lambda: COUNTS[1:], "6 counts")):
        predictor = make("balanced_softmax")
        predictor.box_loss.get_class_counts = counts
        with pytest.raises(ValueError, match=words):
            train(predictor, torch.randn(9, D), torch.arange(9) % C)
    for value in (float("nan"), float("inf"), -1.0):
        counts = COUNTS.double().clone()
        counts[2] = value
        predictor.box_loss.get_class_counts = lambda counts=counts: counts
        with pytest.raises(ValueError, match=f"{value} .*class 2: .*--train-data"):
            train(predictor, torch.randn(9, D), torch.arange(9) % C)
        assert not predictor.box_loss.counts.any()
