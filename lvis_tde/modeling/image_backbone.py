"""Classification networks of torchvision and timm as backbones, without their classifiers."""

from __future__ import annotations

import difflib
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torchvision import models

__all__ = ["ImageBackbone", "build_image_backbone"]

_TIMM = "timm/"
# Those with classifiers in the middle, whose training output is not one tensor.
_AUXILIARY = ("googlenet", "inception_v3")


class ImageBackbone(Backbone):
    """A network whose output is the pooled features: what its classifier would take."""

    def __init__(self, name: str, *, pretrained: bool = False):
        """
        Args:
            name: a classification model of torchvision, such as "resnet50" or "resnext50_32x4d";
                or "timm/" and a model of timm.
            pretrained: start from the published weights, torchvision's newest.

        Raises:
            ValueError: if there is no such model.
            ImportError: if it is one of timm, which is not installed.
        """
        super().__init__()
        make = _from_timm if name.startswith(_TIMM) else _from_torchvision
        self.network, channels = make(name.removeprefix(_TIMM), pretrained)
        self._out_features = ["pooled"]
        self._out_feature_channels = {"pooled": channels}
        self._out_feature_strides = {"pooled": None}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalized images to ``{"pooled": (N, D)}``."""
        return {"pooled": self.network(x)}


def _from_torchvision(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    known = models.list_models(module=models)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known)) or "resnet50, resnext50_32x4d"
        raise ValueError(
            f"torchvision has no classification model {name!r} (MODEL.IMAGE_CLASSIFIER.NETWORK); "
            f"it has {near} and others. Models of timm are named timm/NAME."
        )
    # The published weights have the auxiliary classifiers, and take no network without them.
    bare = name in _AUXILIARY and not pretrained
    options = {"aux_logits": False, "init_weights": True} if bare else {}
    network: Any = models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    if name in _AUXILIARY:
        network.aux_logits = False
        network.aux1 = network.aux2 = network.AuxLogits = None
    return network, _strip_classifier(network)


def _strip_classifier(network: nn.Module) -> int:
    """Puts an identity in the place of the classifier and returns the size of its input.

    The classifier is the last linear layer, or the last convolution where there is none.
    """
    for kind, size in ((nn.Linear, "in_features"), (nn.Conv2d, "in_channels")):
        found = [name for name, module in network.named_modules() if isinstance(module, kind)]
        if found:
            parent, _, child = found[-1].rpartition(".")
            channels = int(getattr(network.get_submodule(found[-1]), size))
            setattr(network.get_submodule(parent), child, nn.Identity())
            return channels
    raise ValueError(f"{type(network).__name__} has no linear layer and no convolution.")


def _from_timm(name: str, pretrained: bool) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"MODEL.IMAGE_CLASSIFIER.NETWORK is 'timm/{name}', and timm is not installed: pip "
            "install timm, or name a model of torchvision, such as resnet50."
        ) from error
    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models())) or "resnet50"
        raise ValueError(
            f"timm has no model {name!r} (MODEL.IMAGE_CLASSIFIER.NETWORK); it has {near} and "
            "others."
        )
    network: Any = timm.create_model(name, pretrained=pretrained, num_classes=0)
    # Some have a layer between the pooling and the classifier.
    return network, getattr(network, "head_hidden_size", None) or network.num_features


@BACKBONE_REGISTRY.register()
def build_image_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The network of ``MODEL.IMAGE_CLASSIFIER.NETWORK`` and ``PRETRAINED``; nothing is frozen."""
    options = cfg.MODEL.IMAGE_CLASSIFIER
    return ImageBackbone(options.NETWORK, pretrained=options.PRETRAINED)
