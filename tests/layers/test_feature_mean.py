"""The running mean against a closed form: an explicit sum over the steps."""

import pytest
import torch

from lvis_tde import RunningFeatureMean


def closed_form(batch_means, weights):
    mean = torch.zeros_like(batch_means[0], dtype=torch.double)
    for batch_mean, weight in zip(batch_means, weights):
        mean = (1 - weight) * mean + weight * batch_mean.double()
    return mean.float()


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.9998])
def test_every_step_weighs_as_much(momentum):
    torch.manual_seed(0)
    running = RunningFeatureMean(5, momentum=momentum)
    batches = [torch.rand(6, 5) for _ in range(4)]
    mask = torch.tensor([True, False, True, True, False, True])
    for batch in batches:
        assert running.update(batch, mask) == 4
    expected = closed_form([b[mask].mean(0) for b in batches], [1 - momentum] * 4)
    torch.testing.assert_close(running.mean, expected)
    # Bias correction would change the length alone, which nothing reads.
    corrected = expected / (1 - momentum**4)
    torch.testing.assert_close(running.mean / running.mean.norm(), corrected / corrected.norm())


def test_no_mask_selects_all():
    masked, plain = RunningFeatureMean(4), RunningFeatureMean(4)
    for rows in (3, 0):
        features = torch.rand(rows, 4)
        assert plain.update(features, None) == rows
        masked.update(features, torch.ones(rows, dtype=torch.bool))
        assert plain.mean.any() and torch.equal(masked.mean, plain.mean)


def test_is_a_buffer_in_the_checkpoint():
    running = RunningFeatureMean(4)
    running.update(torch.ones(2, 4), torch.tensor([True, True]))
    assert list(running.state_dict()) == ["mean"]
    assert running.mean.dtype == torch.float32 and not list(running.parameters())
    other = RunningFeatureMean(4)
    other.load_state_dict(running.state_dict())
    assert torch.equal(other.mean, running.mean)


@pytest.mark.parametrize("rows", [0, 3])
def test_no_foreground_changes_nothing(rows):
    running = RunningFeatureMean(4)
    running.update(torch.rand(2, 4), torch.ones(2, dtype=torch.bool))
    before = running.mean.clone()
    count = running.update(torch.rand(rows, 4), torch.zeros(rows, dtype=torch.bool))
    assert count == 0 and torch.equal(running.mean, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_features(bad):
    running = RunningFeatureMean(2, momentum=0.9)
    features = torch.tensor([[1.0, 2.0], [bad, 0.0]])
    running.update(features, torch.tensor([True, True]))
    assert torch.equal(running.mean, torch.zeros(2))
    # A background row does not count, whatever it holds.
    running.update(features, torch.tensor([True, False]))
    torch.testing.assert_close(running.mean, torch.tensor([0.1, 0.2]))


def test_half_precision_features_are_summed_in_fp32():
    running = RunningFeatureMean(1, momentum=0.0)
    features = torch.full((4096, 1), 3e4, dtype=torch.float16)  # the sum overflows fp16
    running.update(features, torch.ones(4096, dtype=torch.bool))
    torch.testing.assert_close(running.mean, torch.tensor([3e4]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "cpu"])
def test_the_mean_stays_fp32_in_a_half_precision_model(cast):
    running = RunningFeatureMean(2)
    running.mean.copy_(torch.tensor([2e-8, 1.0001]))
    module = getattr(torch.nn.Sequential(running), cast)()
    assert module[0].mean.dtype == torch.float32
    assert torch.equal(module[0].mean, torch.tensor([2e-8, 1.0001]))


def test_a_mean_loaded_in_half_precision_goes_on_moving():
    running = RunningFeatureMean(2)
    running.load_state_dict({"mean": torch.ones(2).half()}, assign=True)
    before = running.mean.clone()
    running.update(torch.full((1, 2), 1.5), None)
    assert running.mean.dtype == torch.float32 and (running.mean > before).all()


def test_no_gradient_flows():
    running = RunningFeatureMean(3)
    features = torch.rand(2, 3, requires_grad=True)
    running.update(features, torch.tensor([True, True]))
    assert not running.mean.requires_grad


def test_stays_finite_over_many_steps():
    running = RunningFeatureMean(3, momentum=0.9)
    features = torch.rand(8, 3) * 1e3
    for _ in range(1000):
        running.update(features, torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(running.mean, features.mean(0), rtol=1e-3, atol=0)


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="momentum=1.0"):
        RunningFeatureMean(3, momentum=1.0)
    with pytest.raises(ValueError, match="num_features=0"):
        RunningFeatureMean(0)
    running = RunningFeatureMean(3)
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        running.update(torch.zeros(2, 4), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        running.update(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
