"""The folder of a generated set: whatever ends a run, a whole set is there, the old or the new."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from lvis_tde.data.generation.target import materialize


def generate(root, number, **options):
    def write(folder):
        folder.mkdir()
        (folder / "parameters.json").write_text(json.dumps({"number": number}))

    return materialize(root / "set", {"number": number}, write, **{"overwrite": False, **options})


def found(root):
    """The set's number; it has no other files beside it."""
    assert [path.name for path in root.iterdir()] == ["set"]
    return json.loads((root / "set" / "parameters.json").read_text())["number"]


def _without_the_second_rename(patch, instead):
    rename = Path.rename
    patch.setattr(Path, "rename", lambda p, to: instead() if p.name == "new" else rename(p, to))


def test_an_overwrite_that_fails_at_the_end_keeps_the_old_set(tmp_path, monkeypatch):
    def fail():
        raise OSError("no")

    generate(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no"):
        _without_the_second_rename(patch, fail)
        generate(tmp_path, 2, overwrite=True)
    assert found(tmp_path) == 1
    generate(tmp_path, 2, overwrite=True)
    assert found(tmp_path) == 2


def _killed(root):
    _without_the_second_rename(pytest.MonkeyPatch(), lambda: os._exit(9))
    generate(root, 2, overwrite=True)


@pytest.mark.parametrize("number, overwrite, left", [(1, False, 1), (2, False, 1), (2, True, 2)])
def test_a_run_after_one_killed_between_the_renames_has_the_old_set(
    tmp_path, number, overwrite, left
):
    generate(tmp_path, 1)
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 9 and not (tmp_path / "set").exists()
    if number != left:
        with pytest.raises(ValueError, match="--overwrite"):
            generate(tmp_path, number)
    else:
        generate(tmp_path, number, overwrite=overwrite)
    assert found(tmp_path) == left
