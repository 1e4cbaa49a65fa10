"""What the demo draws of made-up detections on a generated set."""

import logging

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from lvis_tde.evaluation import Detections
from lvis_tde.experiments.demo_pictures import draw_ap_over_images, draw_classes, draw_images
from lvis_tde.visualization.palette import GROUP_COLORS


@pytest.fixture
def val(tiny_set):
    records = [r for r in DatasetCatalog.get(tiny_set["val"]) if r["annotations"]]
    return tiny_set["val"], records, MetadataCatalog.get(tiny_set["val"])


def result(record, annotation, category_id, score):
    x, y, w, h = (round(v) for v in annotation["bbox"])
    mask = np.zeros((record["height"], record["width"]), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return {
        "image_id": record["image_id"],
        "category_id": category_id,
        "bbox": list(annotation["bbox"]),
        "score": score,
        "segmentation": mask_utils.encode(mask),
    }


def truths(records, metadata):
    """Every object found with its class."""
    ids = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
    return [
        result(record, annotation, ids[annotation["category_id"]], 0.9)
        for record in records
        for annotation in record["annotations"]
    ]


def draw(val, before, after, output, count=1):
    sides = (Detections.from_results(side) for side in (before, after))
    draw_images(val[0], *sides, "alpha 1.5", count, output, opening_size=160)
    return {path.name for path in output.glob("*.png")}


def test_opening_picture_is_of_the_rare_object_that_only_one_side_names(val, tmp_path, caplog):
    _, records, metadata = val
    on = truths(records, metadata)
    rare = {
        i
        for i, category in metadata.thing_dataset_id_to_contiguous_id.items()
        if metadata.class_frequency[category] == "r"
    }
    lost = next(i for i, r in enumerate(on) if r["category_id"] in rare)
    off = [
        dict(r, category_id=min(set(range(1, 8)) - rare)) if i == lost else r
        for i, r in enumerate(on)
    ]
    caplog.set_level(logging.INFO)
    pictures = draw(val, off, on, tmp_path)
    changed = f"val_{on[lost]['image_id']}.png"
    assert pictures == {"opening.png", changed}
    category = metadata.thing_dataset_id_to_contiguous_id[on[lost]["category_id"]]
    name = metadata.thing_classes[category].replace("_", " ")
    images = metadata.class_image_count[category]["image_count"]
    assert f"Rare class “{name}” ({images} training image" in caplog.text
    assert "steps: alpha 1.5. Both sides" in caplog.text
    assert "1 are found only with the steps and 0 only without" in caplog.text
    width, height = Image.open(tmp_path / "opening.png").size
    assert width == 3 * 160 + 4 * 14 and height > 160

    # Of another seed: the pictures are replaced.
    (tmp_path / "val_999.png").write_bytes(b"")
    assert draw(val, off, on, tmp_path, count=0) == {"opening.png"}


def test_a_common_object_stands_in_for_a_rare_one(val, tmp_path, caplog):
    _, records, metadata = val
    on = truths(records, metadata)
    groups = [
        metadata.class_frequency[metadata.thing_dataset_id_to_contiguous_id[r["category_id"]]]
        for r in on
    ]
    off = [r for r, group in zip(on, groups) if group != "c"]
    caplog.set_level(logging.INFO)
    assert "opening.png" in draw(val, off, on, tmp_path)
    assert "No object of a rare class is found with the steps alone" in caplog.text
    assert "Common class “" in caplog.text and "Frequent class" not in caplog.text


@pytest.mark.parametrize("found", [False, True])
def test_without_a_candidate_there_is_a_picture_that_says_so(val, tmp_path, caplog, found):
    results = truths(*val[1:]) if found else []
    caplog.set_level(logging.INFO)
    assert "opening.png" in draw(val, results, results, tmp_path)
    assert "No object is found with the steps alone" in caplog.text


def test_sheet_of_classes(tiny_set, tmp_path):
    draw_classes(tiny_set["train"], tmp_path, "credit")
    sheet = np.asarray(Image.open(tmp_path / "classes.png").convert("RGB")).astype(int)
    assert (tmp_path / "classes.png").stat().st_size < 200_000
    metadata = MetadataCatalog.get(tiny_set["train"])
    for group, color in GROUP_COLORS.items():
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        near = np.abs(sheet[84:] - rgb).max(-1) < 40  # below the legend
        assert near.any() or group not in metadata.class_frequency


def test_classes_of_all_seeds_are_on_the_chart(tmp_path):
    seed = {"image_count": {"a": 2, "b": 300, "c": 0}, "per_class": {"tde": {"a": 1.0, "b": None}}}
    draw_ap_over_images([seed, seed], tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size[0] > 700
