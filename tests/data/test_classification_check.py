"""The check of classification sets, on small ones of the official formats."""

import classification_files_util as files
import pytest

from lvis_tde.data.classification.check import (
    CLASSIFICATION_SETS,
    Expected,
    check_classification,
)
from lvis_tde.data.emoji_lt import make_emoji_lt
from tools import check_datasets

LISTS = Expected("imagenet", "imagenet_lt", 3, 21, 6, 6)


def test_a_complete_set_of_files(tmp_path):
    folder = files.write_lists(tmp_path)
    findings = check_classification(tmp_path, LISTS)
    assert all(finding.ok and finding.path == folder for finding in findings)
    assert [finding.message for finding in findings] == [
        "train: 21 images of 3 classes, 12 to 3 each",
        "test: 6 images of 3 classes, 2 to 2 each",
        "calib: 6 images of 3 classes, 2 to 2 each",
    ]


def test_the_first_missing_image_is_named(tmp_path):
    files.write_lists(tmp_path)
    for name in ("n00000001/train_12.JPEG", "n00000002/train_19.JPEG"):
        (tmp_path / "imagenet" / "train" / name).unlink()
    train, *others = check_classification(tmp_path, LISTS)
    first = tmp_path / "imagenet" / "train" / "n00000001" / "train_12.JPEG"
    assert train.message.endswith(f"2 are not on disk, the first is {first}")
    assert not train.ok and all(finding.ok for finding in others)
    assert all(f.ok for f in check_classification(tmp_path, LISTS, look_for_images=False))


def test_other_numbers_than_the_official_ones(tmp_path):
    files.write_cifar(tmp_path, 10, train_per_class=5)
    train, test = check_classification(tmp_path, CLASSIFICATION_SETS["cifar10"])
    assert not train.ok and not test.ok
    assert train.message == "train: 50 (instead of 50000) images of 10 classes, 5 to 5 each"


@pytest.mark.parametrize("name", sorted(set(CLASSIFICATION_SETS) - {"digits_lt"}))
def test_a_missing_set(name, tmp_path):
    (finding,) = check_classification(tmp_path, CLASSIFICATION_SETS[name])
    assert not finding.ok and "does not exist. It comes from" in finding.message


def test_a_damaged_file_is_a_finding(tmp_path):
    folder = files.write_inat(tmp_path)
    (folder / "val2018.json").write_text("{")
    (finding,) = check_classification(tmp_path, CLASSIFICATION_SETS["inat2018"])
    assert not finding.ok and "val2018.json" in finding.message


def test_command_line(tmp_path, capsys, color_font):
    sizes = dict(num_classes=4, train_per_class=8, calib_per_class=1, test_per_class=1)
    folder = make_emoji_lt(tmp_path, imbalance=4, font=color_font, **sizes)
    arguments = ["--root", str(tmp_path), "--sets"]
    assert check_datasets.main([*arguments, "digits_lt", "emoji_lt"]) == 0
    said = capsys.readouterr().out
    assert "train: 1000 images of 10 classes" in said
    assert f"ok   {folder}: train: 18 images of 4 classes, 8 to 2 each" in said
    assert check_datasets.main([*arguments, "places_lt", "--quick"]) == 1
    assert "BAD" in capsys.readouterr().out
