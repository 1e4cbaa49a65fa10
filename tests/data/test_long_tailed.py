"""Registration of user files: groups, completed copies, what the official evaluation says."""

import copy
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.structures.masks import polygons_to_bitmask
from lvis import LVIS

from lvis_tde.data.frequency import frequency_group
from lvis_tde.data.long_tailed import register_long_tailed
from lvis_tde.evaluation import GroundTruth, LVISEvaluator, evaluate_lvis
from lvis_tde.evaluation.ground_truth import with_negatives

SIZE = 32


def _square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def _coco(counts, first_image=1):
    """COCO-format data: category ``c`` has one object in each of its first ``counts[c]`` images."""
    num_images = max(counts.values())
    images = [
        {"id": first_image + i, "file_name": f"{i}.jpg", "height": SIZE, "width": SIZE}
        for i in range(num_images)
    ]
    annotations = []
    for slot, (category, count) in enumerate(counts.items()):
        for i in range(count):
            x, y, side = 1 + 8 * slot, 2, 6
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": first_image + i,
                    "category_id": category,
                    "bbox": [x, y, side, side],
                    "area": float(side * side),
                    "iscrowd": 0,
                    "segmentation": [_square(x, y, side)],
                }
            )
    categories = [{"id": c, "name": f"class {c}"} for c in counts]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def register(tmp_path, request):
    """Writes data to a file and registers it; the catalogs are cleaned up afterwards."""
    names = []

    def _register(data, name="set", **options):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data))
        full_name = f"{request.node.name}_{name}"
        options.setdefault("cache_dir", tmp_path / "cache")
        register_long_tailed(full_name, path, tmp_path / "images", **options)
        names.append(full_name)
        assert json.loads(path.read_text()) == data
        return full_name

    yield _register
    for name in set(names):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _perfect_predictions(name):
    """Evaluate the annotations themselves, by the official package."""
    evaluator = LVISEvaluator(name, distributed=False, engine="lvis")
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        objects = [a for a in record["annotations"] if not a.get("iscrowd")]
        instances = Instances((SIZE, SIZE))
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.pred_classes = torch.tensor([a["category_id"] for a in objects])
        instances.scores = torch.ones(len(objects))
        masks = [
            polygons_to_bitmask([np.array(p) for p in a["segmentation"]], SIZE, SIZE)
            for a in objects
        ]
        instances.pred_masks = torch.tensor(np.array(masks).reshape(-1, SIZE, SIZE))
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    "count, group",
    [(0, "r"), (1, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f"), (10**6, "f")],
)
def test_groups_follow_lvis(count, group):
    assert frequency_group(count) == group


def test_coco_file_with_gaps_in_its_ids_is_evaluated_by_group(register):
    data = _coco({90: 2, 3: 12, 7: 103})
    name = register(data)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["class 3", "class 7", "class 90"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 90: 2}
    assert metadata.class_frequency == ["c", "f", "r"]
    assert metadata.class_image_count == [
        {"id": 3, "image_count": 12},
        {"id": 7, "image_count": 103},
        {"id": 90, "image_count": 2},
    ]
    for task, results in _perfect_predictions(name).items():
        for metric in ("AP", "AP50", "APr", "APc", "APf"):
            assert results[metric] == pytest.approx(100.0), (task, metric)


def test_records_are_those_of_detectron2(register, tmp_path):
    data = _coco({0: 3, 5: 1})
    name = register(data)
    expected = load_coco_json(
        str(tmp_path / "set.json"), str(tmp_path / "images"), f"{name}_upstream"
    )
    assert DatasetCatalog.get(name) == expected
    assert expected[0]["annotations"][1]["category_id"] == 1
    MetadataCatalog.remove(f"{name}_upstream")


def test_zero_based_annotation_and_category_ids(register):
    data = _coco({0: 3, 1: 2})
    for annotation in data["annotations"]:
        annotation["id"] -= 1
    name = register(data)
    api = LVIS(MetadataCatalog.get(name).json_file)
    assert sorted(api.anns) == [1, 2, 3, 4, 5]
    # An object with id 0 that is found would count as a false positive.
    assert _perfect_predictions(name)["segm"]["APr"] == pytest.approx(100.0)


def _negatives(name):
    content = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    assert content["exhaustive"] is True
    assert not any("neg_category_ids" in image for image in content["images"])
    expanded = with_negatives(content)
    assert "exhaustive" not in expanded and "exhaustive" in content
    return {image["id"]: image["neg_category_ids"] for image in expanded["images"]}


def test_exhaustive_file_has_every_absent_class_as_negative(register):
    name = register(_coco({1: 3, 2: 1, 3: 2}))
    assert _negatives(name) == {1: [], 2: [2], 3: [2, 3]}
    api = LVIS(MetadataCatalog.get(name).json_file)
    assert all(image["not_exhaustive_category_ids"] == [] for image in api.imgs.values())


def test_copy_of_an_exhaustive_file_lists_no_absences(register, tmp_path):
    data = _coco({c: 1 + c % 3 for c in range(1, 401)})
    copied = Path(MetadataCatalog.get(register(data)).json_file)
    assert copied.stat().st_size < 1.3 * (tmp_path / "set.json").stat().st_size
    data = _lvis()
    assert with_negatives(data) is data


@pytest.mark.parametrize("engine", ["native", "lvis"])
@pytest.mark.parametrize("seed", range(3))
def test_exhaustive_mark_evaluates_as_the_lists(register, seed, engine):
    rng = np.random.default_rng(seed)
    data = _coco(dict.fromkeys(range(2, 8), 12))
    boxes = rng.integers(0, 20, (len(data["annotations"]), 2))
    data["annotations"] = [a for a in data["annotations"] if rng.random() < 0.5]
    for annotation, (x, y) in zip(data["annotations"], boxes.tolist()):
        annotation.update(bbox=[x, y, 8, 8], area=64.0, segmentation=[_square(x, y, 8)])
        annotation["area"] *= rng.random() < 0.9  # without an area it is no ground truth
        annotation["iscrowd"] = int(rng.random() < 0.2)
    results = []
    for image in data["images"]:
        for category in range(2, 8):
            for x, y in (boxes[rng.integers(len(boxes), size=3)] + rng.integers(2)).tolist():
                found = dict(image_id=image["id"], category_id=category, score=rng.random())
                results.append({**found, "bbox": [x, y, 8, 8], "segmentation": [_square(x, y, 8)]})
    name = register(data, bounds=(4, 6))
    marked = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())

    listed = copy.deepcopy(marked)
    del listed["exhaustive"]
    for image in listed["images"]:
        here = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        shown = {a["category_id"] for a in here}
        image["neg_category_ids"] = [c for c in range(2, 8) if c not in shown]
        crowds = {a["category_id"] for a in here if a["iscrowd"]}
        assert set(image["not_exhaustive_category_ids"]) == crowds
    for iou_type in ("bbox", "segm"):
        got, expected = (
            evaluate_lvis(annotations, results, iou_type, engine=engine)
            for annotations in (marked, listed)
        )
        assert got.metrics == expected.metrics and 0 < got.metrics["AP"] < 100
        np.testing.assert_equal(got.per_category, expected.per_category)
    if seed == 0:
        other = evaluate_lvis(name, results, "bbox", engine="native")
        assert other.metrics == pytest.approx(evaluate_lvis(listed, results, "bbox").metrics)


