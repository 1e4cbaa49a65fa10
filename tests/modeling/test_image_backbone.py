"""Networks of torchvision and timm without their classifiers."""

import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from lvis_tde import add_tde_config
from lvis_tde.modeling.image_backbone import ImageBackbone

# One of each way to end: fc, the last of a classifier, a head, a convolution.
NAMES = {
    "resnet18": 512,
    "resnext50_32x4d": 2048,
    "mobilenet_v3_small": 1024,
    "densenet121": 1024,
    "convnext_tiny": 768,
    "regnet_x_400mf": 400,
    "squeezenet1_1": 512,
    "swin_t": 768,
}


def pooled(backbone, size=32):
    with torch.no_grad():
        return backbone.eval()(torch.rand(2, 3, size, size))["pooled"]


@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_networks_end_in_their_features(name):
    backbone = ImageBackbone(name)
    assert backbone.output_shape()["pooled"].channels == NAMES[name]
    assert pooled(backbone, 64).shape == (2, NAMES[name])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_the_classifier_alone_is_gone(name):
    backbone, whole = ImageBackbone(name), models.get_model(name).eval()
    missing, unexpected = whole.load_state_dict(backbone.network.state_dict(), strict=False)
    assert not unexpected and len(missing) == 2
    last = [m for m in whole.modules() if isinstance(m, nn.Linear)][-1]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = whole(images)
        torch.testing.assert_close(last(backbone.eval()(images)["pooled"]), expected)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_classifiers_in_the_middle_are_left_out(name, monkeypatch):
    # Their weights are drawn slowly, and which ones plays no part.
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    backbone = ImageBackbone(name).train()
    assert backbone(torch.rand(2, 3, 96, 96))["pooled"].shape[1] in (1024, 2048)


def test_pretrained_asks_for_the_published_weights(monkeypatch):
    asked = {}

    def get_model(name, **options):
        asked.update(options, name=name)
        return nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 9)
        )

    monkeypatch.setattr(models, "get_model", get_model)
    assert pooled(ImageBackbone("resnet50", pretrained=True)).shape == (2, 4)
    assert asked == {"name": "resnet50", "weights": "DEFAULT"}


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_weights_of_classifiers_in_the_middle(name, monkeypatch):
    whole = models.get_model(name, init_weights=False, aux_logits=True).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **options: whole)
    backbone = ImageBackbone(name, pretrained=True).train()
    assert backbone(torch.rand(2, 3, 96, 96))["pooled"].shape[1] in (1024, 2048)
    state = backbone.network.state_dict()
    assert not [key for key in state if key.startswith(("aux", "Aux", "fc"))]
    assert all(
        torch.equal(state[key], whole[key])
        for key in state
        if "num_batches" not in key and "running" not in key
    )


def test_unknown_names_are_quoted_with_their_neighbors():
    with pytest.raises(ValueError, match="'resnet51'.*resnet50"):
        ImageBackbone("resnet51")
    with pytest.raises(ValueError, match="'fasterrcnn_resnet50_fpn'"):
        ImageBackbone("fasterrcnn_resnet50_fpn")


def test_timm_by_name():
    timm = pytest.importorskip("timm")
    for name in ("resnet18", "mobilenetv3_small_050"):
        backbone = ImageBackbone(f"timm/{name}")
        expected = timm.create_model(name, num_classes=0)
        with torch.no_grad():
            features = expected.eval()(torch.rand(2, 3, 32, 32))
        assert pooled(backbone).shape == features.shape
        assert backbone.output_shape()["pooled"].channels == features.shape[1]
    with pytest.raises(ValueError, match="'resnet19'"):
        ImageBackbone("timm/resnet19")


def test_timm_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="'timm/resnet18'.*pip install timm"):
        ImageBackbone("timm/resnet18")


def test_a_classifier_of_the_config():
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "ImageClassifier", "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_image_backbone"
    cfg.MODEL.IMAGE_CLASSIFIER.NETWORK = "resnet18"
    model = build_model(cfg).to(memory_format=torch.channels_last).eval()
    with torch.no_grad():
        found = model({"image": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)})["probabilities"]
    assert found.shape == (2, 100)
    assert all(p.requires_grad for p in model.parameters())
