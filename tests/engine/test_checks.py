"""What is refused before anything is built, and what is not."""

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathHandler, PathManager

from lvis_tde.engine import YacsRecipe, check_dataset, check_inputs, check_weights


@pytest.fixture
def recipe(tiny_cfg, tiny_set):
    """``recipe(*overrides)``: trains on the tiny set, tests on nothing."""

    def make(*overrides):
        sets = ("DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", ())
        return YacsRecipe(tiny_cfg("softmax", *sets, *overrides))

    return make


def test_missing_inputs_name_path_and_cure(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth.*datasets/README.md"):
        check_inputs(recipe("MODEL.WEIGHTS", str(tmp_path / "nowhere.pth")))
    with pytest.raises(FileNotFoundError, match="'no_such_set'.*datasets/README.md"):
        check_inputs(recipe("DATASETS.TRAIN", ("no_such_set",)))
    with pytest.raises(FileNotFoundError, match=r"lvis_v1_train.json.*datasets/README.md"):
        check_inputs(recipe("DATASETS.TRAIN", ("lvis_v1_train",)))
    with pytest.raises(ValueError, match="has 7 classes.*NUM_CLASSES is 3"):
        check_inputs(recipe("MODEL.ROI_HEADS.NUM_CLASSES", 3))
    check_inputs(recipe())


def test_weights_may_have_a_query(tmp_path):
    path = tmp_path / "model.pth"
    path.touch()
    check_weights(f"{path}?matching_heuristics=True")
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        check_weights(f"{tmp_path / 'nowhere.pth'}?matching_heuristics=True")


def test_a_resumed_run_needs_no_initial_weights(recipe, tmp_path):
    mine = recipe("MODEL.WEIGHTS", str(tmp_path / "gone.pth"))
    Path(mine.output_dir).mkdir()
    with pytest.raises(FileNotFoundError, match="gone.pth"):  # nothing to resume from
        check_inputs(mine, resume=True)
    DetectionCheckpointer(torch.nn.Linear(1, 1), mine.output_dir).save("model_0000001")
    check_inputs(mine, resume=True)
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        check_inputs(mine)


class Store(PathHandler):
    """A user's storage with one file."""

    def _get_supported_prefixes(self):
        return ["store://"]

    def _exists(self, path, **_):
        return path == "store://model.pth"


def test_paths_are_those_of_the_path_manager(monkeypatch):
    monkeypatch.setattr(PathManager, "_path_handlers", PathManager._path_handlers.copy())
    PathManager.register_handler(Store())
    check_weights("store://model.pth")
    with pytest.raises(FileNotFoundError, match="store://other.pth"):
        check_weights("store://other.pth")
    # Whether these exist only a download can tell.
    check_weights("detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    check_weights("https://example.org/model.pth")
    with pytest.raises(FileNotFoundError, match="unknown://"):
        check_weights("unknown://model.pth")


@pytest.fixture
def registered(tmp_path):
    """``registered(name, *folders)`` makes a set with these folders of images known."""
    names = []

    def make(name, *folders):
        if name in DatasetCatalog.list():
            pytest.skip(f"{name} is registered")
        for folder in folders:
            (tmp_path / folder).mkdir()
        (tmp_path / "set.json").touch()
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(
            json_file=str(tmp_path / "set.json"), image_root=str(tmp_path)
        )
        names.append(name)

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_users_set_named_like_lvis_has_its_own_folder(registered):
    registered("lvis_v1_val_of_mine")
    check_dataset("lvis_v1_val_of_mine", 7)


def test_test_dev_needs_the_test_images(tmp_path, monkeypatch):
    metadata = MetadataCatalog.get("lvis_v1_test_dev")
    (tmp_path / "test.json").touch()
    monkeypatch.setitem(vars(metadata), "json_file", str(tmp_path / "test.json"))
    monkeypatch.setitem(vars(metadata), "image_root", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="test2017"):
        check_dataset("lvis_v1_test_dev", 1203)
    (tmp_path / "test2017").mkdir()
    check_dataset("lvis_v1_test_dev", 1203)
