"""Annotations that do not suit the model are told before anything is built."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from heads_util import lazy_config

from lvis_tde.engine import YacsRecipe, use_data
from lvis_tde.engine.data_checks import check_annotations, check_sets
from lvis_tde.engine.lazy import LazyRecipe

BOX = [2.0, 3.0, 10.0, 8.0]
POLYGON = [[2, 3, 12, 3, 12, 11, 2, 11]]
RUNS = {"size": [24, 32], "counts": [0, 24 * 32]}


def content(*masks):
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": BOX, "segmentation": mask}
        for i, mask in enumerate(masks, 1)
    ]
    image = {"id": 1, "file_name": "1.png", "height": 24, "width": 32}
    return {
        "images": [image],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "wren"}],
    }


@pytest.fixture
def use(tiny_cfg, tmp_path):
    """``use(content, lazy)`` gives a recipe that trains and tests on it, and the set's name."""
    before = set(DatasetCatalog.list())
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").touch()

    def make(data, lazy=False):
        path = tmp_path / f"{len(DatasetCatalog.list())}.json"
        path.write_text(json.dumps(data))
        recipe = LazyRecipe(lazy_config("TDEROIHeads")) if lazy else YacsRecipe(tiny_cfg())
        use_data(recipe, (str(path), str(tmp_path / "images")), None)
        return recipe, recipe.train_sets[0]

    yield make
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "masks, training, told",
    [
        ([POLYGON, None], True, r"annotation 2 has no segmentation.*MODEL.MASK_ON False"),
        ([[], POLYGON], False, "annotation 1 has no segmentation"),
        ([POLYGON, RUNS], True, "annotation 2 is an RLE.*INPUT.MASK_FORMAT bitmask"),
        ([], True, "has no annotation to train on.*--train-data"),
    ],
)
def test_annotations_that_do_not_suit(use, masks, training, told):
    recipe, name = use(content(*masks))
    recipe.cfg.INPUT.MASK_FORMAT = "polygon"
    with pytest.raises(ValueError, match=told):
        check_annotations(recipe, name, training=training)
    recipe.cfg.MODEL.MASK_ON = False
    if masks:
        check_annotations(recipe, name, training=training)


def test_cures_of_a_lazy_config(use):
    recipe, name = use(content(RUNS), lazy=True)
    recipe.cfg.dataloader.train.mapper.instance_mask_format = "polygon"
    with pytest.raises(ValueError, match="instance_mask_format=bitmask"):
        check_annotations(recipe, name, training=True)
    recipe.cfg.dataloader.train.mapper.instance_mask_format = "bitmask"
    check_annotations(recipe, name, training=True)
    recipe, name = use(content(None), lazy=True)
    with pytest.raises(ValueError, match="model.roi_heads.mask_head, .* to None"):
        check_annotations(recipe, name, training=True)


def test_what_suits_and_what_is_not_known(use, tiny_set):
    recipe, name = use(content(POLYGON, RUNS))
    check_annotations(recipe, name, training=False)  # RLEs are evaluated
    check_annotations(recipe, tiny_set["val"], training=True)
    check_annotations(recipe, "never_registered", training=True)


def test_no_data_at_all(tiny_cfg):
    recipe = YacsRecipe(tiny_cfg("deconfound", "DATASETS.TRAIN", (), "DATASETS.TEST", ()))
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty.*--train-data JSON IMAGES"):
        check_sets(recipe, training=True, testing=True)
    with pytest.raises(ValueError, match="DATASETS.TEST is empty.*--test-data"):
        check_sets(recipe, training=False, testing=True)
    check_sets(recipe, training=False, testing=False)
    recipe.train_sets = ("some",)
    check_sets(recipe, training=True, testing=True)


def test_two_files_of_one_name_in_one_process(use, tmp_path):
    first, name = use(content(POLYGON))
    recipe, same = use(content(POLYGON))
    assert same != name
    folder = tmp_path / "other"
    folder.mkdir()
    path = MetadataCatalog.get(name).source["json_file"]
    copied = folder / path.split("/")[-1]
    copied.write_text(json.dumps(content(POLYGON)))
    images = str(tmp_path / "images")
    for given, expected in ((path, name), (copied, None), (path, name), (copied, None)):
        use_data(recipe, (str(given), images), None)
        assert (recipe.train_sets[0] == name) == (expected == name)


def test_images_that_are_not_there(use, tmp_path):
    (tmp_path / "images" / "1.png").unlink()
    recipe, name = use(content(POLYGON))
    with pytest.raises(FileNotFoundError, match="No image of .*1.png"):
        check_annotations(recipe, name, training=True)
