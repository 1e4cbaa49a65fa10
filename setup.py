"""Packaging of lvis_tde. Detectron2 is installed beside it, see README.md, Install."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "lvis_tde/__init__.py").read_text("utf-8"))

EXPORT = ["onnx>=1.16", "onnxruntime>=1.17"]
DIGITS = ["scikit-learn>=1.0"]
TEST = ["pytest>=7", "pytest-xdist>=3", "hypothesis>=6", *EXPORT, *DIGITS]

setup(
    name="lvis-tde",
    version=VERSION.group(1),
    description="Long-tailed instance segmentation for Detectron2: total direct effect (TDE) heads",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=["lvis_tde", "lvis_tde.*"]), "lvis_tde.tools"],
    # The folder stays where Detectron2's users look for it; installed it is part of the package.
    package_dir={"lvis_tde.tools": "tools"},
    package_data={
        "lvis_tde": ["py.typed"],
        "lvis_tde.data.generation": ["glyphs.csv", "lvis_v1_image_counts.txt"],
        "lvis_tde.evaluation.report": ["page.html"],
        "lvis_tde.experiments.study": ["page.html"],
    },
    entry_points={"console_scripts": ["lvis-tde = lvis_tde.cli:main"]},
    python_requires=">=3.9",
    # detectron2 is absent on purpose: the registry has no official release under that name.
    install_requires=[
        "torch>=2.3",  # the first that works with NumPy 2, which current opencv-python needs
        "torchvision>=0.18",
        "numpy>=1.26",
        "pycocotools>=2.0.6",
        "lvis>=0.5.3",
        "fvcore>=0.1.5.post20210812",
        "opencv-python>=4.6",
        "matplotlib>=3.5",
        "Pillow>=9.1",
    ],
    extras_require={
        "export": EXPORT,
        "digits": DIGITS,
        "test": TEST,
        "dev": [*TEST, "black>=24", "isort>=5", "ruff>=0.6", "mypy>=1.11"],
    },
)
