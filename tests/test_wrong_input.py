"""Annotations, result files and pictures that are wrong: the commands name them and the way back.

Rows as in test_wrong_turns.py; the files are in the folder ``own`` of its playground.
"""

import copy
import json
import re
import shutil

import pycocotools.mask as mask_utils
import pytest
import torch
from wrong_turns_util import snapshot

from lvis_tde.modeling.words import pack_words, unpack_words

MODEL = ["--config-file", "deconfound.yaml"]
POLYGONS = ["INPUT.MASK_FORMAT", "polygon"]
OUT = ["OUTPUT_DIR", "{out}"]
NAN, INF = float("nan"), float("inf")


def plain(content):
    """COCO's format of what the generated set has in LVIS's."""
    annotations = [
        {**{k: v for k, v in a.items() if k != "iscrowd"}, "id": i}
        for i, a in enumerate(copy.deepcopy(content["annotations"]), 1)
    ]
    images = [
        {k: i[k] for k in ("id", "height", "width")}
        | {"file_name": "/".join(i["coco_url"].split("/")[-2:])}
        for i in content["images"]
    ]
    categories = [{"id": c["id"], "name": c["name"]} for c in content["categories"]]
    return {"images": images, "annotations": annotations, "categories": categories}


def full_rle(image, height=None):
    size = [height or image["height"], image["width"]]
    return {"size": size, "counts": [0, size[0] * size[1]]}


# Name of a file of annotations, and what makes it of the good one.
ANNOTATIONS = {
    "no_masks": lambda d: [a.pop("segmentation") for a in d["annotations"][1:]],
    "rles": lambda d: d["annotations"][2].update(segmentation=full_rle(d["images"][0])),
    "no_objects": lambda d: d["annotations"].clear(),
    "all_empty": lambda d: [a.update(bbox=[1, 2, 0, NAN]) for a in d["annotations"]],
    "word_box": lambda d: d["annotations"][0].update(bbox="box"),
    "short_box": lambda d: d["annotations"][0].update(bbox=[1, 2, 3]),
    "null_box": lambda d: d["annotations"][1].update(bbox=[1, 2, None, 4]),
    "no_box": lambda d: d["annotations"][0].pop("bbox"),
    "twice": lambda d: d["annotations"][1].update(id=1),
    "image_twice": lambda d: d["images"].append(d["images"][0]),
    "mixed_ids": lambda d: d["images"][1].update(id="two"),
    "list_id": lambda d: d["images"][1].update(id=[2]),
    "no_id": lambda d: d["categories"][0].pop("id"),
    "unknown_class": lambda d: d["annotations"][4].update(category_id=888),
    "no_height": lambda d: d["images"][0].pop("height"),
    "word_height": lambda d: d["images"][0].update(height="64"),
    "zero_width": lambda d: d["images"][0].update(width=0),
    "no_name": lambda d: d["images"][0].pop("file_name"),
    "number_name": lambda d: d["images"][0].update(file_name=5),
    "class_number": lambda d: d["categories"][0].update(name=5),
    "count_word": lambda d: d["categories"][0].update(image_count="many"),
    "some_lists": lambda d: d["images"][0].update(neg_category_ids=[]),
    "list_of_words": lambda d: [i.update(neg_category_ids="1") for i in d["images"]],
    "word_mask": lambda d: d["annotations"][0].update(segmentation="mask"),
    "word_polygon": lambda d: d["annotations"][0].update(segmentation=[["a"] * 6]),
    "half_rle": lambda d: d["annotations"][0].update(segmentation={"size": [64, 64]}),
    "rle_size": lambda d: d["annotations"][0].update(segmentation=full_rle(d["images"][0], 65)),
    "cut_rle": lambda d: d["annotations"][0].update(
        segmentation={"size": [d["images"][0]["height"], d["images"][0]["width"]], "counts": "0o"}
    ),
    "crowd_word": lambda d: d["annotations"][0].update(iscrowd="yes"),
    "area_word": lambda d: d["annotations"][0].update(area="large"),
    "no_categories": lambda d: d["categories"].clear(),
    "records": lambda d: d.update(annotations=[1, 2]),
    "objects": lambda d: d.update(images={}),
    "other_names": lambda d: d["categories"][0].update(name="somebody else"),
    "elsewhere": lambda d: [i.update(file_name="gone/" + i["file_name"]) for i in d["images"]],
}
RESULTS = {
    "infinite": lambda r: [one.update(score=INF) for one in r[1:]],
    "nan_score": lambda r: r[2].update(score=NAN),
    "nan_box": lambda r: r[1].update(bbox=[1, 2, NAN, 4]),
    "word_score": lambda r: r[1].update(score="high"),
    "null_score": lambda r: r[0].update(score=None),
    "bbox3": lambda r: r[1].update(bbox=[1, 2, 3]),
    "words_box": lambda r: r[1].update(bbox=["a"] * 4),
    "garbage": lambda r: r[0]["segmentation"].update(counts="garbage"),
    "rle_cut": lambda r: r[1]["segmentation"].update(counts=r[1]["segmentation"]["counts"][:3]),
    "other_size": lambda r: r[0]["segmentation"].update(size=[9, 9]),
    "no_size": lambda r: r[0]["segmentation"].pop("size"),
    "negative_size": lambda r: r[0]["segmentation"].update(size=[-64, 64]),
    "mask_word": lambda r: r[0].update(segmentation="all"),
    "far_polygon": lambda r: r[0].update(segmentation=[[1e300] * 6]),
    "boxes": lambda r: [one.pop("segmentation") for one in r],
    "no_image": lambda r: r[1].pop("image_id"),
    "no_score": lambda r: [one.pop("score") for one in r],
    "stranger": lambda r: r[0].update(image_id=123456),
    "class_zero": lambda r: [one.update(category_id=0) for one in r],
    "list_image": lambda r: r[0].update(image_id=[1]),
    "numbers": lambda r: r.insert(0, 7),
}


