"""A folder as a user has it, with all that can be wrong in it, and commands run in it."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT, TINY
from detectron2.data import MetadataCatalog
from PIL import Image

from lvis_tde import cli
from lvis_tde.checkpointer import save_checkpoint
from lvis_tde.engine import YacsRecipe, load_config

LAZY = """
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
train = dict(init_checkpoint="", output_dir="out", device="cpu")
"""


class RunsCode:
    """What a checkpoint of a stranger may hold."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def make_playground(root, tiny_set):
    """Data, configs and checkpoints, good and bad, each named in the tests' commands.

    Args:
        root: an empty folder.
        tiny_set: registered names of the generated set.
    """
    train = MetadataCatalog.get(tiny_set["train"])
    shutil.copytree(train.image_root, root / "images")
    content = json.loads(Path(train.json_file).read_text())
    write = {"train.json": content}
    val = json.loads(Path(MetadataCatalog.get(tiny_set["val"]).json_file).read_text())
    write["val.json"] = val
    first = content["images"][0]
    write["no_images.json"] = {**content, "images": [], "annotations": []}
    write["no_categories.json"] = {**content, "categories": []}
    write["of_a_list.json"] = content["annotations"]
    write["unknown_image.json"] = {
        **content,
        "annotations": [{**content["annotations"][0], "image_id": 999999}],
    }
    write["other_size.json"] = {
        **content,
        "images": [{**first, "width": 65}, *content["images"][1:]],
    }
    for name, value in write.items():
        (root / name).write_text(json.dumps(value))
    (root / "empty.json").touch()
    (root / "binary.json").write_bytes(bytes(range(256)))
    (root / "cut.json").write_text(json.dumps(content)[:500])
    (root / "nothing").mkdir()
    # The first image is the one that a sample always opens.
    shutil.copytree(root / "images", root / "broken")
    victim = next((root / "broken").rglob(Path(first["coco_url"]).name))
    victim.write_bytes(victim.read_bytes()[:50])
    (root / "photo.png").parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((64, 80, 3), 90, np.uint8)).save(root / "photo.png")
    (root / "text.png").write_text("no picture")

    for name in ("deconfound", "softmax"):
        options = [*TINY, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "OUTPUT_DIR", "out"]
        sets = ["DATASETS.TRAIN", (), "DATASETS.TEST", (), "SOLVER.MAX_ITER", 2, "SEED", 0]
        cfg = load_config(str(ROOT / "configs" / f"demo_{name}.yaml"), [*options, *sets])
        (root / f"{name}.yaml").write_text(cfg.dump())
        torch.manual_seed(0)
        model = YacsRecipe(cfg).build_model()
        if name == "deconfound":
            save_checkpoint(model, root / "no_mean.pth")
            model.roi_heads.box_predictor.feature_mean.mean.normal_()
            _other_checkpoints(model, root)
        save_checkpoint(model, root / f"{name}.pth")
    whole = (root / "deconfound.pth").read_bytes()
    (root / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (root / "empty.pth").touch()
    (root / "text.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    (root / "json.pth").write_text(json.dumps(content))
    (root / "zeros.pth").write_bytes(bytes(1000))
    (root / "folder.pth").mkdir()
    torch.save({"model": [1, 2]}, root / "list.pth")
    torch.save({"model": {"a": 1}}, root / "numbers.pth")
    torch.save({"model": {"x": torch.zeros(2)}}, root / "foreign.pth")
    torch.save({"model": {}, "x": RunsCode(root / "code_ran")}, root / "code.pth")
    (root / "code.pkl").write_bytes(pickle.dumps(RunsCode(root / "code_ran")))
    (root / "bad.yaml").write_text("MODEL: [1, 2\n")
    (root / "words.yaml").write_text("just words\n")
    (root / "scalar.yaml").write_text("MODEL: 3\n")
    (root / "unknown.yaml").write_text("MODEL:\n  TDE:\n    ALPA: 1\n")
    (root / "none.yaml").write_text("MODEL:\n  TDE:\n    ALPHA: null\n")
    (root / "circle.yaml").write_text("_BASE_: circle.yaml\n")
    (root / "orphan.yaml").write_text("_BASE_: gone.yaml\n")
    (root / "lazy.py").write_text(LAZY)
    (root / "syntax.py").write_text("model = (\n")
    (root / "file").write_text("a file where a folder should be")


def _other_checkpoints(model, root):
    state = model.state_dict()
    classes = {
        key: torch.cat([value, value[:2]]) if value.shape[:1] in ((7,), (8,)) else value
        for key, value in state.items()
    }
    torch.save({"model": classes}, root / "other_classes.pth")
    depth = {key: value for key, value in state.items() if ".res4." not in key}
    torch.save({"model": depth}, root / "other_depth.pth")


def snapshot(folder):
    """Every file below a folder, with what would change if it were written to."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(arguments, capsys, monkeypatch):
    """``lvis-tde`` in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["lvis-tde"])
    capsys.readouterr()
    code = 0
    try:
        cli.main([str(one) for one in arguments])
    except SystemExit as ended:
        code = ended.code or 0
    printed = capsys.readouterr()
    return code, printed.out, printed.err