def test_one_process_writes_the_copy_and_the_others_wait(register, tmp_path, caplog):
    path = tmp_path / "shared.json"
    path.write_text(json.dumps(_coco({c: 40 for c in range(1, 50)})))
    barrier, names = threading.Barrier(4), [f"shared_{i}" for i in range(4)]

    def work(name):
        barrier.wait()
        register_long_tailed(name, path, tmp_path, cache_dir=tmp_path / "cache")

    with caplog.at_level("INFO", "lvis_tde"), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, names))
    copies = {MetadataCatalog.get(name).json_file for name in names}
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert copies == {str(p) for p in (tmp_path / "cache").glob("*.json")} and len(copies) == 1
    assert sum("Wrote" in record.message for record in caplog.records) == 1


def test_crowds_are_no_objects_and_excuse_false_positives(register):
    data = _coco({1: 3, 2: 1})
    crowd = data["annotations"][0]
    crowd["iscrowd"] = 1
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[2:8, 1:7] = 1
    rle = mask_utils.encode(mask)
    crowd["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    name = register(data)
    api = LVIS(MetadataCatalog.get(name).json_file)
    assert crowd["id"] not in api.anns and len(api.anns) == 3
    assert api.imgs[1]["not_exhaustive_category_ids"] == [1]
    assert 1 not in _negatives(name)[1]
    assert MetadataCatalog.get(name).class_image_count[0] == {"id": 1, "image_count": 2}


def test_val_takes_groups_and_classes_from_train(register, tmp_path):
    train = _coco({1: 101, 2: 11, 4: 1})
    register(train, "train")
    val = _coco({2: 2, 4: 2}, first_image=1000)
    name = register(val, "val", train_json=tmp_path / "train.json")
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["class 1", "class 2", "class 4"]
    assert metadata.class_frequency == ["f", "c", "r"]
    api = LVIS(metadata.json_file)
    assert [api.cats[c]["image_count"] for c in (1, 2, 4)] == [101, 11, 1]
    assert _negatives(name)[1000] == [1]
    labels = {a["category_id"] for r in DatasetCatalog.get(name) for a in r["annotations"]}
    assert labels == {1, 2}


def test_own_bounds(register):
    name = register(_coco({1: 1, 2: 3, 3: 6}), bounds=(2, 5))
    assert MetadataCatalog.get(name).class_frequency == ["r", "c", "f"]


def _lvis():
    data = _coco({1: 2, 2: 1})
    for image in data["images"]:
        image["coco_url"] = f"http://host.invalid/val2017/{image.pop('file_name')}"
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    for annotation in data["annotations"]:
        annotation.pop("iscrowd")
    for category in data["categories"]:
        category.update(frequency="f", image_count=500, instance_count=900)
    return data


def test_complete_lvis_file_is_used_as_it_is(register, tmp_path):
    name = register(_lvis())
    metadata = MetadataCatalog.get(name)
    assert metadata.json_file == str(tmp_path / "set.json")
    assert not (tmp_path / "cache").exists()
    assert metadata.class_frequency == ["f", "f"]
    records = DatasetCatalog.get(name)
    assert records[0]["file_name"] == str(tmp_path / "images" / "val2017" / "0.jpg")
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 1]
    assert _perfect_predictions(name)["bbox"]["APf"] == pytest.approx(100.0)