@pytest.fixture(scope="module")
def own(playground):
    """The folder with all of these files; removed in the end."""
    folder = playground / "own"
    folder.mkdir()
    for name in ("train", "val"):
        data = plain(json.loads((playground / f"{name}.json").read_text()))
        (folder / f"{name}.json").write_text(json.dumps(data))
    for name, change in ANNOTATIONS.items():
        data = plain(json.loads((playground / "train.json").read_text()))
        change(data)
        (folder / f"{name}.json").write_text(json.dumps(data))
    val = json.loads((folder / "val.json").read_text())
    sizes = {i["id"]: i for i in val["images"]}
    keys = ("image_id", "category_id", "bbox")
    good = []
    for annotation in val["annotations"][:3]:
        image = sizes[annotation["image_id"]]
        # One run of background, one of foreground, as COCO compresses them.
        mask = {"size": [image["height"], image["width"]], "counts": "0PP4"}
        assert image["height"] * image["width"] == 4096
        good.append({**{k: annotation[k] for k in keys}, "segmentation": mask, "score": 0.5})
    for name, change in {"good": lambda r: None, **RESULTS}.items():
        results = copy.deepcopy(good)
        change(results)
        (folder / f"found_{name}.json").write_text(json.dumps(results))
    (folder / "found_object.json").write_text("{}")
    (folder / "found_half.json").write_text(json.dumps(good)[:-40])
    (folder / "found_text.json").write_text("version https://git-lfs.github.com/spec/v1")
    (folder / "photos").mkdir()
    (folder / "photos" / "notes.txt").write_text("no picture")
    yield folder
    shutil.rmtree(folder)


def trained(name, *more):
    return (
        ["train", *MODEL, "--train-data", f"own/{name}.json", "images", *OUT, *POLYGONS, *more],
    )


def evaluated(name, *more):
    return (["evaluate", "own/val.json", f"own/found_{name}.json", *more],)


