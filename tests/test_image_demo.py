"""Pictures of what a classifier says, by the tool: options, names without data, words."""

import classification_util as util
import numpy as np
import pytest
from classification_files_util import write_images
from matplotlib.text import Text
from PIL import Image

from lvis_tde.calibration.checkpoint import save_checkpoint
from lvis_tde.calibration.explain import explain_images
from lvis_tde.posthoc import Settings
from lvis_tde.visualization.classified import draw_classified
from tools import demo

NAMES = [f"name{i}" for i in range(10)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(*options)`` is the drawing, where the data are not on this machine."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "no_data"))
    model = util.model_with_mean()
    write_images(tmp_path, ["picture.jpg"], [3], size=(48, 40))

    def call(*options, names=NAMES):
        model.predictor.statistics.set_classes(names, "fffccccrrr" if names else None)
        save_checkpoint(model, tmp_path / "model.pth")
        args = util.arguments("tde", tmp_path, "MODEL.WEIGHTS", tmp_path / "model.pth")
        # Of seeds that no other test has, whose classes nobody has registered.
        sets = [one.replace(util.STEM, f"{util.STEM}_seed77") for one in args[2:]]
        out = ["--output", str(tmp_path / "drawn")]
        demo.main([str(tmp_path / "picture.jpg"), *out, *options, *args[:2], "--opts", *sets])
        return Image.open(tmp_path / "drawn" / "picture.png")

    return call


def test_names_of_the_checkpoint_and_the_sizes_asked_for(run):
    usual, small, few = run(), run("--panel-size", "100"), run("--top", "2")
    # The picture's side, and 5.4 inches of 100 dots beside it.
    assert (usual.size[0], small.size[0]) == (360 + 540, 100 + 540)
    assert few.size == usual.size and (np.asarray(few) != np.asarray(usual)).any()
    with pytest.raises(ValueError, match="top=0.*--top"):
        run("--top", "0")
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py.*DETECTRON2_DATASETS"):
        run(names=None)


def test_the_words_say_what_was_done():
    model = util.model_with_mean()
    batch = [{"image": np.zeros((3, 8, 8), np.uint8)}]
    batch = [{name: util.torch.from_numpy(one) for name, one in row.items()} for row in batch]

    def words(settings):
        model.predictor.posthoc = settings
        parts = explain_images(model, batch)
        figure = draw_classified(np.zeros((8, 8, 3), np.uint8), parts, class_names=NAMES)
        return {text.get_text() for text in figure.findobj(Text)}

    assert {"light: as trained", "full: with TDE"} <= words(Settings(region=1.0, class_=1.0))
    found = words(Settings(tau_norm=1.0))
    assert {"light: as trained", "full: adjusted"} <= found and "full: with TDE" not in found
