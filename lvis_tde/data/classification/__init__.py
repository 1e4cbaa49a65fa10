"""Long-tailed classification sets and their loaders."""

from .image_folder import register_image_folder
from .loader import build_test_loader, build_train_loader
from .names import register_by_name, register_classification
from .sets import ClassificationSet

__all__ = [
    "ClassificationSet",
    "build_test_loader",
    "build_train_loader",
    "register_by_name",
    "register_classification",
    "register_image_folder",
]