TABLE = [
    (*trained("no_masks"), "own/no_masks.json: annotation 2 has no segm.*MODEL.MASK_ON False"),
    (*trained("rles"), "rles.json: the mask of annotation 3 is an RLE.*MASK_FORMAT bitmask"),
    (*trained("no_objects"), "no_objects.json has no annotation to train on"),
    (*trained("all_empty"), "all_empty.json has no annotation to train on"),
    (*trained("word_box"), "word_box.json': annotation 1 has bbox='box', expected .x, y, width"),
    (*trained("short_box"), "annotation 1 has bbox=.1, 2, 3., expected .x, y, width, height"),
    (*trained("null_box"), "null_box.json': annotation 2 has bbox=.1, 2, None, 4."),
    (*trained("no_box"), "annotation 1 has bbox=None"),
    (*trained("twice"), "twice.json', annotations: id 1 occurs twice"),
    (*trained("image_twice"), "image_twice.json', images: id .* occurs twice"),
    (*trained("mixed_ids"), "mixed_ids.json', images: id 'two' is not of one kind"),
    (*trained("list_id"), r"list_id.json', images: id \[2\] is neither a number nor a word"),
    (*trained("no_id"), "no_id.json', categories: a record has no id"),
    (*trained("unknown_class"), "annotation 5 has category_id=888, which the file does not list"),
    (*trained("no_height"), r"no_height.json': image .* lacks \['height'\]"),
    (*trained("word_height"), "image .* has height='64', expected a number of pixels"),
    (*trained("zero_width"), "image .* has width=0"),
    (*trained("no_name"), r"image .* lacks \['file_name'\]"),
    (*trained("number_name"), "image .* has file_name=5, expected a path"),
    (*trained("class_number"), "category .* has name=5, expected a word"),
    (*trained("count_word"), "category .* has image_count='many'"),
    (*trained("some_lists"), "has no neg_category_ids while others have"),
    (*trained("list_of_words"), "has neg_category_ids='1', expected a list of category ids"),
    (*trained("word_mask"), "annotation 1 has a segmentation that is neither polygons nor an RLE"),
    (*trained("word_polygon"), "annotation 1 has polygons with something that is no number"),
    (*trained("half_rle"), "annotation 1 has an RLE with counts=None"),
    (*trained("rle_size"), r"annotation 1 has an RLE of size \[65, 64\] in an image of \[64, 64\]"),
    (*trained("cut_rle"), "annotation 1 has an RLE whose counts do not fill its size"),
    (*trained("crowd_word"), "annotation 1 has iscrowd='yes', expected 0 or 1"),
    (*trained("area_word"), "annotation 1 has area='large'"),
    (*trained("no_categories"), "no_categories.json' has no categories"),
    (*trained("records"), "records.json', annotations: a record has no id: 1"),
    (*trained("objects"), "objects.json' has no list 'images'"),
    (*trained("elsewhere"), "No image of own/elsewhere.json was.*these were tried: images/gone"),
    (
        ["train", *MODEL, "--train-data", "own/train.json", "images"]
        + ["--test-data", "own/other_names.json", "images", *OUT],
        "'somebody else' in 'own/other_names.json'",
    ),
    (["train", *MODEL, *OUT], "DATASETS.TRAIN is empty.*--train-data JSON IMAGES"),
    (["train", "--eval-only", *MODEL, *OUT, "MODEL.WEIGHTS", "deconfound.pth"], "--test-data JSON"),
    (["train", "--eval-only", "--beside", "beta=1", *MODEL], "'beta=1' sets none of alpha"),
    (["train", "--eval-only", "--beside", "alpha=x", *MODEL], "'alpha=x': 'x' is no number"),
    (["train", "--eval-only", "--beside", "alpha=-1", *MODEL], "-1"),
    (["train", "--beside", "off", *MODEL], "--beside needs --eval-only"),
    (*evaluated("infinite"), "2 detections with an infinite score.* the first is 1"),
    (*evaluated("nan_score"), "1 detections with a NaN score.* the first is 2"),
    (*evaluated("nan_box"), "1 detections with a NaN or infinite number in bbox.* is 1"),
    (*evaluated("word_score"), "found_word_score.json': detection 1 .*score='high'"),
    (*evaluated("null_score"), "detection 0 .*score='None', expected a number"),
    (*evaluated("bbox3"), "detection 1 .*bbox='.1, 2, 3.', expected .x, y, width, height"),
    (*evaluated("words_box"), "detection 1 .*no number"),
    (*evaluated("garbage"), "1 detections with an RLE whose counts do not fill.* the first is 0"),
    (*evaluated("rle_cut"), "1 detections with an RLE whose counts do not fill.* the first is 1"),
    (*evaluated("other_size"), "another size than their image.*'0, .9, 9. in an image of .64, 64."),
    (*evaluated("no_size"), "detection 0 .*an RLE with size=None"),
    (*evaluated("negative_size"), r"detection 0 .*an RLE with size=\[-64, 64\]"),
    (*evaluated("mask_word"), "detection 0 .*neither polygons nor an RLE"),
    (*evaluated("far_polygon", "--iou-type", "segm"), "detection 0 has .* no polygon"),
    (*evaluated("boxes", "--iou-type", "segm"), "3 detections without segm.*--iou-type bbox"),
    (*evaluated("boxes", "--iou-type", "boundary"), "3 detections without segm.*--iou-type bbox"),
    (*evaluated("no_image"), "found_no_image.json': 1 detections without 'image_id'"),
    (*evaluated("no_score"), "3 detections without 'score'"),
    (*evaluated("stranger"), "1 detections with an unknown image_id.* 123456"),
    (*evaluated("class_zero"), "3 detections with an unknown category_id.* 0"),
    (*evaluated("list_image"), "1 detections with a image_id that is no id"),
    (*evaluated("numbers"), "found_numbers.json': it lists '7', which is no detection"),
    (*evaluated("object"), "found_object.json': it holds no JSON list.*annotations come first"),
    (*evaluated("half"), "found_half.json': it ends within"),
    (*evaluated("text"), "found_text.json': it holds no JSON list"),
    (*evaluated("good", "--max-dets", "0"), "max_dets=0 .*leaves no detection"),
    (*evaluated("good", "--max-dets", "-5"), "max_dets=-5"),
    (*evaluated("good", "--per-category", "0"), "per_category must be at least 1"),
    (*evaluated("good", "--bounds", "9", "3"), "bounds must be 0 <= rare < common"),
    (*evaluated("good", "--train-annotations", "gone.json"), "'gone.json' does not exist"),
    (*evaluated("good", "--train-annotations", "own/other_names.json"), "'somebody else'"),
    (*evaluated("good", "--train-annotations", "own/found_good.json"), "comes after the annotat"),
    (["evaluate", "own/found_good.json", "own/val.json"], "a result file, which comes after"),
    (["evaluate", "own", "own/found_good.json"], "'own' is a folder: name the annotation file"),
    (["evaluate", "own/word_mask.json", "own/found_good.json"], "annotation 1 has a segmentation"),
    (["report", "own/val.json", "own/found_infinite.json", "--output", "{out}"], "infinite score"),
    (["report", "own/found_good.json", "own/val.json", "--output", "{out}"], "a result file"),
    (
        ["report", "own/val.json", "own/found_boxes.json", "--iou-type", "segm"]
        + ["--output", "{out}"],
        "--iou-type bbox",
    ),
    (["demo", "own/photos", *MODEL, "--opts", "MODEL.WEIGHTS", "deconfound.pth"], "no pictures"),
    (
        ["demo", "photo.png", "--top", "0", *MODEL, "--test-data", "val.json", "images"]
        + ["--output", "{out}", "--opts", "MODEL.WEIGHTS", "deconfound.pth"],
        "--top",
    ),
    (
        ["demo", "photo.png", "--score-threshold", "3", *MODEL, "--test-data", "val.json", "images"]
        + ["--output", "{out}", "--opts", "MODEL.WEIGHTS", "deconfound.pth"],
        "--score-threshold",
    ),
    (
        ["demo", "photo.png", *MODEL, "--output", "{out}", "--opts", "MODEL.WEIGHTS"]
        + ["deconfound.pth"],
        "no class names.*--test-data JSON IMAGES",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, named", TABLE, ids=[" ".join(words)[-80:] for words, _ in TABLE]
)
def test_wrong_input_is_named(arguments, named, command, own, playground, tmp_path):
    before = snapshot(playground)
    code, out, err = command(*arguments)
    assert code == 2, (code, out, err)
    assert re.search(named, err, re.DOTALL), err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in out + err, err
    assert snapshot(playground) == before
    assert not (tmp_path / "out").exists() or snapshot(tmp_path / "out") == {}


def test_the_good_files_are_good(command, own, tmp_path):
    code, out, err = command(*evaluated("good")[0], "--output", "{out}/metrics.json")
    assert code == 0 and "--train-annotations TRAIN.json" in out, (out, err)
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())) == {"bbox", "segm"}
    code, out, err = command(*evaluated("boxes")[0])
    assert code == 0 and "segm " not in out, (out, err)


