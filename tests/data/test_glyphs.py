"""The glyph sets, held against the official lvis package, Detectron2, pycocotools and LVIS.

They are drawn with a font made on the spot; what needs the one on the system is in
``test_system_font.py``.
"""

import collections
import json

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import load_lvis_json
from lvis import LVIS
from PIL import Image
from pycocotools.coco import COCO

from lvis_tde.data.generation import glyph_files
from lvis_tde.data.generation.glyph_deal import deal
from lvis_tde.data.generation.glyph_table import lvis_image_counts
from lvis_tde.data.glyphs import make_glyph_lvis, register_glyph_lvis

SPLITS = ("train", "calib", "val")
TINY = {
    "num_train": 220,
    "num_calib": 12,
    "num_val": 24,
    "num_classes": 20,
    "image_size": 64,
    "num_negatives": 5,
    "jobs": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory, color_font):
    path = tmp_path_factory.mktemp("datasets")
    make_glyph_lvis(path, seed=3, font=color_font, **TINY)
    return path


@pytest.fixture(scope="module")
def folder(root):
    return root / "synthetic_lvis" / "glyphs_small_seed3"


@pytest.fixture(scope="module")
def apis(folder):
    return {split: LVIS(str(folder / "annotations" / f"{split}.json")) for split in SPLITS}


def _images_of_class(api):
    found = collections.defaultdict(set)
    for annotation in api.anns.values():
        found[annotation["category_id"]].add(annotation["image_id"])
    return found


def test_lvis_detectron2_and_pycocotools_load_it(folder, apis):
    for split, api in apis.items():
        json_file = str(folder / "annotations" / f"{split}.json")
        assert sorted(api.cats) == list(range(1, TINY["num_classes"] + 1))
        assert len(api.imgs) == TINY[f"num_{split}"]
        assert sorted(api.anns) == list(range(1, len(api.dataset["annotations"]) + 1))
        records = load_lvis_json(json_file, f"{folder}/")
        assert len(records) == len(api.imgs)
        for record in records:
            with Image.open(record["file_name"]) as image:
                assert image.mode == "RGB"
                assert image.size == (record["width"], record["height"])
                assert max(image.size) == TINY["image_size"]
            for annotation in record["annotations"]:
                assert 0 <= annotation["category_id"] < TINY["num_classes"]
        coco = COCO(json_file)
        for annotation in coco.anns.values():
            assert coco.annToMask(annotation).any()


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


def test_train_has_exactly_the_counts_of_lvis(apis):
    images = _images_of_class(apis["train"])
    counts = lvis_image_counts(TINY["num_classes"], round(4.3 * TINY["num_train"]))
    found = sorted(map(len, images.values()), reverse=True)
    assert found == np.minimum(counts, TINY["num_train"]).tolist()


def test_categories_tell_the_counts_of_train_in_every_split(apis):
    images = _images_of_class(apis["train"])
    instances = collections.Counter(a["category_id"] for a in apis["train"].anns.values())
    for category_id, shown in images.items():
        for api in apis.values():
            category = api.cats[category_id]
            assert category["image_count"] == len(shown)
            assert category["instance_count"] == instances[category_id]
            group = "r" if len(shown) <= 10 else "c" if len(shown) <= 100 else "f"
            assert category["frequency"] == group
    assert {c["frequency"] for c in apis["train"].cats.values()} == {"r", "c", "f"}


