"""A ResNet-18-FPN that may be narrow: Detectron2's has 64 channels or more."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem

__all__ = ["build_narrow_resnet_fpn_backbone"]


@BACKBONE_REGISTRY.register()
def build_narrow_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """ResNet-18 of ``MODEL.RESNETS.RES2_OUT_CHANNELS`` channels, doubled per stage, and an FPN.

    A quarter of the arithmetic with half of the channels, for small images on CPUs. Reads
    ``STEM_OUT_CHANNELS``, ``RES2_OUT_CHANNELS``, ``NORM`` and ``OUT_FEATURES`` of
    ``MODEL.RESNETS``, and ``MODEL.FPN``; trained from scratch, so nothing is frozen.

    Args:
        cfg: the config.
        input_shape: of the image.
    """
    options = cfg.MODEL.RESNETS
    in_channels, out_channels = options.STEM_OUT_CHANNELS, options.RES2_OUT_CHANNELS
    stem = BasicStem(input_shape.channels, in_channels, options.NORM)
    stages = []
    for index in range(4):
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                2,
                stride_per_block=[1 if index == 0 else 2, 1],
                in_channels=in_channels,
                out_channels=out_channels,
                norm=options.NORM,
            )
        )
        in_channels, out_channels = out_channels, 2 * out_channels
    fpn = FPN(
        bottom_up=ResNet(stem, stages, out_features=options.OUT_FEATURES),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        _freeze_unused(fpn, {*cfg.MODEL.RPN.IN_FEATURES, *cfg.MODEL.ROI_HEADS.IN_FEATURES})
    return fpn


def _freeze_unused(fpn: FPN, used: set[str]) -> None:
    """Freezes the outputs that nobody reads: between processes each gradient is waited for."""
    levels = [name for name in fpn._out_features if f"fpn_output{name[1:]}" in fpn._modules]
    for name in levels:
        # The last one is also pooled to the level above it.
        read = {name, *(fpn._out_features[-1:] if name == levels[-1] else ())}
        if not read & used:
            getattr(fpn, f"fpn_output{name[1:]}").requires_grad_(False)
