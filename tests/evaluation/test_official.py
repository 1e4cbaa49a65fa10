"""The private copy of the official package leaves its surroundings alone."""

import subprocess
import sys

CHECK = """
import logging, sys
import numpy as np
before, modules = set(vars(np)), set(sys.modules)
from lvis_tde.evaluation.official import load_official
official = load_official()
assert official is load_official()
assert not {"lvis", "cv2"} & (set(sys.modules) - modules)
assert not logging.getLogger().handlers
assert set(vars(np)) - before <= {"__warningregistry__"}, set(vars(np)) - before
import lvis
assert lvis.LVIS is not official.LVIS
assert sys.modules["lvis.lvis"].LVIS is lvis.LVIS
"""


def test_loading_touches_neither_numpy_nor_logging_nor_the_users_lvis():
    # A fresh interpreter: the package itself is imported without Detectron2, which configures much.
    stub = (
        "import sys, types, pathlib\n"
        "import lvis_tde\n"
        "p = types.ModuleType('lvis_tde.evaluation')\n"
        "p.__path__ = [str(pathlib.Path(lvis_tde.__file__).parent / 'evaluation')]\n"
        "sys.modules[p.__name__] = p\n"
    )
    done = subprocess.run([sys.executable, "-c", stub + CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
