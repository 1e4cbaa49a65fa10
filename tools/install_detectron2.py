#!/usr/bin/env python
"""Install Detectron2 0.6 from the Python registry, without a compiler.

The registry carries no official ``detectron2``. It has ``pb1-detectron2``, whose Python files are
those of the official tag v0.6 but which lacks the C++ sources and so cannot be built. This tool
downloads it, checks its hash, applies the rules in ``RULES`` (v0.6 predates NumPy 1.24, Pillow 10
and setuptools 82), packs the result as an ordinary wheel and installs that with pip, so
``pip uninstall detectron2`` works as usual.

A Detectron2 that already imports is left alone. Mask R-CNN on LVIS needs none of the compiled
operators: RoIAlign and NMS come from torchvision. Models that do (deformable convolution, rotated
boxes) need the official build:
https://detectron2.readthedocs.io/en/latest/tutorials/install.html
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
OFFICIAL = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"

# Small projects that the official setup.py installs inside the package.
PROJECTS = {
    "point_rend": "PointRend/point_rend",
    "deeplab": "DeepLab/deeplab",
    "panoptic_deeplab": "Panoptic-DeepLab/panoptic_deeplab",
}

# What v0.6 imports in practice. Its own pins (black==21.4b2, iopath<0.1.10) exclude current
# releases that work; `future` and `pydot` served caffe2 export only, which current torch dropped.
REQUIREMENTS = (
    "torch>=1.8",
    "torchvision>=0.9",
    "numpy",
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "black",
    "packaging",
)

STAND_IN = f'''"""Stand-in for the compiled operators, which this wheel does not contain."""
import torch


class CompiledOpMissing(RuntimeError, AttributeError):
    """Raised on first use of a compiled operator; also an AttributeError, so hasattr() works."""


def _missing(name):
    return CompiledOpMissing(
        f"detectron2._C.{{name}} is a compiled operator, and this Detectron2 0.6 was installed "
        "without them. Uninstall it (pip uninstall detectron2) and install the official build: "
        "{OFFICIAL}"
    )


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise _missing(name)


def get_compiler_version():
    return "not compiled (pure-Python wheel)"


get_cuda_version = get_compiler_version


def has_cuda():
    return False


def _nms_rotated(boxes, scores, iou_threshold):
    raise _missing("nms_rotated")


# The one operator that is called through torch.ops instead of this module.
_library = torch.library.Library("detectron2", "DEF")
_library.define("nms_rotated(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
_library.impl("nms_rotated", _nms_rotated, "CompositeImplicitAutograd")
'''


@dataclass(frozen=True)
class Rule:
    """One modernization: in ``files``, replace every match of the regex ``pattern``."""

    why: str
    files: tuple
    pattern: str
    replacement: str


RULES = (
    Rule(
        why="Pillow 10 removed Image.LINEAR, which was an alias of Image.BILINEAR",
        files=("data/transforms/transform.py",),
        pattern=r"\bImage\.LINEAR\b",
        replacement="Image.BILINEAR",
    ),
    Rule(
        why="NumPy 1.24 removed np.bool, np.int, np.float and np.object, aliases of the builtins",
        files=(
            "data/build.py",
            "evaluation/pascal_voc_evaluation.py",
            "evaluation/sem_seg_evaluation.py",
            "structures/masks.py",
            "utils/video_visualizer.py",
            "utils/visualizer.py",
        ),
        pattern=r"\bnp\.(bool|int|float|object)\b",
        replacement=r"\1",
    ),
    Rule(
        why="setuptools 82 removed pkg_resources (import)",
        files=("model_zoo/model_zoo.py",),
        pattern=r"(?m)^import pkg_resources\n",
        replacement="",
    ),
    Rule(
        why="setuptools 82 removed pkg_resources (use); the configs lie beside model_zoo.py",
        files=("model_zoo/model_zoo.py",),
        pattern=r"pkg_resources\.resource_filename\(\s*"
        r'"detectron2\.model_zoo", os\.path\.join\("configs", config_path\)\s*\)',
        replacement='os.path.join(os.path.dirname(__file__), "configs", config_path)',
    ),
)


def apply_rules(package: Path, rules=RULES) -> None:
    """Rewrites the unpacked ``detectron2/`` folder in place.

    Raises:
        RuntimeError: if a rule matches nothing in one of its files, or if any other file still
            matches it: either way the sources are not the ones the rules were written for.
    """
    for rule in rules:
        listed = {package / name for name in rule.files}
        for path in sorted(listed):
            text, count = re.subn(rule.pattern, rule.replacement, path.read_text("utf-8"))
            if count == 0:
                raise RuntimeError(f"Rule matched nothing in {path.name} ({rule.why}).")
            path.write_text(text, "utf-8")
        for path in package.rglob("*.py"):
            if re.search(rule.pattern, path.read_text("utf-8")):
                raise RuntimeError(f"{path.relative_to(package)} is not covered by: {rule.why}.")


def check_hash(archive: Path, expected: str = SHA256) -> None:
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != expected:
        raise RuntimeError(f"{archive.name} has SHA-256 {actual}, expected {expected}.")


def state(python: str) -> str:
    """ "absent", "ok", or the error with which an installed Detectron2 fails to import."""
    code = (
        "import importlib.util as u, sys\n"
        "sys.exit(3) if u.find_spec('detectron2') is None else None\n"
        "import detectron2.modeling, detectron2.engine, detectron2.model_zoo\n"
        "print('Detectron2', detectron2.__version__, 'at', detectron2.__path__[0])"
    )
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
    if result.returncode == 3:
        return "absent"
    if result.returncode == 0:
        print(result.stdout.strip())
        return "ok"
    return result.stderr.strip().splitlines()[-1]


def download(python: str, folder: Path) -> Path:
    """Downloads the source archive; pip 26 and later refuse it, so an older pip is borrowed."""
    helpers = folder / "helpers"
    pip = [python, "-m", "pip"]
    quiet = ["--quiet", "--disable-pip-version-check"]
    needed = ["pip<26", "wheel", "setuptools<82"]
    subprocess.run([*pip, "install", *quiet, "--target", str(helpers), *needed], check=True)
    # The archive's setup.py imports torch, even for a download: hence no build isolation.
    flags = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(folder)]
    subprocess.run(
        [*pip, "download", *quiet, *flags, SOURCE],
        check=True,
        env={**os.environ, "PYTHONPATH": str(helpers)},
    )
    return next(folder.glob("pb1*.tar.gz"))


def build_wheel(python: str, archive: Path, folder: Path) -> Path:
    """Unpacks, modernizes and packs ``archive`` as ``detectron2-0.6-py3-none-any.whl``."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:  # Python < 3.9.17; the hash was checked
            tar.extractall(folder)
    source = next(path.parent for path in folder.glob("*/setup.py"))
    root = folder / "wheel"
    package = root / "detectron2"
    shutil.copytree(source / "detectron2", package)
    for name, path in PROJECTS.items():
        shutil.copytree(source / "projects" / path, package / "projects" / name)
    apply_rules(package)
    (package / "_C.py").write_text(STAND_IN, "utf-8")

    info = root / "detectron2-0.6.dist-info"
    info.mkdir()
    shutil.copy(source / "LICENSE", info)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n"
        "Summary: Detectron2 0.6 for current Python, without compiled operators\n"
        "Home-page: https://github.com/facebookresearch/detectron2\nLicense: Apache-2.0\n"
        + "".join(f"Requires-Dist: {requirement}\n" for requirement in REQUIREMENTS),
        "utf-8",
    )
    (info / "WHEEL").write_text(
        "Wheel-Version: 1.0\nGenerator: install_detectron2\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        "utf-8",
    )
    subprocess.run(
        [python, "-m", "wheel", "pack", str(root), "--dest-dir", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(folder / "helpers")},
    )
    return next(folder.glob("detectron2-*.whl"))


