"""What the ways back lead to: nothing of the user's is lost, and the console stays readable."""

import errno
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from detectron2.engine import default_argument_parser
from PIL import Image
from wrong_turns_util import snapshot

from lvis_tde import cli
from lvis_tde.arguments import argument_parser
from lvis_tde.checkpointer import SafeCheckpointer, read_checkpoint, save_checkpoint
from lvis_tde.data.check import DATASETS
from lvis_tde.data.classification.check import CLASSIFICATION_SETS
from lvis_tde.data.files import atomic_path, write_bytes, write_text, write_with
from lvis_tde.engine import YacsRecipe, load_config
from lvis_tde.engine.lock import FILE, check_unlocked, locked
from lvis_tde.evaluation.result import percent
from lvis_tde.experiments.demo_parts import DEFAULT_PARTS, PARTS
from lvis_tde.export import export_onnx
from lvis_tde.layers.functional import check_alpha

MODEL = ["--config-file", "deconfound.yaml"]
TRAIN = ["--train-data", "train.json", "images"]
TEST = ["--test-data", "val.json", "images"]
OUT = ["OUTPUT_DIR", "{out}"]
WEIGHTS = ["MODEL.WEIGHTS", "deconfound.pth"]
TOOLS = [name for name, _ in cli.COMMANDS.values()] + ["run_demo", "benchmark"]


def words(out):
    return [line.split()[0] for line in out.splitlines() if line.strip()]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--check", *MODEL, *TRAIN, *TEST, *OUT],
        ["train", "--check", "--eval-only", *MODEL, *TEST, *OUT, *WEIGHTS],
        ["sweep-alpha", "--check", *MODEL, *TRAIN, *TEST, *OUT, *WEIGHTS],
        ["sweep-alpha", "--check", "--calibrate", "0.5", *MODEL, *TRAIN, *OUT, *WEIGHTS],
        ["estimate", "--check", "--output", "{out}", "--config-file", "softmax.yaml", *TRAIN,
         "MODEL.WEIGHTS", "softmax.pth"],
    ],
    ids=["train", "evaluation", "sweep", "calibrate", "estimate"],
)  # fmt: skip
def test_check_is_a_table_and_writes_nothing(arguments, command, playground, tmp_path):
    before = snapshot(playground)
    code, out, err = command(*arguments)
    assert (code, err) == (0, ""), (out, err)
    rows = [line for line in out.splitlines() if re.match("ok|warning|error", line)]
    checked = [row.split()[1] for row in rows]
    assert {"device", "input", "data", "model", "weights", "output"} <= set(checked)
    assert ("schedule" in checked) == (arguments[0] == "train" and "--eval-only" not in arguments)
    assert ("metric" in checked) == (arguments[0] == "sweep-alpha")
    assert out.splitlines()[-1].startswith("0 errors")
    assert snapshot(playground) == before and not (tmp_path / "out").exists()


def test_check_goes_on_after_an_error_and_tells_all(command):
    code, out, err = command(
        "sweep-alpha", "--check", "--metric", "segm/APx",
        *MODEL, "--train-data", "train.json", "nothing",
        "--test-data", "val.json", "broken", *OUT, "MODEL.WEIGHTS", "text.pth",
    )  # fmt: skip
    assert code == 2 and err == ""
    errors = [line.split()[1] for line in out.splitlines() if line.startswith("error")]
    assert errors == ["weights", "metric"]  # the images of the test set can be read
    assert out.splitlines()[-1].startswith("2 errors")


def test_warnings_of_a_check_are_no_errors(command):
    code, out, _ = command(
        "train", "--check", *MODEL, *TRAIN, *TEST, *OUT, "MODEL.WEIGHTS", "other_classes.pth"
    )
    assert code == 0
    (row,) = (line for line in out.splitlines() if line.startswith("warning"))
    assert "have another shape" in row and "of 95 parameters" in row


