"""What is kept in eval mode never outlives what it was made from."""

import copy
import pickle

import pytest
import torch

from lvis_tde import CosineMultiHeadClassifier, TDEFastRCNNOutputLayers
from lvis_tde.layers.derived import DerivedTensors


class NoBoxes:
    weights = (1.0, 1.0, 1.0, 1.0)


def make_predictor(seed=0):
    torch.manual_seed(seed)
    predictor = TDEFastRCNNOutputLayers(16, box2box_transform=NoBoxes(), num_classes=5)
    predictor.feature_mean.mean.copy_(torch.rand(16))
    return predictor.eval()


def probs(predictor, x):
    with torch.no_grad():
        return predictor.predict_probs(predictor(x), [x])[0]


def train_and_back(predictor):
    predictor.cls_score.weight.data += 1  # unnoticed by itself
    predictor.train()
    predictor.eval()


def optimizer_step(predictor, **options):
    optimizer = torch.optim.SGD([predictor.cls_score.weight], lr=10.0, **options)
    predictor(torch.rand(3, 16))[0].square().sum().backward()
    optimizer.step()


def replace_parameter(predictor):
    predictor.cls_score.weight = torch.nn.Parameter(torch.rand(6, 16))


CHANGES = {
    "train()": train_and_back,
    "load_state_dict": lambda p: p.load_state_dict(make_predictor(seed=1).state_dict()),
    "load_state_dict, assign": lambda p: p.load_state_dict(
        make_predictor(seed=1).state_dict(), assign=True
    ),
    "alpha": lambda p: setattr(p, "alpha", 0.5),
    "mean": lambda p: p.feature_mean.update(torch.rand(4, 16), torch.ones(4, dtype=torch.bool)),
    "mean, in place": lambda p: p.feature_mean.mean[:8].zero_(),
    "tau": lambda p: setattr(p.cls_score, "tau", 3.0),
    "gamma": lambda p: setattr(p.cls_score, "gamma", 3.0),
    "optimizer": optimizer_step,
    "fused optimizer": lambda p: optimizer_step(p, fused=True),
    "other parameter": replace_parameter,
    "double": lambda p: p.double(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_noticed(name):
    predictor, x = make_predictor(), torch.rand(4, 16)
    before = probs(predictor, x)
    assert torch.equal(probs(predictor, x), before)
    try:
        CHANGES[name](predictor)
    except NotImplementedError:  # before torch 2.4
        pytest.skip("this torch has no fused optimizer on the CPU")
    x = x.to(predictor.bbox_pred.weight.dtype)
    after = probs(predictor, x)
    fresh = make_predictor()
    fresh.alpha, fresh.cls_score.tau = predictor.alpha, predictor.cls_score.tau
    fresh.cls_score.gamma = predictor.cls_score.gamma
    fresh.to(x.dtype).load_state_dict(predictor.state_dict())
    torch.testing.assert_close(after, probs(fresh, x), rtol=0, atol=0)
    if name != "double":
        assert not torch.allclose(after, before, atol=1e-4)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_start_afresh(duplicate):
    classifier, x = CosineMultiHeadClassifier(16, 5).eval(), torch.rand(4, 16)
    with torch.no_grad():
        before = classifier(x)
        other = duplicate(classifier)
        other.weight.data.neg_()
        torch.testing.assert_close(other(x), -before)
        torch.testing.assert_close(classifier(x), before)


def test_gradients_flow_in_eval_mode():
    classifier, x = CosineMultiHeadClassifier(16, 5).eval(), torch.rand(4, 16)
    with torch.no_grad():
        expected = classifier(x)
    got = classifier(x)
    torch.testing.assert_close(got.detach(), expected)
    got.sum().backward()
    assert classifier.weight.grad.abs().sum() > 0


def test_inference_mode_and_no_grad_mix():
    with torch.inference_mode():
        made_inside = CosineMultiHeadClassifier(16, 5).eval()
    for classifier in (CosineMultiHeadClassifier(16, 5).eval(), made_inside):
        x = torch.rand(4, 16)
        with torch.inference_mode():
            first = classifier(x)
        with torch.no_grad():
            second = classifier(x)
        torch.testing.assert_close(first, second)


def test_computes_once_for_equal_sources_and_settings():
    derived, source, calls = DerivedTensors(), torch.rand(3), []

    def compute():
        calls.append(1)
        return source * 2

    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(derived.get("double", compute, [source], (1,)), source * 2)
        assert len(calls) == 1
        derived.get("double", compute, [source], (2,))
        source.add_(1)
        assert torch.equal(derived.get("double", compute, [source], (2,)), source * 2)
        assert len(calls) == 3
        derived.clear()
        derived.get("double", compute, [source], (2,))
    derived.get("double", compute, [source], (2,))  # a gradient may be asked for
    assert len(calls) == 5
