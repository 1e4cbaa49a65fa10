"""The shift that keeps the summed probability, against bisection and where sigmoids saturate."""

import numpy as np
import pytest
import torch

from lvis_tde.posthoc import keep_sum


def sums(logits):
    return logits.double().sigmoid().sum(-1)


def by_bisection(logits, reference):
    """One row and one shift at a time, in NumPy."""
    sigmoid = lambda z: 0.5 * (1 + np.tanh(z / 2))  # noqa: E731
    out = np.empty_like(logits)
    for row, (z, r) in enumerate(zip(logits, reference)):
        low, high = (r - z).min(), (r - z).max()
        for _ in range(200):
            middle = (low + high) / 2
            if sigmoid(z + middle).sum() < sigmoid(r).sum():
                low = middle
            else:
                high = middle
        out[row] = z + (low + high) / 2
    return out


@pytest.mark.parametrize("classes", [1, 3, 200])
def test_the_shift_is_that_of_bisection(classes):
    rng = np.random.default_rng(classes)
    reference = rng.normal(size=(9, classes)) * 3 - 4
    logits = reference + rng.normal(size=classes) * 4
    ours = keep_sum(torch.from_numpy(logits), torch.from_numpy(reference))
    expected = torch.from_numpy(by_bisection(logits, reference))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("classes", [1, 2, 1203, 13204])
@pytest.mark.parametrize("spread, offset", [(0.1, -9), (3, -6), (30, 0), (1e4, 0)])
def test_sums_are_kept_to_float32_also_of_extreme_logits(classes, spread, offset):
    generator = torch.Generator().manual_seed(classes)
    reference = torch.randn(20, classes, generator=generator) * spread + offset
    margins = torch.randn(classes, generator=generator) * max(spread, 3)
    logits = reference + margins
    ours = keep_sum(logits, reference)
    assert ours.dtype == torch.float32 and ours.isfinite().all()
    torch.testing.assert_close(sums(ours), sums(reference), rtol=1e-5, atol=1e-5)
    # One shift a row.
    shift = (ours.double() - logits.double()).mean(-1, keepdim=True)
    size = float(ours.abs().max() + logits.abs().max())
    torch.testing.assert_close(
        ours.double() - logits, shift.expand_as(ours), rtol=0, atol=size * 2e-7
    )


CASES = {
    "one class far above the others": ([1e4, 0.0, -3.0], [-2.0, -1.0, -4.0]),
    "a step between two plateaus": ([1e4, -1e4, 0.0], [0.0, -5.0, 0.0]),
    "all nearly zero": ([-80.0, -60.0, 3.0], [-85.0, -90.0, -88.0]),
    "zero in float32": ([5.0, 4.0, 3.0], [-1e4, -2e4, -3e4]),
    "all nearly one": ([-3.0, 2.0, 0.0], [12.0, 14.0, 13.0]),
    "one in float32": ([-3.0, 2.0, 0.0], [1e4, 1e4, 1e4]),
    "a plateau of the reference": ([7.0, -7.0, 0.0], [900.0, -900.0, 800.0]),
    "far apart": ([3e4, 2e4, 1e4], [-1.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_rows(name, dtype):
    logits, reference = (torch.tensor([row], dtype=dtype) for row in CASES[name])
    for a, b in ((logits, reference), (reference, logits)):
        ours = keep_sum(a, b)
        assert ours.isfinite().all()
        torch.testing.assert_close(sums(ours), sums(b), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_logits_stay_bit_for_bit_and_a_constant_is_undone(dtype):
    logits = (torch.randn(6, 50) * 8).to(dtype)
    wide = logits.to(torch.promote_types(dtype, torch.float32))
    assert torch.equal(keep_sum(logits, logits), wide)
    before = wide.clone()
    torch.testing.assert_close(keep_sum(wide + 2.5, wide), wide, rtol=0, atol=1e-5)
    assert torch.equal(wide, before)


def test_empty():
    assert keep_sum(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0, 5)


def test_rows_are_independent_of_each_other():
    reference = torch.randn(30, 40) * 5
    logits = reference + torch.randn(40) * 5
    rows = torch.cat([keep_sum(a[None], b[None]) for a, b in zip(logits, reference)])
    torch.testing.assert_close(keep_sum(logits, reference), rows, rtol=1e-6, atol=1e-6)


def test_traced_for_other_inputs():
    reference = torch.randn(4, 6) * 2 - 3
    margins = torch.linspace(0, 8, 6)
    traced = torch.jit.trace(lambda z: keep_sum(z + margins, z), (reference,))
    other = torch.randn(9, 6) * 3 - 5
    torch.testing.assert_close(sums(traced(other)), sums(other), rtol=1e-5, atol=1e-6)


def test_gradients_take_the_shift_for_a_constant():
    logits = torch.randn(3, 5, requires_grad=True)
    keep_sum(logits, logits.detach() + torch.arange(5)).sum().backward()
    assert torch.equal(logits.grad, torch.ones(3, 5))