def test_partial_weights_for_those_who_mean_them(command):
    code, out, err = command(
        "train", "--check", "--eval-only", "--allow-partial-weights", *MODEL, *TEST, *OUT,
        "MODEL.WEIGHTS", "other_classes.pth",
    )  # fmt: skip
    assert code == 0 and "warning  weights" in out, (out, err)


def test_training_evaluation_and_resumption(command, tmp_path):
    """The console shows progress and results, log.txt has the rest; paths are the last lines."""
    code, out, err = command("train", *MODEL, *TRAIN, *TEST, *OUT, "MODEL.TDE.ALPHA", "0")
    assert (code, err) == (0, ""), err
    folder = tmp_path / "out"
    log = (folder / "log.txt").read_text()
    assert len(out.splitlines()) < 30 < 200 < len(log.splitlines())
    assert "Training from iteration 0 to 2" in out
    for done, kind in (("1/2", "training"), ("2/2", "training"), ("0/", "evaluation")):
        assert any(done in line for line in out.splitlines() if f"{kind} " in line), kind
    assert "Environment info" in log and "Environment info" not in out
    assert "-100" not in out and "n/a" in out  # there are no frequent classes
    assert str(folder / "model_final.pth") in out.split("Wrote ")[-1]
    assert not (folder / FILE).exists()
    assert [name for name in os.listdir(folder) if name.startswith(".")] == []
    code, out, err = command("train", "--eval-only", "--resume", *MODEL, *TEST, *OUT, *WEIGHTS)
    assert (code, err) == (0, "")
    pages = sorted(map(str, folder.glob("report/**/report.html")))
    assert len(pages) == 2 and all(page in out.split("Wrote ")[-1] for page in pages)
    # They name what was evaluated, which is not what MODEL.WEIGHTS names.
    for page in map(Path, pages):
        assert "out/model_final.pth" in page.read_text() and "deconfound" not in page.read_text()
    code, out, err = command("train", "--resume", *MODEL, *TRAIN, *OUT, "SOLVER.MAX_ITER", "3")
    assert (code, err) == (0, "") and "Training from iteration 2 to 3" in out, (out, err)


def test_the_sweep_prints_one_table_and_what_it_wrote(command, tmp_path):
    code, out, err = command(
        "sweep-alpha",
        "--alphas",
        "0,1",
        "--metric",
        "bbox/AP",
        *MODEL,
        *TRAIN,
        *TEST,
        *OUT,
        *WEIGHTS,
    )
    assert (code, err) == (0, ""), err
    assert out.count("bbox AP |") == 1 and "-100" not in out and "n/a" in out
    assert len(out.splitlines()) < 25
    for name in ("alpha.json", "alpha.png", "config_alpha.yaml", "model_alpha.pth"):
        assert str(tmp_path / "out" / name) in out


def test_a_choice_without_report_needs_no_test_set(command):
    code, out, _ = command(
        "sweep", "--check", "--no-report", "--calib-data", "val.json", "images", *MODEL, *OUT,
        *WEIGHTS, "DATASETS.TEST", "('nowhere',)",
    )  # fmt: skip
    assert code == 0 and "reported on nothing" in out, out


def test_traceback_for_those_who_ask(command):
    for place in (["--traceback", "--config-file", "x.yaml"], ["--config-file", "x.yaml", "--traceback"]):  # fmt: skip  # noqa: E501
        code, _, err = command("train", *place)
        assert code == 2 and "Traceback" in err and err.endswith("x.yaml does not exist.\n")


def test_pictures_never_replace_photos(command, playground, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "a_1.png", "b_why_1.png"):
        shutil.copy(playground / "photo.png", folder / name)
    before = snapshot(folder)
    code, out, err = command(
        "demo", folder / "a.png", folder / "a_1.png", folder / "b_why_1.png", *MODEL, *TEST,
        "--output", folder, "--opts", *WEIGHTS,
    )  # fmt: skip
    assert (code, err) == (0, ""), err
    after = snapshot(folder)
    assert {name: after[name] for name in before} == before
    written = sorted(after.keys() - before.keys())
    assert written == ["a_1_1.png", "a_2.png", "b_why_1_1.png"]
    assert all(str(folder / name) in out for name in written)


