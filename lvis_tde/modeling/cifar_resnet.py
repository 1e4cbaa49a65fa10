"""The ResNet of the long-tailed CIFAR protocol, and the authors' names of its layers.

BBN's "ResNet-32": three stages of five blocks, of which the last is there twice, side by side, and
the two outputs are concatenated. So it has 128 features in place of 64.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CifarResNet", "build_cifar_resnet32_backbone", "build_cifar_resnet_backbone"]
__all__ += ["convert_authors_checkpoint"]

logger = logging.getLogger(__name__)

# Of the authors' CIFAR runs: their mean is the sum of what an average has divided by 1 / (1 - mu).
_AUTHORS_MOMENTUM = 0.9
_LAST = {"cb_block.": "last.0.", "rb_block.": "last.1."}


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A of He et al.)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.padding = (channels - in_channels) // 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x, inplace=True)


class CifarResNet(Backbone):
    """A ResNet of 6n + 2 layers for small images, with the last block doubled."""

    def __init__(self, *, depth: int = 32, width: int = 16, in_channels: int = 3):
        """
        Args:
            depth: 6n + 2 with n >= 2.
            width: channels of the first stage; the output has eight times as many.
            in_channels: of the images.

        Raises:
            ValueError: if there is no such depth or width.
        """
        super().__init__()
        blocks = (depth - 2) // 6
        if depth != 6 * blocks + 2 or blocks < 2:
            raise ValueError(f"depth={depth} must be 6n + 2 with n >= 2: 14, 20, 26, 32, ...")
        if width < 1:
            raise ValueError(f"width={width} must be positive.")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks, width, width, 1)
        self.layer2 = _stage(blocks, width, 2 * width, 2)
        self.layer3 = _stage(blocks - 1, 2 * width, 4 * width, 2)
        self.last = nn.ModuleList(_Block(4 * width, 4 * width) for _ in range(2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self._out_features = ["last"]
        self._out_feature_channels = {"last": 8 * width}
        self._out_feature_strides = {"last": 4}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, in_channels, H, W) images to ``{"last": (N, 8 width, H / 4, W / 4)}``."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return {"last": torch.cat([block(x) for block in self.last], dim=1)}


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    rest = (_Block(channels, channels) for _ in range(blocks - 1))
    return nn.Sequential(_Block(in_channels, channels, stride), *rest)


@BACKBONE_REGISTRY.register()
def build_cifar_resnet32_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The protocol's ResNet-32, 128 features; reads nothing of the config."""
    return CifarResNet(in_channels=input_shape.channels)


@BACKBONE_REGISTRY.register()
def build_cifar_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """One of ``MODEL.RESNETS.DEPTH`` layers, the first ``STEM_OUT_CHANNELS`` wide."""
    options = cfg.MODEL.RESNETS
    return CifarResNet(
        depth=options.DEPTH, width=options.STEM_OUT_CHANNELS, in_channels=input_shape.channels
    )


def convert_authors_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """A checkpoint of the authors' classification code under the names of ``ImageClassifier``.

    | theirs | here |
    |---|---|
    | `feat_model`, `conv1`, `bn1`, `layer1` ... `layer3` of ResNet-32 | `backbone.` and the same |
    | `feat_model`, `cb_block`, `rb_block` | `backbone.last.0`, `backbone.last.1` |
    | `feat_model` of their ResNet-50, ResNeXt-50 | `backbone.network.` and the same |
    | `classifier`, `weight`; `fc.weight`, `fc.bias`, `scales` | `predictor.cls_score.` |
    | `embed`, a sum with decay | `predictor.feature_mean.mean`, 1 - 0.9 of it: an average |

    A leading `module.` is dropped. Save the result as ``{"model": result}`` and name the file in
    ``MODEL.WEIGHTS``.

    Args:
        checkpoint: what ``torch.load`` gives for their `latest_model_checkpoint.pth` or
            `final_model_checkpoint.pth`. The second has the weights of the best epoch and the mean
            of the last one: take the first, or estimate the mean anew.

    Returns:
        dict: state of a :class:`~.image_classifier.ImageClassifier`.

    Raises:
        ValueError: if it is no such checkpoint.
    """
    best = "state_dict" not in checkpoint
    state = checkpoint.get("state_dict", checkpoint.get("state_dict_best"))
    if not isinstance(state, Mapping) or "feat_model" not in state:
        raise ValueError(
            f"The checkpoint has {', '.join(map(str, checkpoint))}: one of the authors' has "
            "state_dict or state_dict_best with feat_model in it."
        )
    theirs = {name.removeprefix("module."): value for name, value in state["feat_model"].items()}
    prefix = "backbone." if "cb_block.conv1.weight" in theirs else "backbone.network."
    ours = {}
    for name, value in theirs.items():
        for old, new in _LAST.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        ours[prefix + name] = value
    for name, value in state.get("classifier", {}).items():
        name = name.removeprefix("module.").removeprefix("fc.")
        ours[f"predictor.cls_score.{name}"] = value
    if "embed" in checkpoint:
        mean = torch.as_tensor(checkpoint["embed"], dtype=torch.float32).flatten()
        ours["predictor.feature_mean.mean"] = mean * (1 - _AUTHORS_MOMENTUM)
        if best and checkpoint.get("best_epoch") != checkpoint.get("epoch"):
            logger.warning(
                "The weights are those of epoch %s, and the mean is that of epoch %s: the authors' "
                "code saves the two so. Estimate it anew with tools/estimate_feature_mean.py.",
                checkpoint.get("best_epoch"),
                checkpoint.get("epoch"),
            )
    return ours
