"""The method itself: pure functions, the classifier and the running mean. Needs torch alone."""

from .classifier import CosineMultiHeadClassifier
from .feature_mean import RunningFeatureMean
from .functional import exempt_background, tde_logits

__all__ = ["CosineMultiHeadClassifier", "RunningFeatureMean", "exempt_background", "tde_logits"]
