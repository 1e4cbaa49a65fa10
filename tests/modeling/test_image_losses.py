"""Losses; golden/image_losses_reference.npz has the numbers of their authors' code."""

from pathlib import Path

import formula_util
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lvis_tde.modeling.image_losses import LOSSES, ImageLoss, effective_weights, focal, ldam_margins

N, C = 16, 10
X = 4 * formula_util.uniform((N, C), 7) - 2
COSINES = 2 * formula_util.uniform((N, C), 9) - 1
LABELS = formula_util.labels(N, C, 8)


@pytest.fixture(scope="module")
def reference():
    data = np.load(Path(__file__).parents[1] / "golden" / "image_losses_reference.npz")
    return {name: torch.from_numpy(data[name]) for name in data.files}


@pytest.mark.parametrize(
    "name, loss, scale",
    [
        ("focal_0", ImageLoss("focal", focal_gamma=0), 1),
        ("focal_1", ImageLoss("focal", focal_gamma=1), 1),
        ("focal_2", ImageLoss("focal", focal_gamma=2), 1),
        ("balanced", ImageLoss("balanced_softmax"), 1),
        ("ldam", ImageLoss("ldam", defer_iter=6), 30),
        ("ldam_drw", ImageLoss("ldam", defer_iter=5), 30),
    ],
)
def test_loss_and_gradient_equal_the_authors(reference, name, loss, scale):
    x = (X if scale == 1 else COSINES).clone().requires_grad_()
    value = loss(scale * x, LABELS, reference["counts"], iteration=5)
    value.backward()
    torch.testing.assert_close(value.detach(), reference[name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad, reference[f"{name}_grad"], rtol=1e-6, atol=1e-6)


def test_weights_and_margins(reference):
    counts = reference["counts"].double()
    for beta, name in ((0, "weights_0"), (0.9999, "weights_1")):
        torch.testing.assert_close(effective_weights(counts, beta), reference[name])
    margins = ldam_margins(counts, 0.5)
    assert margins.argmax() == counts.argmin() and margins.max() == 0.5
    torch.testing.assert_close(margins[0], 0.5 * (counts.min() / counts[0]) ** 0.25)
    # A class without images counts as one with one.
    unseen = torch.tensor([100, 0, 1])
    assert ldam_margins(unseen)[1] == ldam_margins(unseen)[2]
    assert effective_weights(unseen).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_mixup_is_the_mix_of_two_losses(name):
    loss, counts, x = ImageLoss(name, defer_iter=0), torch.arange(1, C + 1), X.float()
    other, share = LABELS.flip(0), torch.rand(N)
    weights = effective_weights(counts)
    first, second = (loss.per_image(x, one, counts) for one in (LABELS, other))
    a, b = share * weights[LABELS], (1 - share) * weights[other]
    expected = (a * first + b * second).sum() / (a + b).sum()
    mixed = loss(x, LABELS, counts, labels_b=other, weight=share)
    torch.testing.assert_close(mixed, expected)
    alone = loss(x, LABELS, counts, labels_b=other, weight=torch.ones(N))
    torch.testing.assert_close(alone, loss(x, LABELS, counts))


@pytest.mark.parametrize("name", LOSSES)
def test_no_image_and_half_precision(name):
    loss, counts = ImageLoss(name, defer_iter=0), torch.arange(1, C + 1)
    x = X.bfloat16()
    exact = loss(x.float(), LABELS, counts)
    torch.testing.assert_close(loss(x, LABELS, counts), exact, rtol=0, atol=0)
    empty = torch.zeros(0, C, requires_grad=True)
    value = loss(empty, LABELS[:0], counts)
    value.backward()
    assert value == 0 and empty.grad.shape == (0, C)


def test_a_sure_image_has_a_finite_gradient_under_any_gamma():
    x = torch.tensor([[200.0, 0.0]], requires_grad=True)
    focal(x, torch.tensor([0]), 0.5).sum().backward()
    assert x.grad.isfinite().all()


def test_what_needs_counts():
    assert not ImageLoss().needs_counts(0) and ImageLoss("ldam").needs_counts(0)
    late = ImageLoss(defer_iter=3)
    assert [late.needs_counts(i) for i in (0, 2, 3)] == [False, False, True]
    torch.testing.assert_close(late(X, LABELS, None, 2), F.cross_entropy(X, LABELS))
    with pytest.raises(ValueError, match="3 counts for logits of 10 classes"):
        ImageLoss("balanced_softmax")(X, LABELS, torch.ones(3))
    with pytest.raises(ValueError, match="name='ldam'.*needs counts"):
        ImageLoss("ldam")(X, LABELS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "mse"},
        {"focal_gamma": -1},
        {"ldam_margin": 0},
        {"ldam_scale": 0},
        {"defer_beta": 1},
    ],
)
def test_values_out_of_range_are_quoted(wrong):
    with pytest.raises(ValueError, match=str(*wrong.values())):
        ImageLoss(**wrong)
