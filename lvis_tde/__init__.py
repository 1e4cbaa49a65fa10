"""Long-tailed instance segmentation for Detectron2 with the total direct effect (TDE).

Tang, Huang and Zhang, "Long-Tailed Classification by Keeping the Good and Removing the Bad
Momentum Causal Effect", NeurIPS 2020. Importing the package registers its ROI heads.

Nothing is imported before it is needed: torch and Detectron2 take seconds, which a ``--help`` has
not. The names below are imported with their first use, and the heads are registered when
``detectron2.modeling``, which has the registries, is imported, before or after this package.

Without Detectron2 the method itself (:mod:`lvis_tde.layers`) is there, and without torch, too,
the evaluation of result files (:mod:`lvis_tde.evaluation`); the names below that need more say so.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import add_tde_config
    from .layers import (
        CosineMultiHeadClassifier,
        RunningFeatureMean,
        exempt_background,
        tde_logits,
    )
    from .modeling.fast_rcnn import TDEFastRCNNOutputLayers
    from .modeling.inference_mode import optimize_for_inference
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
    "optimize_for_inference",
    "swap_box_predictor",
    "tde_logits",
]

_HOMES = {
    "config": ("add_tde_config",),
    "layers": (
        "CosineMultiHeadClassifier",
        "RunningFeatureMean",
        "exempt_background",
        "tde_logits",
    ),
    "modeling.fast_rcnn": ("TDEFastRCNNOutputLayers",),
    "modeling.inference_mode": ("optimize_for_inference",),
    "modeling.roi_heads": ("TDECascadeROIHeads", "TDEROIHeads", "TDERes5ROIHeads"),
    "modeling.swap": ("swap_box_predictor",),
}
_INSTALL = {
    "torch": "pip install torch torchvision",
    "detectron2": "python tools/install_detectron2.py in a clone of lvis_tde, or Detectron2's "
    "own instructions",
}
_REGISTRIES = "detectron2.modeling"


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None and name not in ("config", "layers", "modeling", "posthoc"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{home or name}")
    except ImportError as error:
        if error.name not in _INSTALL:
            raise
        # Detectron2 is of no use without torch, so whoever lacks it hears of both at once.
        absent = [one for one in _INSTALL if one == error.name or not _is_there(one)]
        cures = "; ".join(f"{package}: {_INSTALL[package]}" for package in absent)
        raise ImportError(
            f"lvis_tde.{name} needs what is not installed ({cures})", name=error.name
        ) from error
    return module if home is None else getattr(module, name)


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def _register() -> None:
    importlib.import_module(f"{__name__}.modeling.roi_heads")


class _OnImport:
    """Registers the heads at the end of the import of the registries; then it is gone."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _REGISTRIES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                _register()

            setattr(spec.loader, "exec_module", execute_and_register)  # noqa: B010
        return spec


if _REGISTRIES in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _OnImport())