@pytest.fixture
def named(playground, tmp_path):
    """A checkpoint that knows its classes, as training and the guide's first step write it."""
    model = torch.load(playground / "deconfound.pth", weights_only=True)["model"]
    key = "roi_heads.box_predictor.statistics."
    model[f"{key}names"] = pack_words([f"bird {i}" for i in range(7)])
    model[f"{key}groups"] = torch.tensor(list(b"rrccfff"), dtype=torch.uint8)
    torch.save({"model": model}, tmp_path / "named.pth")
    return tmp_path / "named.pth"


def test_a_folder_of_pictures_and_data_that_are_not_registered(
    command, playground, own, named, tmp_path
):
    """Names are in the checkpoint; what cannot be read is skipped, listed at the end, and told."""
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(playground / "photo.png", photos / "a.png")
    (photos / "b.jpg").write_bytes(b"no picture")
    shutil.copy(playground / "photo.png", photos / "c.png")
    (photos / "notes.txt").write_text("no picture")
    options = ["--output", "{out}", "--explain", "--score-threshold", "0.01", *MODEL]
    code, out, err = command(
        "demo", photos, *options, "--opts", "MODEL.WEIGHTS", named, "DATASETS.TEST", "('birds',)"
    )
    assert code == 1 and err.splitlines()[-1].startswith(f"skipped: {photos / 'b.jpg'}: it cannot")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a.png", "c.png", "a_why_1.png"} <= written and not any("b" == n[0] for n in written)
    (photos / "b.jpg").unlink()
    code, out, err = command("demo", photos, *options, "--opts", "MODEL.WEIGHTS", named)
    assert code == 0 and "skipped" not in err and "a_why_1.png" in out


