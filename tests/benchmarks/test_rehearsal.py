"""The rehearsal's set is as LVIS's, its steps end well, and its monitor sees all processes."""

import argparse
import json
import os
import sys
from collections import defaultdict

import numpy as np
import pytest
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from benchmarks import rehearsal
from benchmarks.rehearsal_data import class_counts, write_detections, write_set
from benchmarks.rehearsal_monitor import measure
from lvis_tde.data.frequency import frequency_group
from lvis_tde.evaluation import Detections, GroundTruth
from lvis_tde.evaluation.selection import select


def test_counts_are_those_of_lvis():
    groups = [c["frequency"] for c in sorted(LVIS_CATEGORIES, key=lambda c: c["id"])]
    counts = class_counts()
    assert [frequency_group(n) for n in counts.tolist()] == groups
    assert counts.sum() == 360_952 and counts.max() == 1977 and counts.min() == 1


def test_the_set_and_detections_of_it(tmp_path):
    pool, val = write_set(tmp_path / "datasets", 0.001, 0)
    for name in ("train", "val"):
        file = tmp_path / "datasets" / "lvis" / f"lvis_v1_{name}.json"
        content = json.loads(file.read_text("utf-8"))
        for image in content["images"]:
            folder, picture = image["coco_url"].split("/")[-2:]
            assert (tmp_path / "datasets" / "coco" / folder / picture).is_file()
        images_of = defaultdict(set)
        for annotation in content["annotations"]:
            images_of[annotation["category_id"]].add(annotation["image_id"])
        if name == "train":
            wanted = np.clip(np.round(class_counts() * 100 / 100_170), 1, None)
            assert [len(images_of[i + 1]) for i in range(1203)] == wanted.tolist()
            assert [c["image_count"] for c in content["categories"]] == wanted.tolist()
    results = tmp_path / "results.json"
    write_detections(results, val, pool, 0, per_image=50)
    detections, truth = Detections.from_file(results), GroundTruth.load(file)
    assert len(detections) == 50 * val.number
    # Every mask is one, and of its image's size.
    assert len(select(truth, detections, "segm", 300, None).index) > 100


def test_the_monitor_sees_children(tmp_path):
    child = "import time; a = b'1' * 150_000_000; time.sleep(1.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    commands = [[sys.executable, "-c", code] for code in (parent, child, "raise SystemExit(3)")]
    if not os.path.exists("/proc/self/smaps_rollup"):
        pytest.skip("no /proc")
    taken = measure(commands[:2], tmp_path / "log", dict(os.environ), tmp_path)
    assert taken.returncodes == [0, 0] and taken.processes == 3
    assert taken.peak > 300e6 > 200e6 > taken.largest > 150e6
    assert measure(commands[2:], tmp_path / "log", dict(os.environ), tmp_path).returncodes == [3]


@pytest.mark.slow
def test_all_steps_of_a_tiny_rehearsal(tmp_path):
    parser = argparse.ArgumentParser()
    rehearsal.add_arguments(parser)
    result = rehearsal.run(parser.parse_args(["--tiny", "--output", str(tmp_path)]))
    assert result["faults"] == []
    steps = result["steps"][1:]
    assert len(steps) == 7 and all(step["peak"] > 1e7 for step in steps)
    # Both processes of training; their workers live too short to be counted for sure.
    assert steps[2]["processes"] >= 2 and steps[2]["written"] > 1e6
    numbers = json.loads((tmp_path / "evaluated.json").read_text("utf-8"))
    assert all(20 < numbers[task]["metrics"]["AP"] < 100 for task in ("bbox", "segm"))
    assert not (tmp_path / "datasets").exists() and not (tmp_path / "detections.json").exists()
    table = rehearsal.markdown(result)
    assert table.count("\n| ") == 9 and "FAULT" not in table
