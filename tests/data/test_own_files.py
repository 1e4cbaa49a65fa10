"""Files of users: where their images are, RLEs, and objects that nobody can use."""

import copy
import json
import os

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.lvis import load_lvis_json
from tiny_sets import BOXES, SIZE, coco, lvis, polygon, results

from lvis_tde.data.classification.lists import read_inat
from lvis_tde.data.long_tailed import register_long_tailed
from lvis_tde.evaluation import GroundTruth, evaluate_lvis


@pytest.fixture
def register(tmp_path):
    """Writes data to a file and registers it; the catalogs are cleaned up afterwards."""
    before = set(DatasetCatalog.list())

    def _register(data, name="set", images="images", **options):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data))
        options.setdefault("cache_dir", tmp_path / "cache")
        register_long_tailed(f"own_{name}", path, tmp_path / images, **options)
        return f"own_{name}"

    yield _register
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def put(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# What an image says of itself, where the files lie below the folder, and what is taken.
PLACES = [
    ({"file_name": "{}.png"}, "{}.png", "file_name"),
    ({"file_name": "sub/{}.png"}, "sub/{}.png", "file_name"),
    ({"coco_url": "http://h.invalid/val2017/{}.png"}, "val2017/{}.png", "the last two parts"),
    ({"coco_url": "http://h.invalid/val2017/{}.png"}, "{}.png", "the last part"),
    ({"file_name": "x_{}.png", "coco_url": "http://h.invalid/a/{}.png"}, "{}.png", "the last part"),
    ({"file_name": "{}.png", "coco_url": "http://h.invalid/a/x{}.png"}, "{}.png", "file_name"),
]


@pytest.mark.parametrize("make", [coco, lvis])
@pytest.mark.parametrize("named, lying, told", PLACES)
def test_images_are_found_wherever_the_file_says(
    make, named, lying, told, register, tmp_path, caplog
):
    data = make()
    for image in data["images"]:
        for key in ("file_name", "coco_url"):
            image.pop(key, None)
        image.update({key: value.format(image["id"]) for key, value in named.items()})
    put(*(tmp_path / "images" / lying.format(i) for i in (7, 9)))
    with caplog.at_level("INFO", "lvis_tde"):
        records = DatasetCatalog.get(register(data))
    assert [os.path.isfile(record["file_name"]) for record in records] == [True, True]
    assert [record["image_id"] for record in records] == [7, 9]
    assert f"by {told}" in caplog.text and lying.format(7) in caplog.text


def test_the_place_of_most_images_is_taken(register, tmp_path):
    data = coco()
    for image in data["images"]:
        image["coco_url"] = f"http://h.invalid/train2017/{image['id']}.png"
    put(
        tmp_path / "images" / "7.png", *(tmp_path / "images/train2017" / f"{i}.png" for i in (7, 9))
    )
    records = DatasetCatalog.get(register(data))
    assert all("train2017" in record["file_name"] for record in records)


def test_no_image_says_what_was_tried(register, tmp_path, caplog):
    data = lvis()
    data["images"][0]["file_name"] = "COCO_val_7.png"
    with pytest.raises(FileNotFoundError) as error:
        register(data, missing_images="raise")
    folder = str(tmp_path / "images")
    tried = ["COCO_val_7.png", os.path.join("val2017", "7.png"), "7.png"]
    assert all(os.path.join(folder, name) in str(error.value) for name in tried)
    assert "own_set" not in DatasetCatalog.list()
    name = register(data)
    assert "No image of" in caplog.text
    assert DatasetCatalog.get(name)[1]["file_name"] == os.path.join(folder, "val2017", "9.png")


@pytest.mark.parametrize("masks", ["polygons", "rle", "runs", "none"])
def test_records_are_those_of_detectron2s_coco_loader(masks, register, tmp_path):
    name = register(coco(masks))
    expected = load_coco_json(str(tmp_path / "set.json"), str(tmp_path / "images"), "own_upstream")
    MetadataCatalog.remove("own_upstream")
    assert DatasetCatalog.get(name) == expected


def test_records_are_those_of_detectron2s_lvis_loader(register, tmp_path):
    data = lvis()
    name = register(data)
    expected = load_lvis_json(str(tmp_path / "set.json"), os.path.join(tmp_path, "images", ""))
    for record in expected:
        for one in record["annotations"]:
            one["category_id"] = {2: 0, 4: 1}[one["category_id"]]
    assert DatasetCatalog.get(name) == expected


@pytest.mark.parametrize("masks", ["rle", "runs"])
def test_rles_in_lvis_format(masks, register):
    """The COCO loader's masks, which Detectron2's LVIS loader refuses."""
    name = register(lvis(masks))
    records = DatasetCatalog.get(name)
    boxes = {tuple(box): box for box in BOXES}
    for record in records:
        for one in record["annotations"]:
            mask = mask_utils.decode(one["segmentation"])
            rle = mask_utils.frPyObjects([polygon(boxes[tuple(one["bbox"])])], *SIZE)
            np.testing.assert_array_equal(mask, mask_utils.decode(mask_utils.merge(rle)))
    assert MetadataCatalog.get(name).with_rle == 11
    file = MetadataCatalog.get(name).json_file
    assert evaluate_lvis(file, results()[:4], "segm").metrics["AP"] == pytest.approx(100)


def test_the_same_file_twice_is_no_error(register, tmp_path, monkeypatch):
    name = register(coco())
    monkeypatch.chdir(tmp_path)
    for path, images in (("set.json", "images"), ("./set.json", str(tmp_path / "images"))):
        register_long_tailed(name, path, images, cache_dir=tmp_path / "cache")
    (tmp_path / "other.json").write_text(json.dumps(coco()))
    for options, told in (
        (dict(json_file="other.json"), "json_file"),
        (dict(bounds=(1, 2)), "bounds"),
        (dict(image_root="elsewhere"), "image_root"),
        (dict(train_json="other.json"), "train_json"),
    ):
        given = {"json_file": "set.json", "image_root": "images", **options}
        with pytest.raises(ValueError, match=f"registered already with {told}"):
            register_long_tailed(name, **given)


NAN = float("nan")
UNUSABLE = [
    (dict(bbox=[2.0, 3.0, NAN, 8.0]), "bbox"),
    (dict(bbox=[2.0, 3.0, 0.0, 8.0]), "bbox"),
    (dict(bbox=[2.0, 3.0, 10.0, -8.0]), "bbox"),
    (dict(bbox=[float("inf"), 3.0, 10.0, 8.0]), "bbox"),
    (dict(segmentation=[[1, 2, 3]]), "no usable polygon"),
    (dict(segmentation=[[1, 2, 3, 4], [1, NAN, 3, 4, 5, 6]]), "no usable polygon"),
]


@pytest.mark.parametrize("make", [coco, lvis])
@pytest.mark.parametrize("change, told", UNUSABLE)
def test_unusable_objects_are_left_out_with_a_warning(make, change, told, register, caplog):
    data = make()
    for annotation in data["annotations"][1:3]:
        annotation.update(copy.deepcopy(change))
    name = register(data)
    assert "2 of 4 annotations are left out" in caplog.text and told in caplog.text
    assert "the first is annotation 12" in caplog.text
    kept = [len(record["annotations"]) for record in DatasetCatalog.get(name)]
    assert kept == [1, 1] and MetadataCatalog.get(name).annotated == 2
    truth = GroundTruth.load(MetadataCatalog.get(name).json_file)
    assert len(truth) == 2
    # They are objects all the same: who finds them makes no mistake.
    found = [results()[0], {**results()[1], "score": 0.99}, results()[3]]
    assert evaluate_lvis(truth, found, "bbox").metrics["AP"] == pytest.approx(100)


def test_a_part_of_a_mask_that_is_unusable_is_cut_off(register):
    data = coco()
    data["annotations"][0]["segmentation"].append([1, 2])
    name = register(data)
    records = DatasetCatalog.get(name)
    assert records[0]["annotations"][0]["segmentation"] == [polygon(BOXES[0])]
    file = MetadataCatalog.get(name).json_file
    assert evaluate_lvis(file, results()[:4], "segm").metrics["AP"] == pytest.approx(100)


def test_metadata_for_checks(register):
    data = coco()
    data["annotations"][2].pop("segmentation")
    data["annotations"][3].update(segmentation=coco("rle")["annotations"][3]["segmentation"])
    data["annotations"][0]["iscrowd"] = 1
    metadata = MetadataCatalog.get(register(data))
    assert (metadata.annotated, metadata.without_mask, metadata.with_rle) == (3, 13, 14)


def test_masks_that_cover_nothing_stay_as_in_detectron2s_loader(register, tmp_path):
    data = coco()
    masks = [{"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}, [[0, 0, 5, 5, 10, 10]]]
    masks.append([[100, 100, 110, 100, 110, 110]])
    for annotation, mask in zip(data["annotations"], masks):
        annotation["segmentation"] = mask
    data["annotations"][3]["bbox"] = [100.0, 100.0, 5.0, 5.0]
    name = register(data)
    expected = load_coco_json(str(tmp_path / "set.json"), str(tmp_path / "images"), "own_upstream")
    MetadataCatalog.remove("own_upstream")
    assert DatasetCatalog.get(name) == expected
    assert MetadataCatalog.get(name).annotated == 4


@pytest.mark.parametrize("make", [coco, lvis])
@pytest.mark.parametrize("masks", ["rle", "runs"])
def test_whole_numbers_of_rles_may_have_a_point(make, masks, register, tmp_path):
    data = make(masks)
    plain = register(data, "plain")
    for annotation in data["annotations"]:
        rle = annotation["segmentation"]
        rle["size"] = list(map(float, rle["size"]))
        if masks == "runs":
            rle["counts"] = list(map(float, rle["counts"]))
    for image in data["images"]:
        image.update(height=float(SIZE[0]), width=float(SIZE[1]))
    name = register(data)
    expected, records = DatasetCatalog.get(plain), DatasetCatalog.get(name)
    assert [r["annotations"] for r in records] == [r["annotations"] for r in expected]
    assert mask_utils.decode(records[0]["annotations"][0]["segmentation"]).any()
    # As it is registered, and as it is.
    for file in (MetadataCatalog.get(name).json_file, *([data] if make is lvis else [])):
        assert evaluate_lvis(file, results()[:4], "segm").metrics["AP"] == pytest.approx(100)


def test_a_crowd_of_null_is_none(register):
    data = coco()
    expected = DatasetCatalog.get(register(data, "plain"))
    data["annotations"][0]["iscrowd"] = None
    name = register(data)
    kept = [
        one.get("iscrowd", 0)
        for record in DatasetCatalog.get(name)
        for one in record["annotations"]
    ]
    assert kept == [0] * 4 and MetadataCatalog.get(name).annotated == 4
    assert len(GroundTruth.load(MetadataCatalog.get(name).json_file)) == 4
    assert len(expected) == 2


def test_files_may_begin_with_a_byte_order_mark(register, tmp_path):
    def marked(name, content):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8-sig")
        return tmp_path / name

    truth = marked("truth.json", lvis())
    register_long_tailed("own_marked", truth, tmp_path)
    assert len(DatasetCatalog.get("own_marked")) == 2
    DatasetCatalog.remove("own_marked")
    MetadataCatalog.remove("own_marked")
    found = marked("found.json", results()[:4])
    assert evaluate_lvis(truth, found, "segm").metrics["AP"] == pytest.approx(100)
    assert read_inat(
        marked("inat.json", coco() | {"annotations": coco()["annotations"][::3]}), ""
    ).classes == ["wren", "heron"]
