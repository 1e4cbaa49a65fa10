"""Long-tailed instance segmentation for Detectron2 with the total direct effect (TDE).

Tang, Huang and Zhang, "Long-Tailed Classification by Keeping the Good and Removing the Bad
Momentum Causal Effect", NeurIPS 2020. Importing the package registers its ROI heads.
"""

from .config import add_tde_config
from .layers.classifier import CosineMultiHeadClassifier
from .layers.feature_mean import RunningFeatureMean
from .layers.functional import exempt_background, tde_logits
from .modeling.fast_rcnn import TDEFastRCNNOutputLayers
from .modeling.roi_heads import TDECascadeROIHeads, TDERes5ROIHeads, TDEROIHeads
from .modeling.swap import swap_box_predictor

__version__ = "0.1.0"

__all__ = [
    "CosineMultiHeadClassifier",
    "RunningFeatureMean",
    "TDECascadeROIHeads",
    "TDEFastRCNNOutputLayers",
    "TDEROIHeads",
    "TDERes5ROIHeads",
    "add_tde_config",
    "exempt_background",
    "swap_box_predictor",
    "tde_logits",
]
