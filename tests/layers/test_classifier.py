import copy

import pytest
import torch

from lvis_tde import CosineMultiHeadClassifier


def test_interface():
    classifier = CosineMultiHeadClassifier(64, 10)
    assert classifier.weight.shape == (10, 64)
    assert [name for name, _ in classifier.named_parameters()] == ["weight"]
    assert list(classifier.state_dict()) == ["weight", "_extra_state"]
    assert classifier(torch.randn(7, 64)).shape == (7, 10)
    for part in ("in_features=64", "out_features=10", "num_heads=2", "tau=16", "'deconfound'"):
        assert part in repr(classifier)


def test_output_does_not_depend_on_mode():
    classifier = CosineMultiHeadClassifier(64, 10)
    x = torch.randn(7, 64)
    torch.testing.assert_close(classifier.train()(x), classifier.eval()(x))


def test_without_normalization_it_is_a_linear_layer():
    linear, classifier = torch.nn.Linear(8, 5), CosineMultiHeadClassifier(8, 5, 2, norm="none")
    assert classifier.bias.count_nonzero() == 0
    classifier.load_state_dict(linear.state_dict())
    x = torch.randn(3, 8)
    torch.testing.assert_close(classifier(x), linear(x))
    classifier.eval()
    with torch.no_grad():
        torch.testing.assert_close(classifier(x), linear(x))
        classifier.bias.add_(1)
        torch.testing.assert_close(classifier(x), linear(x) + 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert classifier(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_heads=3), "num_heads=3 does not divide the feature size 64"),
        (dict(num_heads=0), "num_heads=0"),
        (dict(tau=0.0), "tau=0.0"),
        (dict(tau=float("nan")), "tau=nan"),
        (dict(gamma=-0.1), "gamma=-0.1"),
        (dict(norm="l2"), "'l2'.*cosine, capsule, deconfound"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CosineMultiHeadClassifier(64, 10, **options)


def test_no_classes():
    with pytest.raises(ValueError, match="64 and 0"):
        CosineMultiHeadClassifier(64, 0)


def test_state_dict_round_trip_and_deepcopy():
    first, second = CosineMultiHeadClassifier(8, 3), CosineMultiHeadClassifier(8, 3)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 8)
    assert torch.equal(first(x), second(x))
    assert torch.equal(first(x), copy.deepcopy(first)(x))


def test_works_without_detectron2():
    # The classifier and the functions are usable in a project that has torch alone.
    import subprocess
    import sys
    from pathlib import Path

    import lvis_tde.layers.classifier as module

    folder = Path(module.__file__).parent
    code = (
        "import sys, types; sys.modules['detectron2'] = None\n"
        f"package = types.ModuleType('p'); package.__path__ = [{str(folder)!r}]\n"
        "sys.modules['p'] = package\n"
        "import p.classifier, torch\n"
        "print(p.classifier.CosineMultiHeadClassifier(4, 3)(torch.ones(1, 4)).shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "[1, 3]" in result.stdout, result.stderr


@pytest.mark.parametrize(
    "here, message",
    [
        (
            dict(norm="capsule", num_heads=4),
            "norm deconfound there, capsule here; num_heads 2 there, 4 here",
        ),
        (dict(tau=20.0, gamma=0.5), "tau 16.0 there, 20.0 here; gamma 0.03125 there, 0.5 here"),
        (dict(), None),
        (dict(norm="cosine", gamma=0.5), "norm deconfound there, cosine here."),  # gamma is unused
    ],
)
def test_a_checkpoint_of_other_settings_is_told(here, message, caplog):
    state = CosineMultiHeadClassifier(16, 5).state_dict()
    classifier = CosineMultiHeadClassifier(16, 5, **here)
    classifier.load_state_dict(state)
    assert torch.equal(classifier.weight, state["weight"])
    assert message in caplog.text if message else not caplog.text


def test_a_checkpoint_of_an_earlier_release_loads():
    classifier = CosineMultiHeadClassifier(16, 5)
    missing = classifier.load_state_dict({"weight": torch.ones(5, 16)})  # strict
    assert not missing.missing_keys and not missing.unexpected_keys


@pytest.mark.parametrize("change", [lambda w: w.data.copy_(-w.data), lambda w: w.data.neg_()])
def test_weights_that_are_changed_behind_autograds_back_count(change):
    # As libraries that average weights do.
    classifier, x = CosineMultiHeadClassifier(16, 5).eval(), torch.rand(4, 16)
    with torch.no_grad():
        before = classifier(x)
        change(classifier.weight)
        torch.testing.assert_close(classifier(x), -before)
