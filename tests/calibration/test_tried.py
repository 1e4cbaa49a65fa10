"""What tells results apart that are kept on disk: all that a metric depends on."""

import os

import classification_util as util
import numpy as np
import pytest
from classification_files_util import pictures, write_image_folder
from detectron2.data import DatasetCatalog, MetadataCatalog

from lvis_tde.calibration.tried import key_of
from lvis_tde.data.classification import register_image_folder
from lvis_tde.data.classification.names import register_classification
from lvis_tde.data.classification.sets import ClassificationSet
from lvis_tde.engine import YacsRecipe, use_fast

NAME = "exam_of_keys"


@pytest.fixture
def key(tmp_path):
    recipe, model = util.recipe("tde", tmp_path / "output"), util.model_with_mean()
    yield lambda: key_of(recipe, model, NAME)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_another_folder_of_images_under_the_same_name(key, tmp_path):
    keys = []
    for folder, counts in (("a", {"ant": 2, "bee": 2}), ("b", {"ant": 2, "bee": 3})):
        path = write_image_folder(tmp_path / folder / "exam", counts)
        register_image_folder(NAME, path)
        keys += [key(), key()]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    image = path / "ant" / "0.jpg"
    os.utime(image, ns=(1, 1))  # written anew
    keys.append(key())
    image.write_bytes((path / "ant" / "1.jpg").read_bytes() + b" ")
    os.utime(image, ns=(1, 1))
    assert len({*keys, key()}) == 4


def test_images_in_memory_labels_ids_and_groups(key):
    labels, ids = np.array([0, 1, 1]), np.arange(3)
    images = pictures(labels, 8)
    seen = set()
    for one in (
        (labels, images, ids, (20, 100)),
        (labels, images + 1, ids, (20, 100)),
        (1 - labels, images, ids, (20, 100)),
        (labels, images, ids + 1, (20, 100)),
        (labels, images, ids, (1, 2)),
    ):
        found = ClassificationSet(one[0], ["a", "b"], images=one[1], image_ids=one[2])
        register_classification(NAME, found, counts=[3, 3], bounds=one[3])
        assert key() == key()
        seen.add(key())
    assert len(seen) == 5


def test_detectors_have_annotations_and_a_folder_of_images(tiny_cfg, tiny_model, tiny_set):
    recipe, model = YacsRecipe(tiny_cfg()), tiny_model()
    known = MetadataCatalog.get(tiny_set["val"])
    names = {"key_same": known.image_root, "key_elsewhere": known.image_root + "_2"}
    for name, root in names.items():
        MetadataCatalog.get(name).set(json_file=known.json_file, image_root=root)
    found = [key_of(recipe, model, name) for name in (tiny_set["val"], *names)]
    for name in names:
        MetadataCatalog.remove(name)
    assert found[0] == found[1] != found[2]


def test_what_a_model_optimized_for_inference_finds_is_its_own(tiny_cfg, tiny_model, tiny_set):
    recipe, model = YacsRecipe(tiny_cfg()), tiny_model()
    fast, half = recipe.clone(), recipe.clone()
    half.cfg.MODEL.TDE.INFERENCE_DTYPE = "bfloat16"
    use_fast(fast)
    use_fast(half)
    assert len({key_of(one, model, tiny_set["val"]) for one in (recipe, fast, half)}) == 3
