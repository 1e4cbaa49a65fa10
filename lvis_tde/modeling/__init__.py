"""What registers with Detectron2 (importing it does), and what belongs to it."""

from .backbone import build_narrow_resnet_fpn_backbone
from .cifar_resnet import build_cifar_resnet32_backbone, build_cifar_resnet_backbone
from .fast_rcnn import TDEFastRCNNOutputLayers
from .image_backbone import build_image_backbone
from .image_classifier import ImageClassifier
from .image_predictor import TDEImagePredictor
from .mask_head import CosineMaskRCNNConvUpsampleHead, SelectedClassMaskRCNNConvUpsampleHead
from .roi_heads import TDECascadeROIHeads, TDERes5ROIHeads, TDEROIHeads
from .swap import swap_box_predictor

__all__ = [
    "CosineMaskRCNNConvUpsampleHead",
    "ImageClassifier",
    "SelectedClassMaskRCNNConvUpsampleHead",
    "TDECascadeROIHeads",
    "TDEFastRCNNOutputLayers",
    "TDEImagePredictor",
    "TDEROIHeads",
    "TDERes5ROIHeads",
    "build_cifar_resnet32_backbone",
    "build_cifar_resnet_backbone",
    "build_image_backbone",
    "build_narrow_resnet_fpn_backbone",
    "swap_box_predictor",
]
