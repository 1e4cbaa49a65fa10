"""What ``import lvis_tde`` alone does."""

import subprocess
import sys

CODE = """
import sys, lvis_tde
from detectron2.modeling import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
for name in ("TDEROIHeads", "TDECascadeROIHeads", "TDERes5ROIHeads"):
    assert name in ROI_HEADS_REGISTRY, name
for name in ("SelectedClassMaskRCNNConvUpsampleHead", "CosineMaskRCNNConvUpsampleHead"):
    assert name in ROI_MASK_HEAD_REGISTRY, name
# These cost seconds, and only some commands need them.
assert "detectron2.evaluation" not in sys.modules, "detectron2.evaluation"
assert "lvis_tde.calibration" not in sys.modules, "calibration"
assert all(hasattr(lvis_tde, name) for name in lvis_tde.__all__)
"""


def test_registers_the_heads_and_imports_no_more_than_they_need():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
