"""LVIS metrics, exact and fast, top-1 accuracy, and the evaluators that feed them in Detectron2."""

from .api import evaluate_lvis
from .comparison import compare_lvis, compare_resampled
from .detections import Detections
from .ground_truth import GroundTruth
from .predictions import Predictions
from .result import LVISComparison, LVISResult
from .top1 import Top1Result, evaluate_top1
from .top1_comparison import Top1Comparison, compare_top1

__all__ = [
    "ClassificationEvaluator",
    "Detections",
    "GroundTruth",
    "LVISComparison",
    "LVISEvaluator",
    "LVISResult",
    "Predictions",
    "Top1Comparison",
    "Top1Result",
    "compare_lvis",
    "compare_resampled",
    "compare_top1",
    "evaluate_lvis",
    "evaluate_top1",
]


def __getattr__(name):
    # Result files can be evaluated where torch and Detectron2 are not even installed.
    if name == "LVISEvaluator":
        from .lvis_evaluator import LVISEvaluator

        return LVISEvaluator
    if name == "ClassificationEvaluator":
        from .classification_evaluator import ClassificationEvaluator

        return ClassificationEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
