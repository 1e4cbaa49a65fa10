"""Choosing alpha from a config: the split, the files that are written, the command line."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from lvis_tde.calibration.hold_out import calibration_images, hold_out
from lvis_tde.calibration.sweep import best_alpha, check_metric, format_sweep, run_sweep
from lvis_tde.calibration.sweep_checks import default_metric
from lvis_tde.engine import YacsRecipe, load_config
from lvis_tde.evaluation import LVISEvaluator
from lvis_tde.modeling.words import unpack, unpack_words


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


def test_boxes_are_what_a_detector_without_masks_is_chosen_by(tiny_model):
    assert default_metric(tiny_model("softmax")) == "segm/AP"
    assert default_metric(tiny_model("softmax", "MODEL.MASK_ON", False)) == "bbox/AP"


def test_the_choice_depends_on_ids_and_seed_alone():
    images = classes_of([60, 20])
    chosen = calibration_images(images, 0.2)
    assert chosen == calibration_images(dict(reversed(images.items())), 0.2)
    assert chosen != calibration_images(images, 0.2, seed=1)


def test_a_share_never_takes_the_last_image_of_a_class():
    lost = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        images = {image: set() for image in range(300)}
        for one in range(60):  # long-tailed, several classes an image
            for image in random.choice(300, max(2, int(100 * 0.93**one)), replace=False):
                images[int(image)].add(one)
        chosen = calibration_images(images, 0.05, seed)
        assert {one for image in images.keys() - chosen for one in images[image]} == {*range(60)}
        lost += 60 - len({one for image in chosen for one in images[image]})
    assert lost == 0


def test_images_with_several_classes_count_for_each():
    images = {i: [0, 1] for i in range(10)}
    assert len(calibration_images(images, 0.2)) == 2


def test_a_number_is_of_every_class_and_takes_what_there_is():
    counts = [100, 40, 8, 3, 1]
    images = classes_of(counts)

    def held(chosen):
        return [sum(images[i] == [c] for i in chosen) for c in range(len(counts))]

    assert held(calibration_images(images, 8)) == [8, 8, 8, 3, 1]
    # To train without them, one of every class is left.
    assert held(calibration_images(images, 8, rest=True)) == [8, 8, 7, 2, 0]
    assert calibration_images({1: [0]}, 1.0) == {1}


def test_rare_images_count_for_the_frequent_classes_that_they_show():
    images = {**{i: [0] for i in range(20)}, 20: [1, 0], 21: [1], 22: [2]}
    chosen = calibration_images(images, 3)
    assert {20, 21, 22} < chosen and len(chosen) == 5


@pytest.mark.parametrize("amount", [0, 1.5, -0.1, -1, float("nan"), float("inf")])
def test_bad_amount(amount):
    with pytest.raises(ValueError, match="calibrate="):
        calibration_images(classes_of([5]), amount)


def test_nothing_to_hold_out():
    with pytest.raises(ValueError, match="No class has two images"):
        calibration_images({1: [0], 2: [1], 3: []}, 0.5)


def test_held_out_set(tiny_set, tmp_path, monkeypatch):
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
    with monkeypatch.context() as patch:  # the whole set is read once, whoever changes its records
        patch.setitem(DatasetCatalog.data, tiny_set["train"], None)
        records.pop().clear()
        assert {record["image_id"] for record in DatasetCatalog.get(name)} == ids
    assert hold_out(tiny_set["train"], 0.3, tmp_path, rest=True) == name
    rest = json.loads((tmp_path / "training.json").read_text())
    assert {i["id"] for i in rest["images"]} == {i["id"] for i in everything["images"]} - ids
    total = len(rest["annotations"]) + len(written["annotations"])
    assert total == len(everything["annotations"])


def test_held_out_images_of_a_coco_set_whose_ids_are_none_of_0_to_c(tiny_set, tmp_path):
    known = MetadataCatalog.get(tiny_set["train"])
    content = json.loads(open(known.json_file).read())
    for category in content["categories"]:
        category["id"] *= 10
    for one in content["annotations"]:
        one.update(category_id=10 * one["category_id"], iscrowd=0)
    for image in content["images"]:
        image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
    (tmp_path / "coco.json").write_text(json.dumps(content))
    register_coco_instances("coco_by_ten", {}, str(tmp_path / "coco.json"), known.image_root)
    name = hold_out("coco_by_ten", 0.3, tmp_path)
    part = MetadataCatalog.get(name)  # before any of its images is asked for
    ids = sorted(category["id"] for category in content["categories"])
    assert part.thing_dataset_id_to_contiguous_id == {one: i for i, one in enumerate(ids)}
    assert part.thing_classes == MetadataCatalog.get("coco_by_ten").thing_classes
    assert part.json_file == str(tmp_path / "calibration.json")
    for one in (name, "coco_by_ten"):
        DatasetCatalog.remove(one)
        MetadataCatalog.remove(one)


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
    report = run_sweep(YacsRecipe(sweep_cfg), (1.0, 0.0), metric="bbox/AP50", calibrate=0.2)
    folder = tmp_path / "output"
    assert json.loads((folder / "alpha.json").read_text()) == report
    assert list(report["results"]) == ["0", "1"] and report["calibrate"] == 0.2
    values = {float(a): r["bbox"]["AP50"] for a, r in report["results"].items()}
    assert values[report["alpha"]] == max(values.values())
    assert (folder / "alpha.png").stat().st_size > 10_000
    expected = sweep_cfg.clone()
    expected.MODEL.TDE.ALPHA = report["alpha"]
    expected.MODEL.WEIGHTS = str(folder / "model_alpha.pth")
    (tmp_path / "expected.yaml").write_text(expected.dump())
    written = load_config(str(folder / "config_alpha.yaml"))
    assert written == load_config(str(tmp_path / "expected.yaml"))
    saved = torch.load(folder / "model_alpha.pth")
    assert saved["model"]["roi_heads.box_predictor._extra_state"] == report["alpha"]
    assert saved["alpha"]["metric"] == "bbox/AP50" and saved["alpha"]["calibrate"] == 0.2
    chosen = unpack(saved["model"]["roi_heads.box_predictor.strengths"])
    assert chosen["settings"]["class_"] == chosen["settings"]["region"] == report["alpha"]
    assert f"alpha {report['alpha']:g} by bbox/AP50 on " in chosen["chosen"]
    names = unpack_words(saved["model"]["roi_heads.box_predictor.statistics.names"])
    assert names == MetadataCatalog.get(sweep_cfg.DATASETS.TRAIN[0]).thing_classes
    table = format_sweep(report)
    assert table.count("\n") == 3 and "segm APr" in table and "bbox APf" in table
    assert f"{report['alpha']:g}*" in table


def test_sweep_on_the_test_set_warns(sweep_cfg, tiny_set, caplog):
    report = run_sweep(YacsRecipe(sweep_cfg), (0.0,))
    assert report["dataset"] == tiny_set["val"] and report["calibrate"] is None
    assert "Do not report its figures" in caplog.text


def test_the_largest_alpha_is_suspicious(sweep_cfg, caplog, monkeypatch):
    found = {a: {"segm": {"AP": a, "APr": 0.0, "APc": 0.0, "APf": 0.0}} for a in (0.0, 1.0)}
    monkeypatch.setattr("lvis_tde.calibration.sweep.sweep_alpha", lambda *_, **__: found)
    assert run_sweep(YacsRecipe(sweep_cfg), (0.0, 1.0))["alpha"] == 1
    assert "largest that was tried" in caplog.text
    # Of equals the one that changes least.
    assert run_sweep(YacsRecipe(sweep_cfg), (0.0, 1.0), metric="segm/APr")["alpha"] == 0


@pytest.mark.parametrize("metric", ["segm/APx", "AP", "keypoints/AP", "boundary/AP", "segm/"])
def test_a_wrong_metric_is_refused_before_anything_runs(metric, sweep_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr("lvis_tde.calibration.sweep.sweep_alpha", None)
    with pytest.raises(ValueError, match=f"metric='{metric}'.*bbox, segm and NAME.*APr"):
        run_sweep(YacsRecipe(sweep_cfg), (0.0,), metric=metric, calibrate=0.2)
    assert not (tmp_path / "output" / "calibration.json").exists()


def test_metrics_of_other_sets_and_models(tiny_model):
    model = tiny_model()
    MetadataCatalog.get("sweep_coco").set(evaluator_type="coco", thing_classes=["a b", "c"])
    for metric in ("segm/AP75", "bbox/AP-a b"):
        check_metric(metric, model, "sweep_coco")
    for metric in ("segm/APr", "bbox/AP-d", "keypoints/AP"):
        with pytest.raises(ValueError, match=metric):
            check_metric(metric, model, "sweep_coco")
    model.roi_heads.mask_on = False
    with pytest.raises(ValueError, match="TASK one of bbox and"):
        check_metric("segm/AP", model, "sweep_coco")
    # Nothing is known of the names that another evaluator gives.
    check_metric("bbox/mine", model, "sweep_of_no_type")


def test_an_undefined_metric_has_no_best_alpha(caplog):
    for undefined in (-1.0, -100.0, float("nan")):
        found = {alpha: {"segm": {"APr": undefined}} for alpha in (0.0, 1.0)}
        with pytest.raises(ValueError, match="segm/APr is undefined for every alpha"):
            best_alpha(found, "segm/APr")
        found[1.0]["segm"]["APr"] = 0.0
        assert best_alpha(found, "segm/APr") == 1.0
        assert "undefined for alpha [0.0]" in caplog.text
    with pytest.raises(ValueError, match="'bbox/AP' is not in the results: segm/APr"):
        best_alpha(found, "bbox/AP")
    assert best_alpha({2.0: {"a": {"b": 3}}, 1.0: {"a": {"b": 3}}}, "a/b") == 1.0


def test_an_interrupted_evaluation_leaves_its_results(sweep_cfg, tmp_path, monkeypatch):
    evaluate, calls = LVISEvaluator.evaluate, []

    def interrupted(self):
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(self)

    monkeypatch.setattr(LVISEvaluator, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(YacsRecipe(sweep_cfg), (0.0, 1.0, 2.0))
    written = json.loads((tmp_path / "output" / "alpha.json").read_text())
    assert written["alpha"] is None and list(written["results"]) == ["0", "1"]
    assert "AP" in written["results"]["1"]["segm"]


def test_an_undefined_metric_leaves_the_results(sweep_cfg, tmp_path, monkeypatch):
    evaluate = LVISEvaluator.evaluate

    def without_rare(self):
        results = evaluate(self)
        results["segm"]["APr"] = -100.0
        return results

    monkeypatch.setattr(LVISEvaluator, "evaluate", without_rare)
    with pytest.raises(ValueError, match="segm/APr is undefined"):
        run_sweep(YacsRecipe(sweep_cfg), (0.0, 1.0), metric="segm/APr")
    written = json.loads((tmp_path / "output" / "alpha.json").read_text())
    assert written["alpha"] is None and list(written["results"]) == ["0", "1"]
    assert not (tmp_path / "output" / "config_alpha.yaml").exists()


def test_mistakes(sweep_cfg):
    two = sweep_cfg.clone()
    two.DATASETS.TEST = ("a", "b")
    with pytest.raises(ValueError, match=r"\('a', 'b'\)"):
        run_sweep(YacsRecipe(two), (0.0,))
    with pytest.raises(ValueError, match="alpha=inf"):
        run_sweep(YacsRecipe(sweep_cfg), (0.0, float("inf")))
