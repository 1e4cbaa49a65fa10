"""What works where torch or Detectron2 is not installed, in processes that cannot import them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lvis_table import A, B, C, dataset, found, image, truth

from lvis_tde.evaluation import evaluate_lvis

ROOT = Path(__file__).parents[2]
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code, blocked, *arguments):
    """What a process prints that cannot import some packages."""
    command = [sys.executable, "-W", "ignore", "-c", BLOCK.format(blocked=blocked) + code]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_result_files_are_evaluated_and_reported(tmp_path):
    annotations = dataset(
        [image(1), image(2)],
        [truth(A, 1), truth(B, 2), truth(C, 3), truth(A, 3, 2)],
        "rcf",
    )
    results = [found(A, 0.9, 1), found(B, 0.8, 2), found(C, 0.7, 2), found(A, 0.6, 3, 2)]
    for name, content in (("gt", annotations), ("found", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    code = """
import json
from pathlib import Path
import lvis_tde
from lvis_tde.evaluation import Detections, GroundTruth, evaluate_lvis
from lvis_tde.evaluation.confusion import rare_confusions
from lvis_tde.evaluation.report import write_report
folder = Path(sys.argv[1])
truth = GroundTruth.load(folder / "gt.json")
found = Detections.from_file(folder / "found.json")
result = evaluate_lvis(truth, found, "segm")
assert evaluate_lvis(folder / "gt.json", found, engine="lvis").metrics["AP"] > 0
page = write_report(folder / "report", {"a": result}, {"a": rare_confusions(truth, found)})
import lvis_tde.visualization.charts
from lvis_tde import cli
files = [str(folder / name) for name in ("gt.json", "found.json")]
for arguments in (["evaluate", *files], ["report", *files, "--output", str(folder / "page")]):
    try:
        cli.main(arguments)
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
assert not {"torch", "detectron2"} & {name.partition(".")[0] for name in sys.modules}
print(json.dumps([str(page), result.metrics]))
"""
    printed = run(code, {"torch", "detectron2"}, tmp_path)
    page, metrics = json.loads(printed.splitlines()[-1])
    assert f"{metrics['APr']:.2f}" in printed  # by lvis-tde evaluate
    assert metrics == evaluate_lvis(annotations, results, "segm").metrics
    assert 0 < metrics["AP"] < 100 and "<svg" in Path(page).read_text()


def test_the_method_needs_torch_alone():
    code = """
import torch
from lvis_tde import CosineMultiHeadClassifier, RunningFeatureMean, exempt_background, tde_logits
from lvis_tde.layers import CosineMultiHeadClassifier as same
assert same is CosineMultiHeadClassifier
import lvis_tde
try:
    lvis_tde.TDEROIHeads
except ImportError as error:
    print(error)
assert not any(name.partition(".")[0] == "detectron2" for name in sys.modules)
"""
    message = run(code, {"detectron2"})
    assert "TDEROIHeads" in message and "install_detectron2" in message
    assert "pip install torch" not in message


def test_names_say_what_to_install():
    code = """
import lvis_tde
for name in lvis_tde.__all__:
    try:
        exec(f"from lvis_tde import {name}")
    except ImportError as error:
        assert name in str(error) and "pip install torch" in str(error), error
    else:
        raise SystemExit(f"{name} without torch")
try:
    lvis_tde.no_such_name
except AttributeError as error:
    print(error, lvis_tde.__version__)
"""
    assert "no_such_name" in run(code, {"torch", "detectron2"})


def test_other_import_errors_are_not_hidden():
    with pytest.raises(AssertionError, match="fvcore is blocked|torchvision is blocked"):
        run("import lvis_tde; lvis_tde.TDEROIHeads", {"fvcore", "torchvision"})
