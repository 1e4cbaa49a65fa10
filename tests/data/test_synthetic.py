"""The generated set, held against the official lvis package, pycocotools and the pixels."""

import collections
import colorsys
import hashlib
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import load_lvis_json
from lvis import LVIS
from PIL import Image

from lvis_tde.data.generation import shape_files
from lvis_tde.data.synthetic import make_synthetic_lvis, register_synthetic_lvis

SPLITS = ("train", "calib", "val")
# A steeper law than the default gives all three groups with few images.
TINY = {
    "num_train": 180,
    "num_calib": 10,
    "num_val": 30,
    "num_classes": 12,
    "image_size": 64,
    "objects_per_image": (2, 4),
    "zipf_exponent": 2.0,
    "zipf_shift": 0.0,
    "num_negatives": 5,
}
TINIEST = {**TINY, "num_train": 12, "num_val": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("datasets")
    make_synthetic_lvis(path, seed=3, **TINY)
    return path


@pytest.fixture(scope="module")
def folder(root):
    return root / "synthetic_lvis" / "seed3"


@pytest.fixture(scope="module")
def apis(folder):
    return {split: LVIS(str(folder / "annotations" / f"{split}.json")) for split in SPLITS}


def _digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_official_lvis_and_detectron2_load_it(folder, apis):
    for split in SPLITS:
        api = apis[split]
        assert sorted(api.cats) == list(range(1, TINY["num_classes"] + 1))
        assert len(api.imgs) == TINY[f"num_{split}"]
        assert sorted(api.anns) == list(range(1, len(api.dataset["annotations"]) + 1))
        json_file = str(folder / "annotations" / f"{split}.json")
        records = load_lvis_json(json_file, f"{folder}/")
        assert len(records) == len(api.imgs)
        for record in records:
            with Image.open(record["file_name"]) as image:
                assert image.size == (record["width"], record["height"])
            for annotation in record["annotations"]:
                assert 0 <= annotation["category_id"] < TINY["num_classes"]


def test_fields_of_lvis_v1(apis):
    keys = {
        "categories": "id name synset synonyms def frequency image_count instance_count",
        "images": "id height width coco_url flickr_url license date_captured neg_category_ids "
        "not_exhaustive_category_ids",
        "annotations": "id image_id category_id segmentation area bbox",
    }
    for api in apis.values():
        assert set(api.dataset) == {"info", "licenses", *keys}
        for part, expected in keys.items():
            for record in api.dataset[part]:
                assert set(record) == set(expected.split())


def test_every_split_has_train_counts_and_lvis_groups(apis):
    images, instances = collections.defaultdict(set), collections.Counter()
    for annotation in apis["train"].dataset["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
        instances[annotation["category_id"]] += 1
    groups = set()
    for category_id in apis["train"].cats:
        count = len(images[category_id])
        assert count >= 1
        group = "r" if count <= 10 else "c" if count <= 100 else "f"
        groups.add(group)
        for api in apis.values():
            category = api.cats[category_id]
            assert category["image_count"] == count
            assert category["instance_count"] == instances[category_id]
            assert category["frequency"] == group
    assert groups == {"r", "c", "f"}


def test_val_and_calibration_are_balanced(apis):
    for split in ("calib", "val"):
        counts = collections.Counter(
            annotation["category_id"] for annotation in apis[split].dataset["annotations"]
        )
        # Objects left out of classes that are not exhaustively annotated make the difference.
        left_out = sum(
            len(image["not_exhaustive_category_ids"]) for image in apis[split].imgs.values()
        )
        assert set(counts) == set(apis[split].cats)
        assert max(counts.values()) - min(counts.values()) <= 1 + left_out


def test_negatives_are_absent_and_incomplete_classes_present(apis):
    incomplete = 0
    for api in apis.values():
        for image_id, image in api.imgs.items():
            present = {a["category_id"] for a in api.img_ann_map[image_id]}
            negatives = set(image["neg_category_ids"])
            assert len(negatives) == len(image["neg_category_ids"]) == TINY["num_negatives"]
            assert negatives <= set(api.cats)
            assert not negatives & present
            assert set(image["not_exhaustive_category_ids"]) <= present
            incomplete += len(image["not_exhaustive_category_ids"])
    assert incomplete > 0


def test_every_drawn_object_is_annotated_or_its_class_is_incomplete(tmp_path, monkeypatch):
    drawn, draw_scene = [], shape_files.draw_scene

    def record(seed, looks, size):
        drawn.append([look.name for look in looks])
        return draw_scene(seed, looks, size)

    monkeypatch.setattr(shape_files, "draw_scene", record)
    folder = make_synthetic_lvis(tmp_path, seed=1, **TINIEST)
    images = iter(drawn)
    for split in SPLITS:
        api = LVIS(str(folder / "annotations" / f"{split}.json"))
        for image_id in sorted(api.imgs):
            truth = collections.Counter(next(images))
            found = collections.Counter(
                api.cats[a["category_id"]]["name"] for a in api.img_ann_map[image_id]
            )
            negatives = {api.cats[c]["name"] for c in api.imgs[image_id]["neg_category_ids"]}
            incomplete = api.imgs[image_id]["not_exhaustive_category_ids"]
            assert not negatives & set(truth)
            assert truth - found == collections.Counter(api.cats[c]["name"] for c in incomplete)
            assert not found - truth


def test_polygons_boxes_and_areas_agree_with_the_rasterised_mask(apis):
    size = TINY["image_size"]
    for annotation in apis["train"].dataset["annotations"]:
        perimeter, corners = 0.0, []
        for polygon in annotation["segmentation"]:
            assert len(polygon) >= 6 and len(polygon) % 2 == 0
            points = np.reshape(polygon, (-1, 2))
            assert points.min() >= 0 and points.max() <= size
            perimeter += np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum()
            corners.append(points)
        mask = apis["train"].ann_to_mask(annotation)
        assert abs(mask.sum() - annotation["area"]) <= 0.35 * perimeter + 1
        low, high = np.concatenate(corners).min(0), np.concatenate(corners).max(0)
        np.testing.assert_allclose(annotation["bbox"], [*low, *(high - low)])


def test_objects_of_an_image_hardly_overlap(apis):
    size = TINY["image_size"]
    for image_id in apis["train"].imgs:
        rles = [
            mask_utils.merge(mask_utils.frPyObjects(a["segmentation"], size, size))
            for a in apis["train"].img_ann_map[image_id]
        ]
        total = sum(float(mask_utils.area(rle)) for rle in rles)
        # Only pixels that a border crosses may belong to two polygons.
        assert total - float(mask_utils.area(mask_utils.merge(rles))) <= 0.05 * total


def test_pixels_have_the_hue_of_the_class(folder, apis):
    hues = {"red": 0, "orange": 35, "green": 120, "mint": 155, "blue": 240, "violet": 275}
    far = 0
    annotations = apis["val"].dataset["annotations"]
    for annotation in annotations:
        image = np.array(Image.open(folder / "val" / f"{annotation['image_id']:012d}.jpg"))
        mask = apis["val"].ann_to_mask(annotation).astype(bool)
        name = apis["val"].cats[annotation["category_id"]]["name"]
        hue = next(h for color, h in hues.items() if f"_{color}_" in f"_{name}")
        measured = 360 * colorsys.rgb_to_hsv(*image[mask].mean(0) / 255)[0]
        far += abs((measured - hue + 180) % 360 - 180) > 17.5
    # Nearer to its own hue than to the next, but for the tails of the hue's spread.
    assert far <= 0.05 * len(annotations)


def test_same_seed_same_bytes_other_seed_other_images(tmp_path):
    first = _digests(make_synthetic_lvis(tmp_path / "a", seed=5, **TINIEST))
    again = _digests(make_synthetic_lvis(tmp_path / "b", seed=5, **TINIEST))
    other = _digests(make_synthetic_lvis(tmp_path / "c", seed=6, **TINIEST))
    assert first == again
    assert not set(first.values()) & set(other.values())


def test_splits_share_no_image(folder, apis):
    digests = [v for k, v in _digests(folder).items() if k.endswith(".jpg")]
    assert len(set(digests)) == len(digests) == sum(TINY[f"num_{split}"] for split in SPLITS)
    ids = [set(api.imgs) for api in apis.values()]
    assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]


def test_complete_set_is_reused_and_another_is_not_replaced_silently(tmp_path):
    folder = make_synthetic_lvis(tmp_path, **TINIEST)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_synthetic_lvis(tmp_path, **TINIEST) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    other = {**TINIEST, "num_val": 11}
    with pytest.raises(ValueError, match=r"num_val.*\(10, 11\).*overwrite"):
        make_synthetic_lvis(tmp_path, **other)
    make_synthetic_lvis(tmp_path, overwrite=True, **other)
    assert len(list((folder / "val").iterdir())) == 11
    assert [path.name for path in folder.parent.iterdir()] == ["seed0"]


def test_failed_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(seed, looks, size):
        raise KeyboardInterrupt

    monkeypatch.setattr(shape_files, "draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic_lvis(tmp_path, **TINIEST)
    assert list((tmp_path / "synthetic_lvis").iterdir()) == []


def test_killed_run_leaves_no_set_and_the_next_one_succeeds(tmp_path):
    context = multiprocessing.get_context("fork")
    child = context.Process(
        target=make_synthetic_lvis, args=(tmp_path,), kwargs={**TINY, "num_train": 5000}
    )
    child.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert list(tmp_path.rglob("*.jpg"))
    assert not (tmp_path / "synthetic_lvis" / "seed0").exists()
    with pytest.raises(ValueError, match="make_synthetic_lvis"):
        register_synthetic_lvis(tmp_path, prefix="killed")
    folder = make_synthetic_lvis(tmp_path, **TINIEST)
    assert len(list((folder / "train").iterdir())) == TINIEST["num_train"]


def test_registration(root, folder):
    names = register_synthetic_lvis(root, seed=3)
    assert names == {split: f"synthetic_lvis_seed3_{split}" for split in SPLITS}
    assert register_synthetic_lvis(root, seed=3) == names
    for split, name in names.items():
        records = DatasetCatalog.get(name)
        json_file = folder / "annotations" / f"{split}.json"
        assert records == load_lvis_json(str(json_file), f"{folder}/")
        metadata = MetadataCatalog.get(name)
        categories = json.loads(json_file.read_text())["categories"]
        assert metadata.thing_classes == [c["name"] for c in categories]
        assert metadata.class_frequency == [c["frequency"] for c in categories]
        assert metadata.class_image_count == [
            {"id": c["id"], "image_count": c["image_count"]} for c in categories
        ]
        assert metadata.evaluator_type == "lvis"
        assert metadata.json_file == str(json_file)


@pytest.mark.parametrize(
    "bad",
    [
        {"num_classes": 1},
        {"num_classes": 73},
        {"objects_per_image": (3, 2)},
        {"num_val": 5},
        {"not_exhaustive_prob": 1.5},
        {"seed": -1},
        {"zipf_exponent": float("nan")},
    ],
)
def test_bad_arguments(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        make_synthetic_lvis(tmp_path, **{**TINIEST, **bad})


def test_too_many_objects_for_the_image(tmp_path):
    crowded = {**TINIEST, "objects_per_image": (60, 60), "image_size": 32}
    with pytest.raises(ValueError, match="60 objects do not fit into 32x32"):
        make_synthetic_lvis(tmp_path, **crowded)