# Floats.


@pytest.mark.parametrize(
    "text, value", [("0", 0.0), ("1", 1.0), ('"2"', 2.0), ("1e-3", 1e-3), ("-0", 0.0)]
)
def test_float_keys_take_every_number(text, value, tmp_path):
    for key in ("MODEL.TDE.ALPHA", "SOLVER.BASE_LR", "MODEL.RPN.SMOOTH_L1_BETA"):
        *path, last = key.split(".")
        nested = {last: None}
        for part in reversed(path):
            nested = {part: nested}
        lines = [f"{'  ' * i}{part}:" for i, part in enumerate(path)]
        (tmp_path / "c.yaml").write_text("\n".join([*lines, f"{'  ' * len(path)}{last}: {text}"]))
        for cfg in (load_config("", [key, text]), load_config(str(tmp_path / "c.yaml"))):
            for part in key.split("."):
                cfg = cfg[part]
            assert type(cfg) is float and cfg == value


def test_other_keys_stay_as_yacs_has_them(tmp_path):
    cfg = load_config("", ["SOLVER.MAX_ITER", "7", "SOLVER.STEPS", "(1, 2)", "DATASETS.TRAIN", ()])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.DATASETS.TRAIN) == (7, (1, 2), ())
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER 7.5"):
        load_config("", ["SOLVER.MAX_ITER", "7.5"])
    assert load_config("", ["MODEL.WEIGHTS", "None"]).MODEL.WEIGHTS == ""
    # Configs of an earlier release still load, with their warning.
    load_config("", ["MODEL.TDE.MEAN_MOMENTUM_LR_SCALED", True])


# One check of strengths.


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf"), -1e-9])
def test_no_door_takes_a_wrong_alpha(alpha, tiny_cfg, tiny_model, tmp_path):
    model = tiny_model()
    predictor = model.roi_heads.box_predictor
    recipe = YacsRecipe(tiny_cfg())
    doors = [
        lambda: check_alpha(alpha),
        lambda: setattr(predictor, "alpha", alpha),
        lambda: recipe.set_alpha(alpha),
        lambda: export_onnx(predictor, tmp_path / "x.onnx", alpha),
        lambda: tiny_model("deconfound", "MODEL.TDE.ALPHA", float(alpha)),
    ]
    for door in doors:
        with pytest.raises(ValueError, match="alpha|ALPHA"):
            door()
    assert predictor.alpha == 1.5 and recipe.cfg.MODEL.TDE.ALPHA == 1.5
    assert list(tmp_path.glob("*.onnx")) == []


# Full disks.


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WRITERS = {
    "text": lambda path: write_text(path, "new"),
    "bytes": lambda path: write_bytes(path, b"new"),
    "checkpoint": lambda path: save_checkpoint(torch.nn.Linear(2, 2), path),
    "picture": lambda path: write_with(
        path, Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save
    ),
    "training": lambda path: SafeCheckpointer(
        torch.nn.Linear(2, 2), str(path.parent)
    ).save(path.stem),
}  # fmt: skip


