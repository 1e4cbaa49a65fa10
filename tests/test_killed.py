"""kill -9 at random moments: each file is whole or absent, and the next call ends as ever.

The commands run in forks of one process that has imported everything, so that a moment is one of
the work and not of the imports.
"""

import io
import json
import multiprocessing
import os
import random
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from wrong_turns_util import snapshot

from lvis_tde import cli
from lvis_tde.checkpointer import read_checkpoint
from lvis_tde.engine import load_config

MODEL = ["--config-file", "deconfound.yaml"]
TRAIN = ["--train-data", "train.json", "images"]
TEST = ["--test-data", "val.json", "images"]
WEIGHTS = ["MODEL.WEIGHTS", "deconfound.pth"]
SAVES = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "1"]
# {out}: the output folder; the second of a pair is the next call, where it differs.
COMMANDS = {
    "training": (
        ["train", *MODEL, *TRAIN, "OUTPUT_DIR", "{out}", *SAVES],
        ["train", "--resume", *MODEL, *TRAIN, "OUTPUT_DIR", "{out}", *SAVES],
    ),
    "estimate": (
        ["estimate", "--output", "{out}", "--max-batches", "4", "--config-file", "softmax.yaml",
         *TRAIN, "SEED", "0", "MODEL.WEIGHTS", "softmax.pth"],
    ),
    "sweep": (
        ["sweep", "--alphas", "0,1", *MODEL, *TRAIN, *TEST, "OUTPUT_DIR", "{out}", *WEIGHTS],
    ),
    "evaluation": (
        ["train", "--eval-only", *MODEL, *TEST, "OUTPUT_DIR", "{out}", *WEIGHTS],
    ),
    "report": (
        ["report", "val.json", "found.json", "--output", "{out}", "--bootstrap", "200"],
    ),
    "sweep over methods": (
        ["sweep", "--methods", "tde,tau_norm", *MODEL, *TRAIN, "--calib-data", "val.json", "images",
         "--no-report", "OUTPUT_DIR", "{out}", *WEIGHTS],
    ),
    "export": (
        ["export", *MODEL, "--image", "photo.png", "--output", "{out}", *WEIGHTS],
    ),
    "generation": (
        ["make-data", "--root", "{out}", "--num-classes", "4", "--num-train", "12",
         "--num-calib", "4", "--num-val", "4", "--image-size", "48"],
    ),
}  # fmt: skip
# What differs between two runs of the same: times.
TIMES = ("seconds",)


def work(arguments, folder, home, output):
    """In a process of its own."""
    os.chdir(folder)
    os.environ["HOME"] = home
    torch.set_num_threads(1)
    sys.argv, sys.stdout = ["lvis-tde"], open(os.devnull, "w")
    sys.stderr = open(output, "w")
    try:
        cli.main(arguments)
    except SystemExit as ended:
        sys.stderr.flush()
        os._exit(ended.code or 0)


@pytest.fixture(scope="module")
def start(playground, tmp_path_factory):
    context = multiprocessing.get_context("forkserver")
    home = tmp_path_factory.mktemp("home")
    truth = json.loads((playground / "val.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    found = [{**{key: one[key] for key in keys}, "score": 0.5} for one in truth]
    (playground / "found.json").write_text(json.dumps(found))

    def begin(arguments, out):
        words = [word.replace("{out}", str(out)) for word in arguments]
        process = context.Process(
            target=work, args=(words, str(playground), str(home), str(home / "stderr"))
        )
        process.start()
        return process

    def end(process):
        process.join()
        assert process.exitcode == 0, (home / "stderr").read_text()[-2000:]

    return begin, end


def whole(folder):
    """The content of every file that has its final name; fails if one is a part."""
    found = {}
    for name in snapshot(folder):
        path = folder / name
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue  # what is not finished
        if path.suffix == ".pth":
            found[name] = read_checkpoint(path)["model"]
        elif name == "last_checkpoint":
            assert (folder / path.read_text()).is_file()
        elif path.suffix == ".json" and name != "metrics.json":  # lines, written as they come
            content = json.loads(path.read_text())
            for key in TIMES:
                content.pop(key, None) if isinstance(content, dict) else None
            found[name] = content
        elif path.suffix in (".png", ".jpg"):
            found[name] = np.asarray(Image.open(path))
        elif path.suffix == ".ts":
            found[name] = len(list(torch.jit.load(io.BytesIO(path.read_bytes())).code))
        elif path.suffix == ".onnx":
            found[name] = path.stat().st_size
        elif path.suffix == ".yaml":
            load_config(str(path))
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
    return found


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return np.array_equal(one, other)


@pytest.mark.parametrize("kills", [2, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(name, kills, start, tmp_path):
    begin, end = start
    first, *again = COMMANDS[name]
    began = time.monotonic()
    end(begin(first, tmp_path / "reference"))
    seconds = time.monotonic() - began
    moments = random.Random(f"{name} {kills}")
    for _ in range(kills):
        process = begin((*again, first)[0], tmp_path / "killed")
        time.sleep(moments.uniform(0.1, 1.0) * seconds)
        process.kill()
        process.join()
        if (tmp_path / "killed").is_dir():
            whole(tmp_path / "killed")
    end(begin((*again, first)[0], tmp_path / "killed"))
    expected, found = whole(tmp_path / "reference"), whole(tmp_path / "killed")
    assert expected.keys() <= found.keys() and expected
    for file in expected:
        assert same(expected[file], found[file]), file
