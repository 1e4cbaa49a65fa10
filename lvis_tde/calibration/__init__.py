"""After training: the mean of a trained model, the strength of TDE, and what TDE did."""

from .alpha import predict_for_alphas, sweep_alpha
from .checkpoint import load_trained, run_estimate, save_checkpoint
from .estimate import MeanEstimate, angle_between, estimate_feature_mean
from .explain import Explanation, explain, explain_detections
from .hold_out import calibration_images, hold_out
from .settings import settings, tde_predictors
from .sweep import best_alpha, format_sweep, run_sweep

__all__ = [
    "Explanation",
    "MeanEstimate",
    "angle_between",
    "best_alpha",
    "calibration_images",
    "estimate_feature_mean",
    "explain",
    "explain_detections",
    "format_sweep",
    "hold_out",
    "load_trained",
    "predict_for_alphas",
    "run_estimate",
    "run_sweep",
    "save_checkpoint",
    "settings",
    "sweep_alpha",
    "tde_predictors",
]
