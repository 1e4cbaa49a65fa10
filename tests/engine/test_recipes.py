"""One face for yacs configs and LazyConfigs: the same questions get the same answers."""

import heads_util as util
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage

from lvis_tde.engine import LazyRecipe, YacsRecipe, load_recipe, use_data

KINDS = ["yacs", "lazy", "cascade"]


@pytest.fixture
def recipe(tiny_cfg, tiny_set, tmp_path):
    """``recipe(kind, softmax=False)``: a small model on the tiny set."""

    def make(kind, softmax=False):
        if kind == "yacs":
            name = "softmax" if softmax else "deconfound"
            made = YacsRecipe(tiny_cfg(name, "INPUT.MIN_SIZE_TEST", 64, "MODEL.DEVICE", "cpu"))
        else:
            made = LazyRecipe(
                util.lazy_config("TDECascadeROIHeads" if kind == "cascade" else "TDEROIHeads")
            )
            for loader in (made.cfg.dataloader.train, made.cfg.dataloader.test):
                loader.mapper.augmentations[0].short_edge_length = 64
                loader.num_workers = 0
            made.cfg.dataloader.train.total_batch_size = 2
            made.device = "cpu"
            if softmax:
                for stage in util.lazy_stages(made.cfg):
                    stage._target_ = FastRCNNOutputLayers
                    for key in ("norm", "num_heads", "tau", "gamma", "alpha"):
                        del stage[key]
        made.output_dir = str(tmp_path / "output")
        made.train_sets, made.test_sets = (tiny_set["train"],), (tiny_set["val"],)
        return made

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_set_is_saved_and_loaded(kind, recipe, tmp_path):
    changed = recipe(kind)
    before = changed.clone()
    changed.weights = "model.pth"
    changed.set_alpha(0.75)
    changed.save(tmp_path / "config.yaml")
    again = load_recipe(str(tmp_path / "config.yaml"))
    assert type(again) is type(changed) and again.weights == "model.pth"
    assert (again.train_sets, again.test_sets) == (changed.train_sets, changed.test_sets)
    assert again.output_dir == changed.output_dir and again.num_classes == 7
    alphas = [predictor.alpha for predictor in util.predictors(again.build_model())]
    assert alphas == [0.75] * (3 if kind == "cascade" else 1)
    assert before.weights == "" and util.predictors(before.build_model())[0].alpha == 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_tde_on_a_softmax_model(kind, recipe):
    mine = recipe(kind, softmax=True)
    softmax = mine.build_model()
    assert not util.predictors(softmax)
    mine.put_tde_on_softmax(num_heads=2)
    model = mine.build_model()
    model.load_state_dict(softmax.state_dict(), strict=False)
    stages = util.predictors(model)
    assert stages and all((s.cls_score.norm, s.cls_score.num_heads) == ("none", 2) for s in stages)
    features = torch.rand(5, stages[0].cls_score.in_features)
    for stage, other in zip(stages, util.predictors(softmax, FastRCNNOutputLayers)):
        torch.testing.assert_close(stage(features)[0], other(features)[0])
    mine.put_tde_on_softmax(num_heads=1)  # has TDE already
    assert util.predictors(mine.build_model())[0].cls_score.num_heads == 2


def test_lazy_predictors_that_cannot_get_tde(recipe):
    mine = recipe("lazy", softmax=True)
    with pytest.raises(ValueError, match="no TDE"):
        mine.set_alpha(1.0)

    class Other(FastRCNNOutputLayers):
        pass

    mine.cfg.model.roi_heads.box_predictor._target_ = Other
    with pytest.raises(ValueError, match="Other.*swap_box_predictor"):
        mine.put_tde_on_softmax()


