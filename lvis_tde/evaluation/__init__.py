"""LVIS metrics, exact and fast, and the evaluator that feeds them in Detectron2."""

from .api import compare_lvis, evaluate_lvis
from .detections import Detections
from .ground_truth import GroundTruth
from .result import LVISComparison, LVISResult

__all__ = [
    "Detections",
    "GroundTruth",
    "LVISComparison",
    "LVISEvaluator",
    "LVISResult",
    "compare_lvis",
    "evaluate_lvis",
]


def __getattr__(name):
    # Result files can be evaluated where torch and Detectron2 are not even installed.
    if name == "LVISEvaluator":
        from .lvis_evaluator import LVISEvaluator

        return LVISEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