class FullFile:
    """A file whose writes fail."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return full if name == "write" else getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_keeps_the_old_file_and_is_named(name, tmp_path, monkeypatch):
    path = tmp_path / ("file.png" if name == "picture" else "file.pth")
    path.write_bytes(b"old")
    real = open
    for module in ("lvis_tde.checkpointer", "PIL.Image"):
        monkeypatch.setattr(
            f"{module}.{'builtins' if 'PIL' in module else ''}open".replace("..", "."),
            lambda *a, **k: FullFile(real(*a, **k)) if "w" in str(a[1:2]) else real(*a, **k),
            raising=False,
        )
    for method in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, method, full)
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError) as failed:
        WRITERS[name](path)
    message = cli._message(failed.value)
    assert str(path) in message and "No space left" in message and "MB free" in message
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


LIMITED = """
import resource, sys, torch
from pathlib import Path
from lvis_tde import cli
from lvis_tde.checkpointer import save_checkpoint, SafeCheckpointer
from lvis_tde.data.files import write_bytes, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
folder = Path(sys.argv[1])
model = torch.nn.Linear(100, 100)
traced = torch.jit.trace(model, torch.zeros(1, 100))
for tool in (
    lambda _: save_checkpoint(model, folder / "model.pth"),
    lambda _: SafeCheckpointer(model, str(folder)).save("model"),
    lambda _: write_bytes(folder / "model.pth", traced.save_to_buffer()),
    lambda _: write_text(folder / "model.pth", "x" * 50_000),
):
    try:
        cli.run(tool, [])
    except SystemExit as ended:
        assert ended.code == 2
"""


def test_a_limit_that_shows_only_while_writing(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert str(tmp_path / "model.pth") in line and "File too large" in line
        assert "MB free" in line and "what was there is kept" in line
    assert snapshot(tmp_path).keys() == {"model.pth"}
    assert (tmp_path / "model.pth").read_bytes() == b"old"


def test_no_room_is_seen_before_the_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("lvis_tde.checkpointer.free_space", lambda _: 10)
    monkeypatch.setattr(torch, "save", lambda *_: pytest.fail("began to write"))
    with pytest.raises(OSError, match="0.0 MB are free"):
        save_checkpoint(torch.nn.Linear(2, 2), tmp_path / "model.pth")


def test_check_warns_where_the_checkpoints_do_not_fit(command, monkeypatch):
    arguments = ["train", "--check", *MODEL, *TRAIN, *OUT, "SOLVER.CHECKPOINT_PERIOD", "1"]
    for free, code, word in ((1_000, 2, "no room for one"), (30_000_000, 0, "do not fit")):
        monkeypatch.setattr("lvis_tde.engine.preflight.free_space", lambda _, free=free: free)
        found, out, _ = command(*arguments)
        assert found == code and word in out


def test_other_errors_within_a_write_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as failed, atomic_path(tmp_path / "x"):
        open(tmp_path / "elsewhere")
    assert failed.value.filename == str(tmp_path / "elsewhere")


def test_what_is_written_is_what_is_read(tmp_path):
    model = torch.nn.Linear(3, 2)
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    checkpointer.save("a", iteration=4, best=np.float64(0.5), table=np.arange(3))
    found = read_checkpoint(tmp_path / "a.pth")
    assert found["iteration"] == 4 and found["best"] == 0.5 and found["table"].tolist() == [0, 1, 2]
    assert torch.equal(found["model"]["weight"], model.weight)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "a.pth")
    other = torch.nn.Linear(3, 2)
    SafeCheckpointer(other).load(str(tmp_path / "a.pth"))
    assert torch.equal(other.weight, model.weight)


def test_who_trusts_a_checkpoint_may_run_it(playground, tmp_path, monkeypatch):
    shutil.copy(playground / "code.pth", tmp_path)
    monkeypatch.setenv("LVIS_TDE_TRUST_CHECKPOINTS", "1")
    with pytest.raises(ValueError, match="holds no weights"):
        read_checkpoint(tmp_path / "code.pth")
    assert (playground / "code_ran").exists()
    (playground / "code_ran").unlink()


# Locks.


def lock(folder, **changes):
    with locked(folder):
        holder = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**holder, **changes}))
    return holder


def test_a_folder_is_held_by_one_training(command, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    parent = os.getppid()
    start = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    holder = lock(folder, pid=parent, start=f"{boot} {start}")
    before = snapshot(folder)
    for arguments in (["train"], ["train", "--resume"], ["train", "--check"]):
        code, out, err = command(*arguments, *MODEL, *TRAIN, *OUT)
        assert code == 2 and f"Process {parent} on {holder['host']} trains into" in out + err
        assert snapshot(folder) == before
    with pytest.raises(ValueError, match=f"Process {parent} on"), locked(folder):
        pass


@pytest.mark.parametrize(
    "changes", [{"start": "another 1"}, {"pid": 2**22 + 5}, {"pid": 2**70}, {"pid": "x"}]
)
def test_a_lock_of_the_dead_holds_nothing(changes, tmp_path):
    lock(tmp_path, **{"pid": os.getppid(), **changes})
    check_unlocked(tmp_path)
    with locked(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / FILE).exists()


def test_a_lock_of_another_host_says_what_to_remove(tmp_path):
    lock(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(ValueError, match=f"on elsewhere trains.*remove .*{FILE}"):
        check_unlocked(tmp_path)
    (tmp_path / FILE).write_text("half")
    check_unlocked(tmp_path)


# Help.

HELP = """
import sys
sys.path.insert(0, sys.argv[1])
import importlib
for name in sys.argv[2:]:
    try:
        importlib.import_module(f"tools.{name}").main(["--help"])
    except SystemExit as ended:
        assert ended.code == 0
    heavy = {"torch", "detectron2", "matplotlib.pyplot"} & set(sys.modules)
    assert not heavy, (name, heavy)
