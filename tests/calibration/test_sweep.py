"""Choosing alpha from a config: the split, the files that are written, the command line."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from lvis_tde.calibration.hold_out import calibration_images, hold_out
from lvis_tde.calibration.sweep import format_sweep, run_sweep
from lvis_tde.engine import load_config


def classes_of(counts):
    """Images with one class each, ``counts[c]`` of class c."""
    labels = [c for c, count in enumerate(counts) for _ in range(count)]
    return {image: [label] for image, label in enumerate(labels)}


def test_every_class_is_in_both_parts():
    counts = [100, 40, 10, 3, 2, 1]
    images = classes_of(counts)
    chosen = calibration_images(images, 0.1)
    held = [sum(images[i] == [c] for i in chosen) for c in range(len(counts))]
    assert held == [10, 4, 1, 1, 1, 0]  # a class with one image is left to training
    assert calibration_images(images, 0.9, 0) > set()
    rest = [n - k for n, k in zip(counts, held)]
    assert min(rest) > 0


def test_the_choice_depends_on_ids_and_seed_alone():
    images = classes_of([60, 20])
    chosen = calibration_images(images, 0.2)
    assert chosen == calibration_images(dict(reversed(images.items())), 0.2)
    assert chosen != calibration_images(images, 0.2, seed=1)


def test_images_with_several_classes_count_for_each():
    images = {i: [0, 1] for i in range(10)}
    assert len(calibration_images(images, 0.2)) == 2


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_bad_fraction(fraction):
    with pytest.raises(ValueError, match="fraction="):
        calibration_images(classes_of([5]), fraction)


def test_nothing_to_hold_out():
    with pytest.raises(ValueError, match="No class has two images"):
        calibration_images({1: [0], 2: [1], 3: []}, 0.5)


def test_held_out_set(tiny_set, tmp_path):
    name = hold_out(tiny_set["train"], 0.3, tmp_path)
    train, part = MetadataCatalog.get(tiny_set["train"]), MetadataCatalog.get(name)
    records = DatasetCatalog.get(name)
    ids = {record["image_id"] for record in records}
    everything = json.loads(open(train.json_file).read())
    written = json.loads(open(part.json_file).read())
    assert part.json_file == str(tmp_path / "calibration.json")
    assert ids == {image["id"] for image in written["images"]}
    assert 0 < len(ids) < len(everything["images"])
    assert written["annotations"] == [a for a in everything["annotations"] if a["image_id"] in ids]
    # The groups are those of the whole training set, whatever the part shows.
    assert written["categories"] == everything["categories"]
    assert part.class_frequency == train.class_frequency
    assert part.evaluator_type == "lvis" and part.thing_classes == train.thing_classes
    assert not (tmp_path / "training.json").exists()
    assert hold_out(tiny_set["train"], 0.3, tmp_path, rest=True) == name
    rest = json.loads((tmp_path / "training.json").read_text())
    assert {i["id"] for i in rest["images"]} == {i["id"] for i in everything["images"]} - ids
    total = len(rest["annotations"]) + len(written["annotations"])
    assert total == len(everything["annotations"])


@pytest.fixture
def sweep_cfg(tiny_cfg, tiny_set, tiny_model, tmp_path):
    model = tiny_model()
    model.roi_heads.box_predictor.feature_mean.mean.fill_(1)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    return tiny_cfg(
        "deconfound", "MODEL.WEIGHTS", str(tmp_path / "model.pth"), "INPUT.MIN_SIZE_TEST", 64,
        "DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", (tiny_set["val"],),
    )  # fmt: skip


def test_sweep_on_training_images_writes_a_usable_config(sweep_cfg, tmp_path):
    report = run_sweep(sweep_cfg, (1.0, 0.0), metric="bbox/AP50", calibrate=0.2)
    folder = tmp_path / "output"
    assert json.loads((folder / "alpha.json").read_text()) == report
    assert list(report["results"]) == ["0", "1"] and report["calibrate"] == 0.2
    values = {float(a): r["bbox"]["AP50"] for a, r in report["results"].items()}
    assert values[report["alpha"]] == max(values.values())
    assert (folder / "alpha.png").stat().st_size > 10_000
    expected = sweep_cfg.clone()
    expected.MODEL.TDE.ALPHA = report["alpha"]
    (tmp_path / "expected.yaml").write_text(expected.dump())
    written = load_config(str(folder / "config_alpha.yaml"))
    assert written == load_config(str(tmp_path / "expected.yaml"))
    table = format_sweep(report)
    assert table.count("\n") == 3 and "segm APr" in table and "bbox APf" in table
    assert f"{report['alpha']:g}*" in table


def test_sweep_on_the_test_set_warns(sweep_cfg, tiny_set, caplog):
    report = run_sweep(sweep_cfg, (0.0,))
    assert report["dataset"] == tiny_set["val"] and report["calibrate"] is None
    assert "Do not report its figures" in caplog.text


def test_the_largest_alpha_is_suspicious(sweep_cfg, caplog, monkeypatch):
    found = {a: {"segm": {"AP": a, "APr": 0.0, "APc": 0.0, "APf": 0.0}} for a in (0.0, 1.0)}
    monkeypatch.setattr("lvis_tde.calibration.sweep.sweep_alpha", lambda *_: found)
    assert run_sweep(sweep_cfg, (0.0, 1.0))["alpha"] == 1
    assert "largest that was tried" in caplog.text
    # Of equals the one that changes least.
    assert run_sweep(sweep_cfg, (0.0, 1.0), metric="segm/APr")["alpha"] == 0


def test_mistakes(sweep_cfg):
    with pytest.raises(ValueError, match="metric='segm/APx'.*segm/APr"):
        run_sweep(sweep_cfg, (0.0,), metric="segm/APx")
    two = sweep_cfg.clone()
    two.DATASETS.TEST = ("a", "b")
    with pytest.raises(ValueError, match=r"\('a', 'b'\)"):
        run_sweep(two, (0.0,))