def test_lvis_file_keeps_its_negatives_when_counts_are_missing(register):
    data = _lvis()
    data["images"][1]["neg_category_ids"] = [2]
    for category in data["categories"]:
        for key in ("frequency", "image_count", "instance_count"):
            del category[key]
    name = register(data)
    api = LVIS(MetadataCatalog.get(name).json_file)
    assert [api.imgs[i]["neg_category_ids"] for i in (1, 2)] == [[], [2]]
    assert [api.cats[c]["frequency"] for c in (1, 2)] == ["r", "r"]
    assert [api.cats[c]["instance_count"] for c in (1, 2)] == [2, 1]


def test_missing_area_is_the_mask_area(register):
    data = _coco({1: 1})
    del data["annotations"][0]["area"]
    api = LVIS(MetadataCatalog.get(register(data)).json_file)
    assert api.anns[1]["area"] == api.ann_to_mask(api.anns[1]).sum()


@pytest.mark.parametrize("area", [-5, 2e10])
def test_an_object_whose_area_is_in_no_range_is_measured(register, area):
    data = _lvis()
    truth = GroundTruth.load(MetadataCatalog.get(register(data, "whole")).json_file)
    data["annotations"][0]["area"] = area
    file = MetadataCatalog.get(register(data)).json_file
    api = LVIS(file)
    number = data["annotations"][0]["id"]
    assert api.anns[number]["area"] == api.ann_to_mask(api.anns[number]).sum()
    assert GroundTruth.load(file).annotation_ids == truth.annotation_ids


