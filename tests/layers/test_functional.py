"""The formulas against the authors' numbers and against loops over heads and classes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lvis_tde import CosineMultiHeadClassifier, exempt_background, tde_logits
from lvis_tde.layers.functional import NORMS, multi_head_normalize

REFERENCE = np.load(Path(__file__).parent.parent / "golden" / "tde_reference.npz")
NUM_CASES = int(REFERENCE["num_cases"])


def by_hand(x, w, mean, num_heads, tau, gamma, alpha, norm):
    """The table and the sums of the paper, one head, RoI and class at a time."""
    size = len(mean) // num_heads
    scale = 1 if norm == "none" else tau / num_heads
    y = np.zeros((len(x), len(w)))
    y0 = np.zeros_like(y)
    for k in range(num_heads):
        part = slice(k * size, (k + 1) * size)
        d = mean[part] / np.linalg.norm(mean[part])
        for r, row in enumerate(x[:, part]):
            length = np.linalg.norm(row)
            xh = row / {"capsule": 1 + length, "none": 1}.get(norm, length)
            for i, weight in enumerate(w[:, part]):
                length = np.linalg.norm(weight)
                wh = weight / {"deconfound": length + gamma, "none": 1}.get(norm, length)
                y[r, i] += scale * (xh @ wh)
                y0[r, i] += scale * alpha * (xh @ d) * (d @ wh)
    return y, y - y0


def classifier_like(weight, **options):
    classifier = CosineMultiHeadClassifier(weight.shape[1], weight.shape[0], **options)
    classifier = classifier.to(torch.as_tensor(weight).dtype)
    with torch.no_grad():
        classifier.weight.copy_(torch.as_tensor(weight))
    return classifier


@pytest.mark.parametrize("case", range(NUM_CASES))
def test_reference_numbers(case):
    get = lambda name: torch.from_numpy(REFERENCE[f"{case}/{name}"])  # noqa: E731
    classifier = classifier_like(
        get("weight"),
        num_heads=int(get("num_heads")),
        tau=float(get("tau")),
        gamma=float(get("gamma")),
    )
    logits = classifier(get("features"))
    direct = tde_logits(get("features"), classifier, get("feature_mean"), float(get("alpha")))
    exact = dict(rtol=0, atol=1e-10)
    torch.testing.assert_close(logits, get("logits"), **exact)
    torch.testing.assert_close(direct, get("tde_logits"), **exact)
    probs = exempt_background(logits, direct)
    torch.testing.assert_close(probs, get("tde_bg_exempt_probs"), **exact)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_every_normalization_by_hand(norm, num_heads):
    rng = np.random.default_rng(0)
    x, w, mean = rng.normal(size=(5, 12)), rng.normal(size=(4, 12)), rng.normal(size=12)
    options = dict(num_heads=num_heads, tau=9.0, gamma=0.3, norm=norm)
    classifier = classifier_like(torch.from_numpy(w), **options)
    y, t = by_hand(x, w, mean, alpha=1.5, **options)
    x, mean = torch.from_numpy(x), torch.from_numpy(mean)
    torch.testing.assert_close(classifier(x), torch.from_numpy(y), rtol=0, atol=1e-7)
    direct = tde_logits(x, classifier, mean, 1.5)
    torch.testing.assert_close(direct, torch.from_numpy(t), rtol=0, atol=1e-7)


def test_only_the_direction_of_the_mean_counts():
    torch.manual_seed(0)
    classifier = CosineMultiHeadClassifier(8, 5)
    x, mean = torch.randn(3, 8), torch.randn(8)
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(
            tde_logits(x, classifier, mean * scale, 2.0), tde_logits(x, classifier, mean, 2.0)
        )


def test_zero_mean_and_zero_alpha_leave_the_factual_logits():
    classifier = CosineMultiHeadClassifier(8, 5)
    x = torch.randn(3, 8)
    torch.testing.assert_close(tde_logits(x, classifier, torch.zeros(8), 1.5), classifier(x))
    torch.testing.assert_close(tde_logits(x, classifier, torch.randn(8), 0.0), classifier(x))


@pytest.mark.parametrize("norm", NORMS)
def test_zero_features_give_zero_logits_and_finite_gradients(norm):
    classifier = CosineMultiHeadClassifier(8, 5, norm=norm)
    x = torch.zeros(3, 8, requires_grad=True)
    direct = tde_logits(x, classifier, torch.ones(8), 1.5)
    assert (direct == 0).all()
    (direct.sum() + classifier(x).sum()).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(classifier.weight.grad).all()


def test_a_zero_slice_does_not_disturb_the_others():
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0]])
    torch.testing.assert_close(multi_head_normalize(x, 2), torch.tensor([[0.6, 0.8, 0.0, 0.0]]))


@pytest.mark.parametrize("shape", [(0, 8), (1, 8)])
def test_empty_and_single_rows(shape):
    classifier = CosineMultiHeadClassifier(8, 5)
    x = torch.randn(shape)
    probs = exempt_background(classifier(x), tde_logits(x, classifier, torch.ones(8), 1.5))
    assert probs.shape == (shape[0], 5)


def test_background_exemption_in_closed_form():
    # p = (1/2, 1/4, 1/4 background), q = (1/7, 4/7, 2/7): foreground 3/4 is dealt 1 : 4.
    y = torch.tensor([[2.0, 1.0, 1.0]]).log()
    t = torch.tensor([[1.0, 4.0, 2.0]]).log()
    torch.testing.assert_close(exempt_background(y, t), torch.tensor([[0.15, 0.6, 0.25]]))


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_probabilities_stay_probabilities(scale):
    torch.manual_seed(0)
    y, t = torch.randn(50, 1204) * scale, torch.randn(50, 1204) * scale
    probs = exempt_background(y, t)
    assert (probs >= 0).all() and (probs <= 1).all()
    torch.testing.assert_close(probs.sum(1), torch.ones(50))
    torch.testing.assert_close(probs[:, -1], y.softmax(1)[:, -1])


def test_one_foreground_class():
    probs = exempt_background(torch.tensor([[0.0, 0.0]]), torch.tensor([[-5.0, 3.0]]))
    torch.testing.assert_close(probs, torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    torch.manual_seed(0)
    classifier = CosineMultiHeadClassifier(64, 9)
    # Features whose squares overflow fp16, and a mean whose squares underflow it.
    x, mean = (torch.rand(6, 64) * 3e4).to(dtype), torch.rand(64) * 1e-6
    expected = tde_logits(x.float(), classifier, mean, 1.5)
    for autocast in (True, False):
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            logits, direct = classifier(x), tde_logits(x, classifier, mean, 1.5)
        assert logits.dtype == direct.dtype == torch.float32
        torch.testing.assert_close(direct, expected)
        assert exempt_background(logits.to(dtype), direct.to(dtype)).dtype == torch.float32


def test_gradients_reach_features_and_weight():
    torch.manual_seed(0)
    classifier = CosineMultiHeadClassifier(6, 4).double()
    x = torch.randn(3, 6, dtype=torch.double, requires_grad=True)
    mean = torch.randn(6, dtype=torch.double)

    assert torch.autograd.gradcheck(classifier, (x,))
    assert torch.autograd.gradcheck(lambda x: tde_logits(x, classifier, mean, 1.5), (x,))
    tde_logits(x, classifier, mean, 1.5).square().sum().backward()
    assert classifier.weight.grad.abs().min() > 0


def test_errors_name_the_value():
    classifier = CosineMultiHeadClassifier(8, 5)
    with pytest.raises(ValueError, match=r"\(7,\).*8 features"):
        tde_logits(torch.randn(2, 8), classifier, torch.zeros(7), 1.0)
    for alpha in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"alpha={alpha}"):
            tde_logits(torch.randn(2, 8), classifier, torch.zeros(8), alpha)
    with pytest.raises(ValueError, match=r"\(2, 5\) and \(2, 4\)"):
        exempt_background(torch.zeros(2, 5), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="C >= 1"):
        exempt_background(torch.zeros(2, 1), torch.zeros(2, 1))


def test_logits_are_bounded_by_tau():
    classifier = CosineMultiHeadClassifier(32, 10, tau=16.0, norm="cosine")
    assert classifier(torch.randn(20, 32) * 100).abs().max() <= 16.0 + 1e-4
    assert math.isclose(classifier.tau / classifier.num_heads, 8.0)


def test_background_exemption_has_correct_gradients():
    torch.manual_seed(0)
    y = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(exempt_background, (y, t))
