"""The command ``lvis-tde``, from the folder and from an installed copy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lvis_tde import cli

ROOT = Path(__file__).parent.parent


def status_of(call, *arguments):
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    return ended.value.code


def test_every_tool_is_a_command_and_says_what_it_takes(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lvis-tde"])
    for name, (module, _) in cli.COMMANDS.items():
        assert (ROOT / "tools" / f"{module}.py").is_file()
        assert status_of(cli.main, [name, "--help"]) == 0
        assert f"usage: lvis-tde {name} " in capsys.readouterr().out


def test_help_for_trained_models_is_one_screen(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lvis-tde"])
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("study", "estimate", "sweep-alpha", "sweep"):
        assert status_of(cli.main, [name, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 100
        assert ("--fast" in "\n".join(lines)) == name.startswith("sweep")
    # What only a training or several machines need is taken, and not among them.
    parse_args = sys.modules["lvis_tde.tools.sweep_posthoc"].parse_args
    args = parse_args(["--calibrate", "0.1", "--machine-rank", "1", "SEED", "3"])
    assert args.machine_rank == 1 and args.opts == ["SEED", "3"]
    options = (name.replace("_", "-") for name in vars(args))
    hidden = {"resume", "eval-only", "num-machines", "machine-rank", "dist-url", "opts"}
    shown = "\n".join(lines)
    assert {name for name in options if f"--{name} " not in shown} == hidden


def test_help_and_mistakes(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        cli.main(arguments)
        printed = capsys.readouterr().out
        assert "usage: lvis-tde COMMAND" in printed and all(
            name in printed for name in cli.COMMANDS
        )
    assert status_of(cli.main, ["trian"]) == 2
    assert "'trian' is no command" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("x=3 must be 4"), FileNotFoundError("no x.json")])
def test_errors_of_this_package_are_one_line(error, capsys):
    # As if the tool were in this package.
    scope = {"__name__": "lvis_tde.tools.made_up", "error": error}
    exec("def tool(argv): raise error", scope)
    assert status_of(cli.run, scope["tool"], []) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_errors_of_others_keep_their_traceback():
    with pytest.raises(ValueError, match="invalid literal"):
        cli.run(lambda argv: int("x"), [])
    with pytest.raises(KeyError):
        cli.run(lambda argv: {}["x"], [])


def test_a_tool_tells_its_exit_code():
    assert status_of(cli.run, lambda argv: 1, []) == 1
    assert status_of(cli.run, lambda argv: {"AP": 3}, []) == 0


def test_missing_config_is_one_line(capsys):
    assert status_of(cli.main, ["train", "--config-file", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.endswith("error: --config-file nowhere.yaml does not exist.\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A copy as an installation has it, built from the source files alone."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "lvis_tde", "tools"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(folder / "lib")]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return folder / "lib"


def test_the_installed_command(installed, tmp_path):
    truth = {
        "images": [
            {
                "id": 1, "width": 9, "height": 9,
                "neg_category_ids": [], "not_exhaustive_category_ids": [],
            }
        ],
        "annotations": [
            {
                "id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16,
                "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]],
            }
        ],
        "categories": [{"id": 1, "name": "cup", "frequency": "r", "image_count": 1}],
    }  # fmt: skip
    found = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.5}]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    command = [sys.executable, "-c", "from lvis_tde.cli import main; main()", "evaluate"]
    result = subprocess.run(
        [*command, "truth.json", "found.json", "--iou-type", "bbox"],
        cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].split()[:2] == ["bbox", "100.00"]
