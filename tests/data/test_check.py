"""The data set check finds what is missing, on a small set of the same layout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvis_tde.data.check import DATASETS, DatasetSpec, check_dataset

SPEC = DatasetSpec({"lvis/train.json": 3, "lvis/val.json": 1}, 2, {"coco/train2017": 3})


@pytest.fixture
def root(tmp_path):
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    (tmp_path / "lvis").mkdir()
    for i in range(3):
        (tmp_path / "coco" / "train2017" / f"{i}.jpg").touch()
    for name, count in (("train", 3), ("val", 1)):
        data = {
            "images": [
                {"coco_url": f"http://host.invalid/train2017/{i}.jpg"} for i in range(count)
            ],
            "categories": [{"frequency": "r"}, {"frequency": "f"}],
            "annotations": [{}] * 5,
        }
        (tmp_path / "lvis" / f"{name}.json").write_text(json.dumps(data))
    return tmp_path


def _bad(root, **options):
    return {
        str(finding.path.relative_to(root)): finding.message
        for finding in check_dataset(root, SPEC, **options)
        if not finding.ok
    }


def test_complete_set(root):
    findings = check_dataset(root, SPEC)
    assert [finding.ok for finding in findings] == [True] * 3
    assert findings[1].message == "3 images, 2 categories, 5 annotations"


def test_missing_image(root):
    (root / "coco" / "train2017" / "2.jpg").unlink()
    bad = _bad(root)
    assert bad["coco/train2017"] == "2 images instead of 3"
    assert "1 of its images are not on disk, such as train2017/2.jpg" in bad["lvis/train.json"]
    assert "lvis/val.json" not in bad


def test_missing_folder_and_file(root):
    (root / "lvis" / "val.json").unlink()
    (root / "coco" / "train2017").rename(root / "coco" / "elsewhere")
    bad = _bad(root, read_json=False)
    assert bad == {"coco/train2017": "missing folder", "lvis/val.json": "missing file"}


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"images": [', "JSONDecodeError"),
        ('{"images": [], "categories": []}', "annotations"),
        ("[]", "TypeError"),
        ('{"images": [], "categories": [], "annotations": []}', "0 images instead of 3"),
    ],
)
def test_truncated_or_foreign_file(root, content, message):
    (root / "lvis" / "train.json").write_text(content)
    assert message in _bad(root)["lvis/train.json"]


def test_known_sets_match_the_categories_of_detectron2():
    from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES as V0_5
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES as V1

    assert DATASETS["lvis_v1"].num_categories == len(V1)
    assert DATASETS["lvis_v0.5"].num_categories == len(V0_5)


def test_command_line_names_what_is_missing(tmp_path):
    project = Path(__file__).parents[2]
    command = [sys.executable, str(project / "tools" / "check_datasets.py"), "--quick"]
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(project), *os.environ.get("PYTHONPATH", "").split()]),
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"BAD  {tmp_path / 'coco' / 'train2017'}: missing folder" in result.stdout
    assert "datasets/README.md" in result.stdout