def test_a_box_that_is_larger_than_all_images_is_an_object(register):
    data = _coco({1: 1})
    data["annotations"][0].update(bbox=[0, 0, 5e5, 5e5], segmentation=None, area=None)
    file = MetadataCatalog.get(register(data)).json_file
    assert json.loads(Path(file).read_text())["annotations"][0]["area"] == 1e10


def test_copy_is_shared_and_follows_the_original(register, tmp_path):
    first = MetadataCatalog.get(register(_coco({1: 1}), "a")).json_file
    for name in ("again", "changed"):
        register_long_tailed(
            f"copy_{name}", tmp_path / "a.json", tmp_path, cache_dir=tmp_path / "cache"
        )
        (tmp_path / "a.json").write_text(json.dumps(_coco({1: 2})))
    assert MetadataCatalog.get("copy_again").json_file == first
    assert MetadataCatalog.get("copy_changed").json_file != first
    assert len(LVIS(MetadataCatalog.get("copy_changed").json_file).imgs) == 2
    assert len(list((tmp_path / "cache").glob("*.json"))) == 2
    for name in ("copy_again", "copy_changed"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_registering_twice(register):
    name = register(_coco({1: 1}))
    before = MetadataCatalog.get(name).json_file
    register(_coco({1: 1}))
    assert MetadataCatalog.get(name).json_file == before
    with pytest.raises(ValueError, match="registered already"):
        register(_coco({1: 1}), bounds=(1, 2))


def test_interrupted_copy_leaves_nothing(register, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupt)
        register(_coco({1: 1}))
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]
    register(_coco({1: 1}))


def _broken(change):
    data = copy.deepcopy(_coco({1: 2, 2: 1}))
    change(data)
    return data


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(categories=[]), "no categories"),
        (lambda d: d.pop("images"), "no list 'images'"),
        (lambda d: d["annotations"][1].update(id=1), "annotations: id 1 occurs twice"),
        (lambda d: d["images"][1].update(id=1), "images: id 1 occurs twice"),
        (lambda d: d["categories"][1].update(id=1), "categories: id 1 occurs twice"),
        (lambda d: d["annotations"][0].update(category_id=9), "annotation 1 has category_id=9"),
        (lambda d: d["annotations"][0].update(image_id=9), "annotation 1 has image_id=9"),
        (lambda d: d["annotations"][0].pop("bbox"), "annotation 1 has bbox=None"),
        (lambda d: d["annotations"][0].pop("id"), "has no id"),
        (lambda d: d["images"][0].update(neg_category_ids=[]), "image 2 has no neg_category_ids"),
        (lambda d: d["images"][0].update(file_name=""), r"image 1 lacks \['file_name'\]"),
        (lambda d: d["images"][0].pop("height"), r"image 1 lacks \['height'\]"),
    ],
)
def test_inconsistent_files(register, change, message):
    with pytest.raises(ValueError, match=message):
        register(_broken(change))


def test_other_mistakes(register, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        register_long_tailed("absent", tmp_path / "absent.json", tmp_path)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        register_long_tailed("text", tmp_path / "text.json", tmp_path)
    with pytest.raises(ValueError, match=r"bounds.*\(5, 5\)"):
        register(_coco({1: 1}), bounds=(5, 5))
    register(_coco({1: 1}), "train")
    other = _coco({1: 1})
    other["categories"][0]["name"] = "another"
    with pytest.raises(ValueError, match="category 1 is 'another'"):
        register(other, "val", train_json=tmp_path / "train.json")
    assert not {"absent", "text"} & set(DatasetCatalog.list())
