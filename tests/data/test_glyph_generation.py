"""A glyph set is the same whenever and however it is generated, and whole or not there."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from glyph_font_util import EVERY_GLYPH, dust_picture, glyph_picture, write_color_font
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lvis import LVIS

from lvis_tde.data.generation import glyph_files, glyph_font
from lvis_tde.data.generation.glyph_table import lvis_image_counts
from lvis_tde.data.glyphs import find_font, make_glyph_lvis, register_glyph_lvis

SPLITS = ("train", "calib", "val")
ROOT = Path(__file__).parents[2]
TINIEST = {
    "num_train": 14,
    "num_calib": 8,
    "num_val": 9,
    "num_classes": 12,
    "image_size": 56,
    "num_negatives": 3,
    "classes_per_image": 2.0,
    "jobs": 1,
}


def _digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _other_names(root):
    return sorted(path.name for path in (root / "synthetic_lvis").iterdir())


def test_same_seed_same_bytes_in_any_number_of_processes(tmp_path, color_font):
    tiniest = {**TINIEST, "font": color_font, "num_train": 70}  # more than one parcel of work
    first = _digests(make_glyph_lvis(tmp_path / "a", seed=5, **tiniest))
    again = _digests(make_glyph_lvis(tmp_path / "b", seed=5, **{**tiniest, "jobs": 2}))
    other = _digests(make_glyph_lvis(tmp_path / "c", seed=6, **tiniest))
    assert first == again
    assert not set(first.values()) & set(other.values())


def test_complete_set_is_reused_and_another_is_not_replaced_silently(tmp_path, color_font):
    tiniest = {**TINIEST, "font": color_font}
    folder = make_glyph_lvis(tmp_path, **tiniest)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_glyph_lvis(tmp_path, **tiniest) == folder
    assert make_glyph_lvis(tmp_path, **{**tiniest, "jobs": 2}) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    other = {**tiniest, "num_val": 10}
    with pytest.raises(ValueError, match=r"num_val.*\(9, 10\).*overwrite"):
        make_glyph_lvis(tmp_path, **other)
    make_glyph_lvis(tmp_path, overwrite=True, **other)
    assert len(list((folder / "val").iterdir())) == 10
    assert _other_names(tmp_path) == ["glyphs_small_seed0"]


def test_another_font_is_another_set(tmp_path, color_font):
    font = write_color_font(tmp_path / "other.ttf", EVERY_GLYPH, partial(glyph_picture, flavor=1))
    folder = make_glyph_lvis(tmp_path, font=color_font, **TINIEST)
    recorded = json.loads((folder / "parameters.json").read_text())["font_sha256"]
    assert recorded == hashlib.sha256(color_font.read_bytes()).hexdigest()
    data = json.loads((folder / "annotations" / "val.json").read_text())
    assert recorded[:12] in data["info"]["description"]
    with pytest.raises(ValueError, match="other arguments.*font_sha256.*overwrite"):
        make_glyph_lvis(tmp_path, font=font, **TINIEST)
    # The same file elsewhere is the same font.
    copy = tmp_path / "copy.ttf"
    copy.write_bytes(color_font.read_bytes())
    assert make_glyph_lvis(tmp_path, font=copy, **TINIEST) == folder


def test_failed_run_leaves_nothing(tmp_path, color_font, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(glyph_files, "draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_glyph_lvis(tmp_path, font=color_font, **TINIEST)
    assert _other_names(tmp_path) == []


SLOW = {**TINIEST, "num_train": 3000}


def _ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc")
def test_killed_run_leaves_no_set_and_no_process_and_the_next_one_succeeds(tmp_path, color_font):
    code = (
        "from lvis_tde.data.glyphs import make_glyph_lvis\n"
        f"if __name__ == '__main__': make_glyph_lvis({str(tmp_path)!r}, "
        f"font={str(color_font)!r}, **{dict(SLOW, jobs=2)!r})"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script], env=environment)
    _wait_until(lambda: list(tmp_path.rglob("*.jpg")))
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_until(lambda: all(map(_ended, children)))
    assert list(tmp_path.rglob("*.jpg"))
    assert not (tmp_path / "synthetic_lvis" / "glyphs_small_seed0").exists()
    with pytest.raises(ValueError, match="make_glyph_lvis"):
        register_glyph_lvis(tmp_path)
    folder = make_glyph_lvis(tmp_path, font=color_font, **TINIEST)
    assert len(list((folder / "train").iterdir())) == TINIEST["num_train"]
    assert _other_names(tmp_path) == ["glyphs_small_seed0"]


def test_two_processes_at_once_make_one_set(tmp_path, color_font):
    context = multiprocessing.get_context("fork")
    arguments = {**TINIEST, "font": color_font}
    runs = [
        context.Process(target=make_glyph_lvis, args=(tmp_path,), kwargs=arguments)
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert _other_names(tmp_path) == ["glyphs_small_seed0"]
    alone = make_glyph_lvis(tmp_path / "alone", **arguments)
    assert _digests(tmp_path / "synthetic_lvis" / "glyphs_small_seed0") == _digests(alone)


def test_mistakes_found_while_drawing_are_the_same_in_several_processes(tmp_path):
    font = write_color_font(tmp_path / "dust.ttf", EVERY_GLYPH, dust_picture)
    root = tmp_path / "root"
    for jobs in (1, 2):
        with pytest.raises(ValueError, match=r"objects do not fit into .*larger images") as caught:
            make_glyph_lvis(root, font=font, **{**TINIEST, "jobs": jobs})
        # The command line shows users' mistakes without the traceback if they are from here.
        assert caught.traceback[-1].frame.f_globals["__name__"].startswith("lvis_tde")
    assert _other_names(root) == []


@pytest.fixture
def no_font(monkeypatch):
    monkeypatch.setattr(glyph_font, "_FOLDERS", ())
    monkeypatch.setattr(glyph_font.shutil, "which", lambda name: None)


def test_no_font_on_the_system(tmp_path, no_font):
    with pytest.raises(ValueError, match="apt install fonts-noto-color-emoji.*--font"):
        make_glyph_lvis(tmp_path, **TINIEST)
    assert list(tmp_path.iterdir()) == []


def test_font_in_a_usual_folder_is_found(tmp_path, no_font, monkeypatch):
    file = tmp_path / "deep" / "down" / "NotoColorEmoji.ttf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    monkeypatch.setattr(glyph_font, "_FOLDERS", ("/does/not/exist", str(tmp_path)))
    assert find_font() == file


def _vector_font(folder):
    matplotlib = pytest.importorskip("matplotlib")
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def _text(folder):
    path = folder / "text.ttf"
    path.write_text("not a font")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.ttf", "none.ttf' does not exist"),
        (lambda folder: folder, "does not exist"),
        (_text, "cannot open .*text.ttf' as a font"),
        (_vector_font, "draws no color from .*DejaVuSans.ttf"),
        (
            lambda folder: write_color_font(folder / "few.ttf", EVERY_GLYPH[::2]),
            r"lacks \d+ of \d+ glyphs, the first being U\+",
        ),
        (
            lambda folder: write_color_font(folder / "no.ttf", [0x41]),
            "draws no color from .*no.ttf",
        ),
    ],
)
def test_fonts_that_will_not_do(tmp_path, make, message):
    with pytest.raises(ValueError, match=f"(?s){message}.*[Ii]nstall NotoColorEmoji.ttf"):
        make_glyph_lvis(tmp_path / "root", font=make(tmp_path), **TINIEST)
    assert not (tmp_path / "root").exists()


INVALID = {
    "size": st.sampled_from(["", "large", "SMALL"]),
    "seed": st.integers(max_value=-1) | st.just(1.5),
    "jobs": st.integers(max_value=0) | st.just(0.5),
    "num_train": st.integers(max_value=5) | st.just(20.5),
    "num_calib": st.integers(max_value=5),
    "num_val": st.integers(max_value=5),
    "num_classes": st.integers(max_value=1) | st.integers(1233, 9999) | st.just("x"),
    "image_size": st.integers(max_value=47),
    "num_negatives": st.integers(max_value=-1),
    "classes_per_image": st.sampled_from([float("nan"), 0.0, -1.0, 8.1, float("inf"), "many"]),
    "not_exhaustive_prob": st.sampled_from([float("nan"), -0.1, 1.1, float("inf"), None]),
}
FEW = settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", INVALID)
def test_bad_argument_is_named_and_nothing_is_written(tmp_path, color_font, name):
    @FEW
    @given(value=INVALID[name])
    def check(value):
        with pytest.raises(ValueError, match=name):
            make_glyph_lvis(tmp_path, font=color_font, **{**TINIEST, name: value})
        assert list(tmp_path.iterdir()) == []

    check()


@settings(FEW, max_examples=5)
@given(data=st.data())
def test_any_valid_arguments_give_the_set_that_was_asked_for(data, color_font):
    num_classes = data.draw(st.integers(2, 30), "num_classes")
    per_image = data.draw(st.floats(0.5, min(4.0, num_classes * 2 / 3)), "classes_per_image")
    least = int(num_classes / per_image) + 2
    arguments = {
        "seed": data.draw(st.integers(0, 2**40), "seed"),
        "num_classes": num_classes,
        "classes_per_image": per_image,
        "image_size": data.draw(st.integers(96, 128), "image_size"),
        "num_negatives": data.draw(st.integers(0, 40), "num_negatives"),
        "not_exhaustive_prob": data.draw(st.floats(0, 1), "not_exhaustive_prob"),
        **{f"num_{s}": least + data.draw(st.integers(0, 20), f"num_{s}") for s in SPLITS},
    }
    with tempfile.TemporaryDirectory() as root:
        folder = make_glyph_lvis(root, font=color_font, jobs=1, **arguments)
        for split in SPLITS:
            number = arguments[f"num_{split}"]
            api = LVIS(str(folder / "annotations" / f"{split}.json"))
            assert len(api.imgs) == len(list((folder / split).iterdir())) == number
            shown = {(a["category_id"], a["image_id"]) for a in api.anns.values()}
            found = np.bincount([c for c, _ in shown], minlength=num_classes + 1)[1:]
            pairs = round(per_image * number)
            if split == "train":
                expected = np.minimum(lvis_image_counts(num_classes, pairs), number)
            else:
                expected = np.full(num_classes, pairs // num_classes)
            assert sorted(found, reverse=True) == expected.tolist()
            for image in api.imgs.values():
                present = {c for c, i in shown if i == image["id"]}
                negatives = image["neg_category_ids"]
                absent = num_classes - len(present)
                assert len(negatives) == min(arguments["num_negatives"], absent)
                assert not present & set(negatives)


def _tool(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "make_synthetic_lvis.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def _flags(arguments):
    return [
        part for key, value in arguments.items() for part in (f"--{key.replace('_', '-')}", value)
    ]


def test_command_line(tmp_path, color_font):
    flags = ["--kind", "glyphs", "--seed", 3, "--font", color_font, *_flags(TINIEST)]
    done = _tool("--root", tmp_path / "a", *flags)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "a" / "synthetic_lvis" / "glyphs_small_seed3"
    assert done.stdout.splitlines() == [str(folder)]
    alone = make_glyph_lvis(tmp_path / "b", seed=3, font=color_font, **TINIEST)
    assert _digests(folder) == _digests(alone)
    done = _tool("--root", tmp_path / "a", *flags, "--num-negatives", 4)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "num_negatives" in done.stderr and "--overwrite" in done.stderr


def test_command_line_draws_shapes_unless_told(tmp_path):
    done = _tool("--root", tmp_path, "--num-train", 30, "--num-calib", 27, "--num-val", 27)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "synthetic_lvis" / "seed0")]
