"""The network of the CIFAR protocol; golden/cifar_reference.npz has the authors' numbers for it."""

from pathlib import Path

import formula_util
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

from lvis_tde import add_tde_config
from lvis_tde.modeling.cifar_resnet import CifarResNet, convert_authors_checkpoint

C = 100
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def reference():
    return dict(np.load(Path(__file__).parents[1] / "golden" / "cifar_reference.npz"))


def make_cfg():
    """The keys of the authors' CIFAR-100 run with ResNet-32."""
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.BACKBONE.NAME = "build_cifar_resnet32_backbone"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [125.5] * 3, [63.75] * 3
    cfg.MODEL.TDE.MEAN_MOMENTUM = 0.9
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_NORM = 5e-4
    return cfg


def make_batch(number, size, step):
    labels = formula_util.labels(number, C, step)
    return {"image": formula_util.images(number, size, step), "class": labels}


def check(value, expected):
    torch.testing.assert_close(value.detach(), torch.from_numpy(expected), **CLOSE)


def learned(model):
    """What the authors save of their networks, in their order."""
    state = model.state_dict()
    return [v for n, v in state.items() if n.startswith("backbone.") or "cls_score.weight" in n]


def with_weights(cfg, dtype=torch.float32):
    model = build_model(cfg).to(dtype)
    formula_util.fill(model.parameters())
    return model


def test_twenty_steps_equal_the_authors_network_classifier_and_optimizer(reference):
    cfg = make_cfg()
    cfg.SOLVER.BASE_LR = float(reference["lr"])
    model = with_weights(cfg, torch.float64).train()
    assert [p.dtype for p in model.parameters()] == [torch.float64] * 100
    optimizer = build_optimizer(cfg, model)
    losses, seen = [], {}
    model.predictor.register_forward_hook(lambda module, _, out: seen.update(out=out))
    for step in range(20):
        with EventStorage(step):
            loss = model(make_batch(8, 8, step))["loss_cls"]
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        if step in (0, 19):
            name = str(step + 1)
            check(seen["out"][0], reference[f"logits_{name}"])
            check(seen["out"][1], reference[f"features_{name}"])
            gradients = [p.grad for p in model.parameters()]
            check(formula_util.projections(gradients), reference[f"gradients_{name}"])
            check(gradients[-1][:4], reference[f"classifier_gradient_{name}"])
            check(gradients[0][:2], reference[f"stem_gradient_{name}"])
        if step in (0, 4, 19):
            # Theirs is a sum with decay, this one an average: one direction, a known factor.
            theirs = (1 - 0.9) * reference[f"mean_{step + 1}"]
            check(model.predictor.feature_mean.mean, theirs)
        optimizer.step()
    check(torch.stack(losses), reference["loss"])
    # All that is saved, running statistics of batch norm included.
    check(formula_util.projections(learned(model)), reference["state_20"])

    # Their test, with the mean of these steps and the running statistics of batch norm.
    model.eval()
    predictor = model.predictor
    with torch.no_grad():
        logits, features = predictor(model.features(make_batch(8, 8, 20)))
        terms = predictor.cls_score.effect_terms(features, predictor.feature_mean.mean)
        check(features, reference["features_eval"])
        check(predictor.composition().adjust(logits, *terms), reference["tde_eval"])
        expected = torch.from_numpy(reference["tde_eval"]).softmax(-1)
        check(model(make_batch(8, 8, 20))["probabilities"], expected.numpy())


def test_a_step_in_single_precision_equals_theirs_at_the_size_of_cifar(reference):
    model = with_weights(make_cfg()).train()
    batch = make_batch(4, 32, 0)
    seen = {}
    model.predictor.register_forward_hook(lambda module, _, out: seen.update(out=out))
    with EventStorage():
        loss = model(batch)["loss_cls"]
    loss.backward()
    check(seen["out"][0], reference["fp32_logits"])
    gradients = formula_util.projections([p.grad for p in model.parameters()])
    assert loss.item() == pytest.approx(float(reference["fp32_loss"]), rel=1e-5)
    theirs = torch.from_numpy(reference["fp32_gradients"])
    # Sums over thousands of numbers of both signs lose digits that their norms keep.
    torch.testing.assert_close(gradients[:, 0], theirs[:, 0], rtol=1e-4, atol=1e-5)
    check(model.predictor.feature_mean.mean, 0.1 * reference["fp32_mean"])


def _theirs(names, model):
    """A checkpoint as the authors' code saves it, with the numbers of ``model`` by their order."""
    nested = {"feat_model": {}, "classifier": {}}
    for name, value in zip(names, learned(model), strict=True):
        part, _, rest = str(name).partition(".")
        nested[part][rest] = value
    embed = np.linspace(0, 1, 128, dtype=np.float32)
    return {"epoch": 200, "state_dict": nested, "embed": embed}


def test_the_authors_names_are_converted(reference):
    source, target = with_weights(make_cfg()).eval(), build_model(make_cfg()).eval()
    checkpoint = _theirs(reference["names"], source)
    assert "module.cb_block.conv1.weight" in checkpoint["state_dict"]["feat_model"]
    missing, unexpected = target.load_state_dict(
        convert_authors_checkpoint(checkpoint), strict=False
    )
    assert not unexpected
    assert all("statistics" in name or "extra_state" in name for name in missing)
    batch = make_batch(2, 16, 0)
    with torch.no_grad():
        torch.testing.assert_close(target.features(batch), source.features(batch))
    mean = torch.from_numpy(checkpoint["embed"]) * (1 - 0.9)
    torch.testing.assert_close(target.predictor.feature_mean.mean, mean)


def test_torchvisions_names_and_scales_are_converted_and_a_late_mean_is_said(caplog):
    ones = torch.ones(2)
    checkpoint = {
        "state_dict_best": {
            "feat_model": {"module.layer1.0.conv1.weight": ones},
            "classifier": {"module.fc.weight": ones, "module.fc.bias": ones, "module.scales": ones},
        },
        "best_epoch": 3,
        "epoch": 5,
        "embed": np.ones(2, dtype=np.float32),
    }
    assert set(convert_authors_checkpoint(checkpoint)) == {
        "backbone.network.layer1.0.conv1.weight",
        "predictor.cls_score.weight",
        "predictor.cls_score.bias",
        "predictor.cls_score.scales",
        "predictor.feature_mean.mean",
    }
    assert "epoch 3" in caplog.text and "epoch 5" in caplog.text
    with pytest.raises(ValueError, match="feat_model"):
        convert_authors_checkpoint({"model": {}})


def test_shapes_and_sizes():
    network = CifarResNet()
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 31 + 2
    small = CifarResNet(depth=14, width=4, in_channels=1)
    shape = small.output_shape()["last"]
    out = small(torch.rand(2, 1, 8, 8))["last"]
    assert out.shape == (2, shape.channels, 8 // shape.stride, 8 // shape.stride) == (2, 32, 2, 2)
    for wrong in ({"depth": 8}, {"depth": 33}, {"width": 0}):
        with pytest.raises(ValueError, match=str(*wrong.values())):
            CifarResNet(**wrong)


def test_the_small_one_reads_depth_and_width():
    cfg = make_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_cifar_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 14, 8
    assert build_model(cfg).predictor.cls_score.in_features == 64


def test_channels_last_stays_channels_last():
    network = CifarResNet(depth=14, width=8).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 16, 16).to(memory_format=torch.channels_last)
    out = network(images)["last"]
    assert out.is_contiguous(memory_format=torch.channels_last)
    plain = CifarResNet(depth=14, width=8)
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(out, plain(images.contiguous())["last"], rtol=1e-4, atol=1e-4)
