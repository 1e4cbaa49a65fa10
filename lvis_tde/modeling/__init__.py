"""What registers with Detectron2 (importing it does), and what belongs to it."""

from .backbone import build_narrow_resnet_fpn_backbone
from .fast_rcnn import TDEFastRCNNOutputLayers
from .mask_head import CosineMaskRCNNConvUpsampleHead, SelectedClassMaskRCNNConvUpsampleHead
from .roi_heads import TDECascadeROIHeads, TDERes5ROIHeads, TDEROIHeads
from .swap import swap_box_predictor

__all__ = [
    "CosineMaskRCNNConvUpsampleHead",
    "SelectedClassMaskRCNNConvUpsampleHead",
    "TDECascadeROIHeads",
    "TDEFastRCNNOutputLayers",
    "TDEROIHeads",
    "TDERes5ROIHeads",
    "build_narrow_resnet_fpn_backbone",
    "swap_box_predictor",
]
