"""``lvis_tde.posthoc`` in a process that has torch, and neither Detectron2 nor what it brings."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
class Block:
    blocked = {"detectron2", "fvcore", "iopath", "lvis", "pycocotools", "cv2", "matplotlib"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            name = name.partition(".")[0]
            raise ImportError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Block())
from lvis_tde import posthoc
import torch
logits = torch.tensor([[1.0, 2.0, 0.5]])
probs = posthoc.norcal(logits, [100, 1], 1.0)
statistics = posthoc.Statistics(counts=[100, 1])
composition = posthoc.compose(posthoc.Settings(norcal=1.0, background="joint"), statistics)
assert torch.allclose(composition(logits), probs)
assert all(hasattr(posthoc, name) for name in posthoc.__all__)
assert not any(name.partition(".")[0] in Block.blocked for name in sys.modules)
"""


def test_posthoc_needs_torch_alone():
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
