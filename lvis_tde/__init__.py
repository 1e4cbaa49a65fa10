"""Long-tailed instance segmentation for Detectron2 with the total direct effect (TDE).

Tang, Huang and Zhang, "Long-Tailed Classification by Keeping the Good and Removing the Bad
Momentum Causal Effect", NeurIPS 2020. Importing the package registers its ROI heads.

Without Detectron2 the method itself (:mod:`lvis_tde.layers`) is there, and without torch, too,
the evaluation of result files (:mod:`lvis_tde.evaluation`); the names below that need more say so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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

_INSTALL = {
    "torch": "pip install torch torchvision",
    "detectron2": "python tools/install_detectron2.py in a clone of lvis_tde, or Detectron2's "
    "own instructions",
}
_absent: list[str] = []


@contextlib.contextmanager
def _where_installed() -> Iterator[None]:
    """Goes on where torch or Detectron2 is not installed, and nowhere else."""
    try:
        yield
    except ImportError as error:
        if error.name not in _INSTALL:
            raise
        _absent.append(error.name)


with _where_installed():
    from .layers import (
        CosineMultiHeadClassifier,
        RunningFeatureMean,
        exempt_background,
        tde_logits,
    )
with _where_installed():
    from .config import add_tde_config
    from .modeling.fast_rcnn import TDEFastRCNNOutputLayers
    from .modeling.roi_heads import TDECascadeROIHeads, TDERes5ROIHeads, TDEROIHeads
    from .modeling.swap import swap_box_predictor


def __getattr__(name: str) -> Any:
    if name in __all__ and _absent:
        cures = "; ".join(f"{package}: {_INSTALL[package]}" for package in dict.fromkeys(_absent))
        raise ImportError(f"lvis_tde.{name} needs what is not installed ({cures})", name=_absent[0])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
