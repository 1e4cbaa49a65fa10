"""Models for use without this package: traced for TorchScript, and as ONNX.

The strengths of TDE and of the other steps are constants of the exported graph: export once for
each.
"""

from .classifier import export_images_onnx, run_image_export, trace_classifier
from .common import NOTES, TOLERANCES, about, exported_at
from .detector import run_export
from .onnx_head import export_onnx, onnx_difference
from .traced import TracedModel, largest_difference, trace_model

__all__ = [
    "NOTES",
    "TOLERANCES",
    "TracedModel",
    "about",
    "export_images_onnx",
    "export_onnx",
    "exported_at",
    "largest_difference",
    "onnx_difference",
    "run_export",
    "run_image_export",
    "trace_classifier",
    "trace_model",
]
