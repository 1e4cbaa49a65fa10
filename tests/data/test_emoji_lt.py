"""The classification set of glyphs: counts, balance, equal bits, separate draws, errors."""

import hashlib
import json
import zipfile

import numpy as np
import pytest

from lvis_tde.data import emoji_lt
from lvis_tde.data.emoji_lt import load_emoji_lt, long_tailed_counts, make_emoji_lt
from lvis_tde.data.generation.glyph_files import choose_vocabulary
from lvis_tde.data.glyphs import find_font
from tools import make_synthetic_lvis as tool

TINY = {
    "num_classes": 8,
    "imbalance": 10,
    "train_per_class": 20,
    "calib_per_class": 3,
    "test_per_class": 10,
}


@pytest.fixture(scope="module")
def tiny(color_font):
    return {**TINY, "font": color_font}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    return make_emoji_lt(tmp_path_factory.mktemp("datasets"), seed=1, **tiny)


def _digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def _pictures(folder, split):
    return [image.tobytes() for image in load_emoji_lt(folder, split)[0]]


@pytest.mark.parametrize(
    "head, num_classes, imbalance, total",
    [
        (500, 100, 100, 10847),
        (500, 100, 50, 12608),
        (500, 100, 10, 19573),
        (5000, 10, 100, 12406),
        (5000, 10, 50, 13996),
        (5000, 10, 10, 20431),
    ],
)
def test_counts_are_those_of_published_cifar_lt(head, num_classes, imbalance, total):
    counts = long_tailed_counts(head, num_classes, imbalance)
    assert counts.sum() == total
    assert (counts[0], counts[-1]) == (head, head // imbalance)
    assert (np.diff(counts) <= 0).all()


def test_counts_of_steps_and_of_balanced_sets():
    assert long_tailed_counts(50, 6, 10, "step").tolist() == [50, 50, 50, 5, 5, 5]
    assert long_tailed_counts(7, 4, 1).tolist() == [7] * 4
    # 49 * (1 / 49) is less than 1.
    assert long_tailed_counts(49, 3, 49).tolist() == [49, 7, 1]


def test_contents(folder, color_font):
    shown = json.loads((folder / "classes.json").read_text())
    classes = shown["classes"]
    assert shown["font_sha256"] == hashlib.sha256(color_font.read_bytes()).hexdigest()
    expected = [int(20 * 0.1 ** (i / 7)) for i in range(8)]
    assert [c["train_images"] for c in classes] == expected
    glyphs = choose_vocabulary(1, 8).classes
    assert [(c["name"], c["family"]) for c in classes] == [(g.name, g.family) for g in glyphs]
    assert [c["codepoint"] for c in classes] == [f"U+{g.codepoint:X}" for g in glyphs]
    for split, counts in (("train", expected), ("calib", [3] * 8), ("test", [10] * 8)):
        images, labels = load_emoji_lt(folder, split)
        assert images.shape == (sum(counts), 32, 32, 3) and images.dtype == np.uint8
        assert labels.dtype == np.int64
        assert np.bincount(labels).tolist() == counts


def test_splits_share_no_image(folder):
    pictures = [picture for split in emoji_lt.SPLITS for picture in _pictures(folder, split)]
    assert len(set(pictures)) == len(pictures)


def test_equal_arguments_give_equal_files_and_another_seed_other_images(folder, tmp_path, tiny):
    assert _digests(make_emoji_lt(tmp_path, seed=1, **tiny)) == _digests(folder)
    other = make_emoji_lt(tmp_path, seed=2, **tiny)
    assert not set(_pictures(other, "test")) & set(_pictures(folder, "test"))
    for split in emoji_lt.SPLITS:  # files made in another hour are equal too
        with zipfile.ZipFile(folder / f"{split}.npz") as archive:
            assert {info.date_time[0] for info in archive.infolist()} == {1980}


def test_more_imbalance_is_a_part_of_less(folder, tmp_path, tiny):
    balanced = make_emoji_lt(tmp_path, seed=1, **{**tiny, "imbalance": 1})
    assert set(_pictures(folder, "train")) < set(_pictures(balanced, "train"))
    assert _pictures(folder, "test") == _pictures(balanced, "test")


@pytest.mark.parametrize("installed", [False, True])
def test_classes_can_be_told_apart(tmp_path, color_font, installed):
    if installed:
        try:
            color_font = find_font()
        except ValueError as error:
            pytest.skip(str(error))
    size = {
        "font": color_font,
        "num_classes": 10,
        "imbalance": 1,
        "train_per_class": 30,
        "calib_per_class": 1,
    }
    folder = make_emoji_lt(tmp_path, test_per_class=20, **size)
    images, labels = load_emoji_lt(folder, "train")
    means = np.stack([images[labels == c].mean(axis=0) for c in range(10)])
    images, labels = load_emoji_lt(folder, "test")
    distances = ((images[:, None] - means) ** 2).sum(axis=(2, 3, 4))
    # Chance is 0.1; the means of shuffled labels are no better than it.
    assert (distances.argmin(axis=1) == labels).mean() > 0.35


def test_complete_set_is_reused_and_another_is_not_replaced_silently(tmp_path, tiny):
    folder = make_emoji_lt(tmp_path, **tiny)
    assert folder == tmp_path / "emoji_lt" / "exp10_seed0"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert make_emoji_lt(tmp_path, **tiny) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    other = {**tiny, "test_per_class": 4}
    with pytest.raises(ValueError, match=r"test_per_class.*\(10, 4\).*overwrite"):
        make_emoji_lt(tmp_path, **other)
    make_emoji_lt(tmp_path, overwrite=True, **other)
    assert len(load_emoji_lt(folder, "test")[1]) == 32
    assert [path.name for path in folder.parent.iterdir()] == ["exp10_seed0"]


def test_failed_run_leaves_nothing(tmp_path, monkeypatch, tiny):
    drawn, draw = [], emoji_lt.draw_portrait

    def interrupt(seed, sprite, side):
        drawn.append(seed)
        if len(drawn) == 90:  # within the second file
            raise KeyboardInterrupt
        return draw(seed, sprite, side)

    monkeypatch.setattr(emoji_lt, "draw_portrait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_emoji_lt(tmp_path, **tiny)
    assert list((tmp_path / "emoji_lt").iterdir()) == []


def test_the_tool_makes_it(tmp_path, capsys, tiny):
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in tiny.items()]
    profile = ["--profile", "step", "--image-size", "16"]
    tool.main(["--kind", "emoji_lt", "--root", str(tmp_path), *arguments, *profile])
    folder = tmp_path / "emoji_lt" / "step10_seed0"
    assert capsys.readouterr().out == f"{folder}\n"
    images, labels = load_emoji_lt(folder, "train")
    assert images.shape == (4 * 20 + 4 * 2, 16, 16, 3)


@pytest.mark.parametrize(
    "bad",
    [
        {"num_classes": 1},
        {"num_classes": 1233},
        {"image_size": 15},
        {"imbalance": 0.5},
        {"imbalance": float("nan")},
        {"imbalance": float("inf")},
        {"imbalance": 21},
        {"profile": "linear"},
        {"calib_per_class": 0},
        {"test_per_class": 0},
        {"seed": -1},
        {"font": "no.ttf"},
    ],
)
def test_bad_arguments(tmp_path, bad):
    with pytest.raises(ValueError) as raised:
        make_emoji_lt(tmp_path, **{**TINY, **bad})
    (name, value), message = next(iter(bad.items())), str(raised.value)
    assert name in message and str(value) in message
    assert not list(tmp_path.iterdir())


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="train, calib, test.*'val'"):
        load_emoji_lt(tmp_path, "val")
    with pytest.raises(ValueError, match=r"train\.npz.*--kind emoji_lt"):
        load_emoji_lt(tmp_path, "train")
    (tmp_path / "train.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"train\.npz.*generate the set again"):
        load_emoji_lt(tmp_path, "train")
    np.savez(tmp_path / "test.npz", pixels=np.zeros(3))
    with pytest.raises(ValueError, match=r"test\.npz.*generate the set again"):
        load_emoji_lt(tmp_path, "test")
