"""kill -9 at random moments of a study: started again it ends with the same tables."""

import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tell_boxes
from experiments_util import IN_FILE, SMALL

from lvis_tde.experiments.study.file import read_study
from lvis_tde.experiments.study.run import run_study

CONFIGS = Path(__file__).parents[2] / "configs"
CONTENT = {
    "set": {"kind": "shapes", **SMALL},
    "recipes": {name: {"config": f"demo_{name}.yaml"} for name in ("softmax", "deconfound")},
    "methods": ["tde", "norcal"],
    "pairs": [["deconfound/tde", "softmax/factual"]],
    "orders": [{"title": "t", "runs": [["softmax/factual"], ["deconfound/tde"]]}],
    "opts": [
        *IN_FILE,
        *("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 1),
    ],
    "mean_batches": 4,
}
# Times; and what training recorded is smoothed over the iterations since its start.
DIFFER = ("date", "seconds", "curves")


def work(file, output, log):
    """In a process of its own, whose messages are of no interest unless it fails."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    torch.set_num_threads(1)
    tell_boxes(pytest.MonkeyPatch())
    outcome = run_study(read_study(file, configs=CONFIGS), output, jobs=0)
    os._exit(0 if not outcome.failed else 1)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed_study")
    (folder / "study.yaml").write_text(yaml.safe_dump(CONTENT, sort_keys=False))
    context = multiprocessing.get_context("forkserver")

    def begin(output):
        arguments = (str(folder / "study.yaml"), str(output), str(folder / "log"))
        process = context.Process(target=work, args=arguments)
        process.start()
        return process

    def end(process):
        process.join()
        assert process.exitcode == 0, (folder / "log").read_text()[-3000:]

    return begin, end


def tables(output):
    found = json.loads((output / "study.json").read_text())
    return {key: value for key, value in found.items() if key not in DIFFER}


def test_killed_and_started_again_a_study_ends_with_the_same_tables(start, tmp_path):
    begin, end = start
    began = time.monotonic()
    end(begin(tmp_path / "reference"))
    seconds = time.monotonic() - began
    moments = random.Random("study")
    for _ in range(2):
        process = begin(tmp_path / "killed")
        time.sleep(moments.uniform(0.2, 0.9) * seconds)
        process.kill()
        process.join()
        for unit in (tmp_path / "killed").glob("seed*/*/unit.json"):
            assert json.loads(unit.read_text())["runs"]
    end(begin(tmp_path / "killed"))
    assert tables(tmp_path / "killed") == tables(tmp_path / "reference")
    assert (tmp_path / "killed" / "tables.md").read_text() == (
        tmp_path / "reference" / "tables.md"
    ).read_text()