def make_wheel(python: str, folder: Path) -> Path:
    """Downloads and packs Detectron2 in an empty folder."""
    archive = download(python, folder)
    check_hash(archive)
    return build_wheel(python, archive, folder)


def install(python: str) -> None:
    current = state(python)
    if current == "ok":
        return
    if current != "absent":
        raise RuntimeError(
            f"Detectron2 is installed but does not import: {current}\n"
            "Repair it, or `pip uninstall detectron2` and run this again."
        )
    if subprocess.run([python, "-c", "import torch, torchvision"], cwd="/").returncode:
        raise RuntimeError("Install torch and torchvision first: pip install torch torchvision")
    with tempfile.TemporaryDirectory() as name:
        wheel = make_wheel(python, Path(name))
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, str(wheel)], check=True)
    current = state(python)
    if current != "ok":
        raise RuntimeError(f"Detectron2 was installed but does not import: {current}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter to install into")
    parser.add_argument("--wheel", metavar="FOLDER", help="leave the wheel there in its place")
    args = parser.parse_args()
    try:
        if args.wheel:
            with tempfile.TemporaryDirectory() as name:
                shutil.copy(make_wheel(args.python, Path(name)), args.wheel)
        else:
            install(args.python)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"install_detectron2: {error}")


if __name__ == "__main__":
    main()
