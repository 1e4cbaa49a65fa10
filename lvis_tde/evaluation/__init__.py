"""LVIS metrics, exact and fast, and the evaluator that feeds them in Detectron2."""

from .api import evaluate_lvis
from .lvis_evaluator import LVISEvaluator
from .result import LVISResult

__all__ = ["LVISEvaluator", "LVISResult", "evaluate_lvis"]