def test_a_report_of_two_settings(command, own, tmp_path):
    code, out, err = command(
        "train", "--eval-only", "--beside", "off", *MODEL, "--train-data", "train.json", "images",
        "--test-data", "own/val.json", "images", *OUT, "MODEL.WEIGHTS", "deconfound.pth",
    )  # fmt: skip
    assert code == 0, (out, err)
    (page,) = (tmp_path / "out" / "report" / "val_test").glob("bbox/report.html")
    assert "deconfound.pth, TDE off / alpha 1.5</h1>" in page.read_text()
    assert str(page) in out


def test_rles_in_lvis_format_and_objects_of_no_use_are_trained_on(command, playground, tmp_path):
    data = json.loads((playground / "train.json").read_text())
    sizes = {image["id"]: image for image in data["images"]}
    for annotation in data["annotations"]:
        image = sizes[annotation["image_id"]]
        x, y, w, h = annotation["bbox"]
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        rle = mask_utils.frPyObjects([corners], image["height"], image["width"])[0]
        annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    data["annotations"][3].update(bbox=[1, 1, NAN, 5])
    data["annotations"][5].update(segmentation=[[1, 2, 3]])
    (tmp_path / "rles.json").write_text(json.dumps(data))
    code, out, err = command(
        "train", *MODEL, "--train-data", tmp_path / "rles.json", "images", *OUT,
        "INPUT.MASK_FORMAT", "bitmask", "SOLVER.MAX_ITER", "2",
    )  # fmt: skip
    first = data["annotations"][3]["id"]
    assert code == 0 and (tmp_path / "out" / "model_final.pth").is_file(), (out, err)
    told = f"2 of {len(data['annotations'])} annotations are left out.*annotation {first},"
    assert re.search(told, out + err), out + err
    state = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    names = unpack_words(state["roi_heads.box_predictor.statistics.names"])
    assert names == [c["name"] for c in sorted(data["categories"], key=lambda c: c["id"])]