@pytest.mark.parametrize("kind", KINDS)
def test_loaders_and_evaluators(kind, recipe, tiny_set, tmp_path):
    mine = recipe(kind)
    batch = next(iter(mine.train_loader()))
    with EventStorage():
        losses = mine.build_model()(batch)
    assert len(batch) == 2 and all(loss.isfinite() for loss in losses.values())
    for split, number in (("val", 6), ("calib", 4)):
        assert len(mine.test_loader(tiny_set[split])) == number
    # Another set than the config's.
    folder = tmp_path / "output" / "inference" / tiny_set["calib"]
    for save in (False, True):
        evaluator = mine.evaluator(tiny_set["calib"], save=save)
        evaluator.reset()
        model = mine.build_model().eval()
        for inputs in mine.test_loader(tiny_set["calib"]):
            with torch.no_grad():
                evaluator.process(inputs, model(inputs))
        assert {"AP", "APr"} <= set(evaluator.evaluate()["bbox"])
        assert (folder / "lvis_instances_results.json").is_file() == save
    assert mine.test_sets == (tiny_set["val"],)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_writes_results_and_report(kind, recipe, tiny_set, tmp_path):
    mine = recipe(kind)
    mine.weights = str(tmp_path / "model.pth")
    torch.save({"model": mine.build_model().state_dict()}, mine.weights)
    results = mine.evaluate(mine.load_model())
    assert {"AP", "APr"} <= set(results["segm"])
    for file in ("inference/{}/lvis_instances_results.json", "report/{}/segm/report.html"):
        assert (tmp_path / "output" / file.format(tiny_set["val"])).is_file()
    mine.test_sets = ()
    assert not mine.evaluate(mine.load_model())


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("kind", ["yacs", "lazy"])
def test_a_picture_is_prepared_as_by_the_predictor(kind, image_format, recipe, tmp_path):
    mine = recipe(kind)
    if kind == "yacs":
        mine.cfg.INPUT.FORMAT = image_format
    else:
        mine.cfg.dataloader.test.mapper.image_format = image_format
    # Detectron2's predictor takes yacs alone.
    reference = recipe("yacs").cfg
    reference.INPUT.FORMAT = image_format
    reference.INPUT.MIN_SIZE_TEST, reference.INPUT.MAX_SIZE_TEST = 64, 1333
    if kind == "yacs":
        mine.cfg.INPUT.MAX_SIZE_TEST = 1333
    seen = []
    predictor = DefaultPredictor(reference)
    predictor.model = lambda inputs: seen.extend(inputs) or [None]
    image = np.random.default_rng(0).integers(0, 256, (40, 90, 3)).astype(np.uint8)
    predictor(image[:, :, ::-1])
    prepared = mine.prepare(image)
    assert torch.equal(prepared["image"], seen[0]["image"])
    assert (prepared["height"], prepared["width"]) == (40, 90)


@pytest.mark.parametrize("kind", KINDS)
def test_a_users_own_files(kind, recipe, tiny_set):
    train, val = (MetadataCatalog.get(tiny_set[split]) for split in ("train", "val"))
    mine = recipe(kind)
    mine.num_classes = 3
    use_data(
        mine, (train.json_file, train.image_root), (val.json_file, val.image_root), bounds=(2, 5)
    )
    assert mine.num_classes == 7
    frequency = MetadataCatalog.get(mine.test_sets[0]).class_frequency
    counts = [c["image_count"] for c in MetadataCatalog.get(mine.train_sets[0]).class_image_count]
    assert frequency == ["r" if n <= 2 else "c" if n <= 5 else "f" for n in counts]
    assert all(s.cls_score.weight.shape[0] == 8 for s in util.predictors(mine.build_model()))
    with pytest.raises(FileNotFoundError, match="no_such.json"):
        use_data(mine, ("no_such.json", train.image_root))


@pytest.mark.parametrize("kind", ["yacs", "lazy"])
def test_training_data_alone_leave_out_a_test_set_of_other_classes(kind, recipe, tiny_set, caplog):
    train = MetadataCatalog.get(tiny_set["train"])
    mine = recipe(kind)
    use_data(mine, (train.json_file, train.image_root), bounds=(2, 5))
    assert mine.test_sets == (tiny_set["val"],) and "skipped" not in caplog.text
    mine.test_sets = ("lvis_v1_val",)
    use_data(mine, (train.json_file, train.image_root), bounds=(2, 5))
    assert mine.test_sets == () and "lvis_v1_val have other classes" in caplog.text


def test_repeated_numbers_of_classes_follow(recipe):
    mine = recipe("cascade")
    for stage in mine.cfg.model.roi_heads.box_predictors:
        stage.num_classes = 7  # written out, not a reference
    mine.num_classes = 5
    stages = util.predictors(mine.build_model())
    assert [s.cls_score.weight.shape[0] for s in stages] == [6, 6, 6]


def test_runs_on_the_cpu_and_says_so(recipe, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for kind in KINDS:
        mine = recipe(kind)
        mine.device = "cuda"
        mine.use_cpu_without_gpu()
        assert mine.device == "cpu" and "running on the CPU" in caplog.text
        caplog.clear()


def test_kinds_of_files(recipe, tmp_path):
    assert isinstance(load_recipe(str(util.LAZY / "mask_rcnn_r50_tde.py")), LazyRecipe)
    assert isinstance(load_recipe(str(util.LAZY.parent / "demo_softmax.yaml")), YacsRecipe)
    assert isinstance(load_recipe(), YacsRecipe)
    LazyConfig.save(recipe("lazy").cfg, str(tmp_path / "saved.yaml"))
    loaded = load_recipe(str(tmp_path / "saved.yaml"), ["train.max_iter=3"])
    assert isinstance(loaded, LazyRecipe) and loaded.cfg.train.max_iter == 3
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        load_recipe("nothing.yaml")