def test_val_and_calibration_show_every_class_in_equally_many_images(apis):
    for split in ("calib", "val"):
        pairs = round(4.3 * TINY[f"num_{split}"])
        shown = {len(images) for images in _images_of_class(apis[split]).values()}
        assert shown == {pairs // TINY["num_classes"]}
        assert len(_images_of_class(apis[split])) == TINY["num_classes"]


def test_negatives_are_absent_and_incomplete_classes_present(apis):
    incomplete = 0
    for api in apis.values():
        for image_id, image in api.imgs.items():
            present = {a["category_id"] for a in api.img_ann_map[image_id]}
            negatives = set(image["neg_category_ids"])
            expected = min(TINY["num_negatives"], TINY["num_classes"] - len(present))
            assert len(negatives) == len(image["neg_category_ids"]) == expected
            assert negatives <= set(api.cats) and not negatives & present
            assert set(image["not_exhaustive_category_ids"]) <= present
            incomplete += len(image["not_exhaustive_category_ids"])
    assert incomplete > 0


def test_every_drawn_object_is_annotated_or_its_class_is_incomplete(
    tmp_path, color_font, monkeypatch
):
    drawn, draw_scene = [], glyph_files.draw_scene

    def record(seed, sprites, groups, size, hue):
        drawn.append([group for group in groups if group >= 0])
        return draw_scene(seed, sprites, groups, size, hue)

    monkeypatch.setattr(glyph_files, "draw_scene", record)
    few = {**TINY, "num_train": 20, "num_classes": 12, "classes_per_image": 2}
    folder = make_glyph_lvis(tmp_path, seed=1, font=color_font, **few)
    ranked = [glyph.name for glyph in glyph_files.choose_vocabulary(1, 12).classes]
    images = iter(drawn)
    for split in SPLITS:
        api = LVIS(str(folder / "annotations" / f"{split}.json"))
        for image_id in sorted(api.imgs):
            truth = collections.Counter(ranked[rank] for rank in next(images))
            found = collections.Counter(
                api.cats[a["category_id"]]["name"] for a in api.img_ann_map[image_id]
            )
            negatives = {api.cats[c]["name"] for c in api.imgs[image_id]["neg_category_ids"]}
            incomplete = api.imgs[image_id]["not_exhaustive_category_ids"]
            assert not negatives & set(truth)
            assert truth - found == collections.Counter(api.cats[c]["name"] for c in incomplete)
            assert not found - truth


def test_polygons_boxes_and_areas_agree_with_the_rasterized_mask(apis):
    for annotation in apis["train"].anns.values():
        image = apis["train"].imgs[annotation["image_id"]]
        perimeter, corners = 0.0, []
        for polygon in annotation["segmentation"]:
            assert len(polygon) >= 6 and len(polygon) % 2 == 0
            points = np.reshape(polygon, (-1, 2))
            assert points.min() >= 0 and (points.max(0) <= [image["width"], image["height"]]).all()
            perimeter += np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum()
            corners.append(points)
        mask = apis["train"].ann_to_mask(annotation)
        assert abs(mask.sum() - annotation["area"]) <= 0.35 * perimeter + 1
        low, high = np.concatenate(corners).min(0), np.concatenate(corners).max(0)
        np.testing.assert_allclose(annotation["bbox"], [*low, *(high - low)])


def test_objects_of_an_image_hardly_overlap(apis):
    overlap = total = 0.0
    for image_id, image in apis["train"].imgs.items():
        size = image["height"], image["width"]
        rles = [
            mask_utils.merge(mask_utils.frPyObjects(a["segmentation"], *size))
            for a in apis["train"].img_ann_map[image_id]
        ]
        areas = sum(float(mask_utils.area(rle)) for rle in rles)
        shared = areas - float(mask_utils.area(mask_utils.merge(rles))) if rles else 0.0
        # Only pixels that a border crosses may belong to two polygons.
        assert shared <= 0.12 * areas
        overlap, total = overlap + shared, total + areas
    assert overlap <= 0.03 * total


def test_families_have_frequent_and_rare_members():
    # With 200 classes, about 18 families of up to 12.
    for seed in range(3):
        classes = glyph_files.choose_vocabulary(seed, 200).classes
        ranks = collections.defaultdict(list)
        for rank, glyph in enumerate(classes):
            ranks[glyph.family].append(rank)
        assert len({glyph.name for glyph in classes}) == 200
        for members in ranks.values():
            assert len(members) <= 12
            # Evenly spread: no gap between members is much larger than their mean distance.
            distance = 200 / len(members)
            gaps = np.diff([members[-1] - 200, *members])
            assert gaps.max() <= distance + 12, members


def test_no_distractor_is_of_a_family_of_classes():
    for seed, num_classes in ((0, 200), (1, 1203), (2, 2)):
        classes, distractors = glyph_files.choose_vocabulary(seed, num_classes)
        assert distractors
        assert not {g.family for g in classes} & {g.family for g in distractors}


def test_classes_are_at_home_in_their_scene():
    counts, homes = lvis_image_counts(200, 2580), np.arange(200) % 9
    scenes, contents = deal(np.random.default_rng(0), counts, homes, 600)
    assert len(scenes) == len(contents) == 600
    shown = np.zeros((200, 9), int)
    for scene, classes in zip(scenes, contents):
        shown[np.unique(classes), scene] += 1
    assert shown.sum(1).tolist() == counts.tolist()
    at_home = shown[np.arange(200), homes]
    assert (at_home >= np.minimum(np.round(0.8 * counts), np.bincount(scenes)[homes])).all()
    # Of the others, one in nine is at home by chance.
    assert at_home.sum() / counts.sum() == pytest.approx(0.8 + 0.2 / 9, abs=0.04)
    # Rare classes are beside frequent ones: an image with one has more than that on average.
    sizes = [len(np.unique(c)) for c in contents if len(c) and np.max(c) >= 144]
    assert np.mean(sizes) > 3


def test_fewer_images_than_scenes():
    counts = np.array([2] * 14 + [1] * 4)
    homes = np.array([0] * 7 + [1] * 7 + [2, 3, 4, 5])
    for seed in range(20):
        scenes, contents = deal(np.random.default_rng(seed), counts, homes, 2)
        assert scenes.shape == (2,) and set(scenes) < set(homes)
        shown = np.concatenate([np.unique(c) for c in contents])
        assert np.bincount(shown, minlength=18).tolist() == counts.tolist()


def test_some_images_show_several_instances_and_none_is_overcrowded():
    counts, homes = lvis_image_counts(200, 2580), np.zeros(200, int)
    _, contents = deal(np.random.default_rng(1), counts, homes, 600)
    several = np.concatenate([np.unique(c, return_counts=True)[1] for c in contents])
    assert 0.25 < (several > 1).mean() < 0.35
    assert several.max() <= 6
    assert all(len(c) <= max(16, len(np.unique(c))) for c in contents)


def test_splits_share_no_image(folder, apis):
    pictures = [path.read_bytes() for path in folder.rglob("*.jpg")]
    assert len(set(pictures)) == len(pictures) == sum(TINY[f"num_{split}"] for split in SPLITS)
    ids = [set(api.imgs) for api in apis.values()]
    assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]


def test_registration(root, folder):
    names = register_glyph_lvis(root, seed=3)
    assert names == {split: f"glyph_lvis_small_seed3_{split}" for split in SPLITS}
    assert register_glyph_lvis(root, seed=3) == names
    for split, name in names.items():
        json_file = folder / "annotations" / f"{split}.json"
        assert DatasetCatalog.get(name) == load_lvis_json(str(json_file), f"{folder}/")
        metadata = MetadataCatalog.get(name)
        categories = json.loads(json_file.read_text())["categories"]
        assert metadata.thing_classes == [c["name"] for c in categories]
        assert metadata.class_frequency == [c["frequency"] for c in categories]
        assert metadata.evaluator_type == "lvis"
        assert metadata.json_file == str(json_file)


def test_registration_of_a_set_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="make_glyph_lvis.*--kind glyphs --size lvis"):
        register_glyph_lvis(tmp_path, size="lvis")