"""


def test_help_of_every_tool_needs_no_torch_and_no_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", HELP, str(ROOT), *TOOLS], capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # All of them together, and the interpreter.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    assert ",".join(DEFAULT_PARTS) in done.stdout
    assert all(part in done.stdout for part in [*PARTS, *DATASETS, *CLASSIFICATION_SETS])
    assert done.stdout.count("--traceback") >= len(TOOLS) - 1  # not of the benchmarks


def test_arguments_are_those_of_detectron2_and_more():
    theirs, ours = default_argument_parser(), argument_parser()
    assert vars(theirs.parse_args([])).items() <= {**vars(ours.parse_args([])), "opts": []}.items()
    words = ["--config-file", "c", "--num-gpus", "2", "--resume", "--eval-only", "KEY", "--value"]
    assert vars(theirs.parse_args(words)).items() <= vars(ours.parse_args(words)).items()


# Words.


@pytest.mark.parametrize(
    "value, text", [(-100.0, "n/a"), (float("nan"), "n/a"), (0.0, "0.0"), (12.345, "12.3")]
)
def test_undefined_metrics_are_not_numbers(value, text):
    assert percent(value) == text


def test_messages_of_other_processes_and_of_memory():
    class ProcessRaisedException(Exception):
        pass

    class OutOfMemoryError(RuntimeError):
        pass

    theirs = "\n\n-- Process 0 terminated with the following error:\nTraceback ...\n  File x\n"
    assert cli._message(ProcessRaisedException(theirs + "ValueError: x=3\n")) == "x=3"
    assert cli._message(ProcessRaisedException(theirs + "KeyError: 3\n")) is None
    assert "fewer images" in cli._message(OutOfMemoryError("CUDA out of memory.\nmore"))


def test_an_interrupted_tool_is_no_traceback(capsys):
    def tool(_):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.run(tool, [])
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_the_console_cuts_what_others_say_at_length(capsys):
    from lvis_tde.engine import setup_console

    setup_console()
    logging.getLogger("detectron2.anything").info("environment")
    logging.getLogger("detectron2.anything").warning("first\nsecond")
    logging.getLogger("lvis_tde.anything").info("ours\nin full")
    logging.getLogger("fvcore.common.checkpoint").warning("skip loading parameter")
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition("] ")[2] or line for line in shown] == [
        "WARNING: first ... (more in log.txt)",
        "ours",
        "in full",
    ]


def test_what_is_held_already_stays_so(tmp_path):
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert (tmp_path / FILE).is_file()
    assert not (tmp_path / FILE).exists()
