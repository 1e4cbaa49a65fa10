"""Classifiers through the trainer of detectors: schedule, resume, best checkpoint, stages."""

import json
import math
import shutil
from pathlib import Path

import classification_util as util
import pytest
import torch
from classification_files_util import write_image_folder
from detectron2.utils.env import seed_all_rng

from lvis_tde.engine import Trainer, YacsRecipe, argument_parser
from lvis_tde.engine import check as engine_check
from lvis_tde.engine import setup
from lvis_tde.engine.classification import ignored_for_epochs, resolved, scheduled
from lvis_tde.engine.hooks import KeepBest

EPOCHS_OFF = ["SOLVER.EPOCHS.TOTAL", 0]


@pytest.fixture(autouse=True)
def sets(tmp_path_factory, monkeypatch):
    root = tmp_path_factory.getbasetemp() / "small_cifar"
    if not root.is_dir():
        util.write_sets(root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))


@pytest.fixture
def train(tmp_path):
    """Trains from the last checkpoint of a folder, if it has one, and returns the trainer."""

    def run(method, folder, *overrides):
        recipe = util.recipe(method, tmp_path / folder, *overrides)
        (tmp_path / folder).mkdir(exist_ok=True)
        seed_all_rng(3)
        trainer = Trainer(recipe.cfg)
        trainer.resume_or_load(resume=True)
        losses, write = [], trainer._trainer._write_metrics

        def record(loss_dict, *args, **kwargs):
            losses.append(loss_dict["loss_cls"].item())
            return write(loss_dict, *args, **kwargs)

        trainer._trainer._write_metrics = record
        trainer.train()
        return trainer, losses

    return run


def metrics_of(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    found = {}
    for line in lines:
        found.update(json.loads(line))
    return found


def test_epochs_become_iterations_without_leaving_an_image_out():
    cfg = util.recipe("tde", "output").cfg
    cfg.SOLVER.EPOCHS.update(TOTAL=200, STEPS=(120, 160), WARMUP=5, DEFER=160, EVAL=10)
    cfg.SOLVER.IMS_PER_BATCH = 256
    scheduled(cfg, 10847)
    each = 10847 / 256
    assert cfg.SOLVER.MAX_ITER == math.ceil(200 * each) == 8475
    assert cfg.SOLVER.STEPS == (round(120 * each), round(160 * each))
    assert cfg.SOLVER.WARMUP_ITERS == round(5 * each) and cfg.TEST.EVAL_PERIOD == round(10 * each)
    assert cfg.MODEL.IMAGE_CLASSIFIER.DEFER_ITER == round(160 * each)
    cfg.SOLVER.EPOCHS.STEPS = (300,)
    with pytest.raises(ValueError, match="STEPS.*300.*200"):
        scheduled(cfg, 10847)
    cfg.SOLVER.EPOCHS.update(STEPS=(), DEFER=201)
    with pytest.raises(ValueError, match="DEFER.*201.*200"):
        scheduled(cfg, 10847)


def test_iterations_count_where_no_epochs_are_given_and_counts_are_those_of_the_set():
    cfg = util.recipe("tde", "output", "SOLVER.EPOCHS.TOTAL", 0, "SOLVER.MAX_ITER", 7).cfg
    found = resolved(cfg)
    assert found.SOLVER.MAX_ITER == 7 and cfg.MODEL.IMAGE_CLASSIFIER.CLASS_COUNTS == ()
    assert list(found.MODEL.IMAGE_CLASSIFIER.CLASS_COUNTS) == [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]


def test_evaluation_counts_in_passes_where_training_counts_in_iterations(tmp_path):
    args = util.arguments("tde", tmp_path, *EPOCHS_OFF, "SOLVER.EPOCHS.EVAL", 2)
    cfg = resolved(util.recipe("tde", tmp_path, *EPOCHS_OFF, "SOLVER.EPOCHS.EVAL", 2).cfg)
    assert cfg.TEST.EVAL_PERIOD == round(2 * sum(cfg.MODEL.IMAGE_CLASSIFIER.CLASS_COUNTS) / 16)
    # The others are of TOTAL, and are not used without it.
    args += ["SOLVER.EPOCHS.DEFER", "3", "SOLVER.EPOCHS.STEPS", "(2,)"]
    found = {one.what: one for one in engine_check(argument_parser().parse_args(args))}
    assert found["schedule"].status == "warning"
    assert "SOLVER.EPOCHS.STEPS (2,) is not used" in found["schedule"].message
    assert "DEFER 3 is not used" in found["schedule"].message
    assert "MODEL.IMAGE_CLASSIFIER.DEFER_ITER" in found["schedule"].message


@pytest.mark.parametrize("number", [9, 12])
def test_a_model_has_as_many_classes_as_its_set(number):
    cfg = util.recipe("tde", "output", "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", number).cfg
    with pytest.raises(ValueError, match=f"10 classes.*NUM_CLASSES is {number}: set it to 10"):
        resolved(cfg)


def test_what_epochs_replace_is_told(tmp_path):
    args = util.arguments("tde", tmp_path, "SOLVER.MAX_ITER", 7, "SOLVER.STEPS", "(5,)")
    found = {one.what: one for one in engine_check(argument_parser().parse_args(args))}
    assert found["schedule"].status == "warning"
    assert "SOLVER.MAX_ITER 7 is not used" in found["schedule"].message
    assert "SOLVER.STEPS (5,) is not used" in found["schedule"].message
    assert ignored_for_epochs(util.recipe("tde", tmp_path).cfg) == ""
    assert ignored_for_epochs(util.recipe("tde", tmp_path, *args[-4:], *EPOCHS_OFF).cfg) == ""
    args = argument_parser().parse_args(["--num-gpus", "3", *args])
    found = {one.what: one for one in engine_check(args)}  # those that will be started count
    assert "16 images per batch" in found["schedule"].message
    assert "each of 3 processes" in found["schedule"].message


@pytest.mark.parametrize("key", ["TOTAL", "EVAL"])
def test_epochs_of_a_detector_are_refused(key, tiny_cfg):
    cfg = tiny_cfg("deconfound", f"SOLVER.EPOCHS.{key}", 12)
    with pytest.raises(ValueError, match="12.*epochs are for classifiers.*SOLVER.MAX_ITER"):
        resolved(cfg)
    with pytest.raises(ValueError, match="epochs are for classifiers"):
        YacsRecipe(cfg).build_solver(None)


@pytest.mark.parametrize("method", ["tde", "ldam_drw"])
def test_resumed_training_equals_uninterrupted_training(method, train, tmp_path):
    options = [] if method == "tde" else ["SOLVER.EPOCHS.DEFER", 1, "SOLVER.EPOCHS.TOTAL", 2]
    period = ["SOLVER.CHECKPOINT_PERIOD", 3]
    whole, expected = train(method, "whole", *period, *options)
    (tmp_path / "killed").mkdir()
    shutil.copy(tmp_path / "whole" / "model_0000002.pth", tmp_path / "killed")
    (tmp_path / "killed" / "last_checkpoint").write_text("model_0000002.pth")
    resumed, losses = train(method, "killed", *period, *options)
    assert len(expected) == (5 if method == "tde" else 10) and losses == expected[3:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert whole.model.predictor.feature_mean.mean.any()


def test_the_end_of_training_is_the_test(train, tmp_path):
    trainer, _ = train("softmax", "out")
    found = metrics_of(tmp_path / "out")
    again = Trainer.test(trainer.cfg, trainer.model)["classification"]
    assert found["classification/top1"] == again["top1"]
    assert {"many", "few", "balanced", "ece", "forward50"} <= set(again)
    assert "lr" in found and "calib/top1" not in found


def test_the_best_checkpoint_has_the_mean_of_its_own_iteration(train, tmp_path, monkeypatch):
    values, means = iter([10.0, 30.0, 20.0]), []
    test = Trainer.test.__func__

    def scripted(cls, cfg, model, evaluators=None):
        if cfg.DATASETS.TEST != cfg.DATASETS.CALIB:
            tested.append(model.predictor.feature_mean.mean.clone())
            return test(cls, cfg, model, evaluators)
        means.append(model.predictor.feature_mean.mean.clone())
        return {"classification": {"balanced": next(values)}}

    tested = []
    monkeypatch.setattr(Trainer, "test", classmethod(scripted))
    trainer, _ = train("tde", "out", "TEST.EVAL_PERIOD", 2)
    best = torch.load(tmp_path / "out" / "model_best.pth")
    assert (best["iteration"], best["best"]) == (3, 30.0) and len(means) == 3
    mean = best["model"]["predictor.feature_mean.mean"]
    assert torch.equal(mean, means[1]) and not torch.equal(mean, means[2])
    # The test set is met once, with that checkpoint.
    assert len(tested) == 1 and torch.equal(tested[0], mean)
    last = torch.load(tmp_path / "out" / "model_final.pth")
    assert torch.equal(last["model"]["predictor.feature_mean.mean"], means[2])
    found = metrics_of(tmp_path / "out")
    assert found["calib/balanced"] == 20.0 and "classification/top1" in found


def test_the_best_so_far_survives_an_interruption(train, tmp_path, monkeypatch):
    values = {"whole": [30.0, 10.0, 20.0], "killed": [20.0]}
    for folder in values:
        script = iter(values[folder])
        monkeypatch.setattr(
            KeepBest,
            "after_step",
            lambda hook, script=script: (
                hook._record({"balanced": next(script)}) if hook.trainer.iter % 2 == 1 else None
            ),
        )
        if folder == "killed":
            (tmp_path / "killed").mkdir()
            for file in ("model_0000002.pth", "model_best.pth"):
                shutil.copy(tmp_path / "whole" / file, tmp_path / "killed")
            (tmp_path / "killed" / "last_checkpoint").write_text("model_0000002.pth")
        options = ["SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 2]
        train("tde", folder, *options, "DATASETS.TEST", "()", "SOLVER.EPOCHS.TOTAL", 1)
    assert torch.load(tmp_path / "killed" / "model_best.pth")["best"] == 30.0


def test_an_unknown_metric_is_named(train):
    with pytest.raises(ValueError, match="'APr'.*balanced"):
        train("tde", "out", "TEST.EVAL_PERIOD", 2, "TEST.CALIB_METRIC", "APr")


def test_an_undefined_metric_ends_the_training_at_its_first_evaluation(train, monkeypatch):
    calls = []
    found = {"classification": {"top1": 10.0, "balanced": math.nan}}
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: calls.append(1) or found))
    with pytest.raises(ValueError, match="calib/balanced is undefined.*such as top1"):
        train("tde", "out", "TEST.EVAL_PERIOD", 2)
    assert calls == [1]


@pytest.mark.parametrize("method", ["crt", "lws"])
def test_the_second_stage_trains_the_classifier_alone(method, train, tmp_path):
    first, _ = train("softmax", "first")
    weights = ["MODEL.WEIGHTS", tmp_path / "first" / "model_final.pth"]
    second, losses = train(method, method, *weights)
    assert losses and all(map(math.isfinite, losses))
    before, after = first.model.state_dict(), second.model.state_dict()
    for name, value in before.items():
        if name.startswith("backbone.") or name == "predictor.feature_mean.mean":
            assert torch.equal(value, after[name]), name
    weight = "predictor.cls_score.weight"
    assert torch.equal(before[weight], after[weight]) == (method == "lws")
    if method == "lws":
        assert not torch.equal(after["predictor.cls_score.scales"], torch.ones(10))
    else:
        # Anew: it does not start at what was trained.
        start, _ = train(method, "start", *weights, "SOLVER.BASE_LR", 1e-9)
        assert not torch.equal(start.model.state_dict()[weight], before[weight])


@pytest.mark.parametrize("loss", ["focal", "balanced_softmax"])
def test_other_losses_train(loss, train):
    _, losses = train(loss, "out", "INPUT.CLASSIFICATION.MIXUP", 0.2)
    assert len(losses) == 5 and all(map(math.isfinite, losses))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Detectron2's AMPTrainer needs a GPU")
def test_half_precision(train):
    trainer, losses = train("tde", "out", "SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cuda")
    assert losses and all(map(math.isfinite, losses))
    assert trainer.model.predictor.feature_mean.mean.dtype == torch.float32


def check(method, output, *overrides, options=()):
    args = argument_parser().parse_args([*options, *util.arguments(method, output, *overrides)])
    return setup(args)


def test_mistakes_are_named_before_anything_is_built(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="MODEL.IMAGE_CLASSIFIER.NUM_CLASSES is 9: set it to 10"):
        check("tde", tmp_path, "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", 9)
    with pytest.raises(ValueError, match="TRAIN_ONLY is 'classifier'.*MODEL.WEIGHTS"):
        check("crt", tmp_path, "MODEL.WEIGHTS", "")
    with pytest.raises(FileNotFoundError, match="no_such.pth"):
        check("crt", tmp_path, "MODEL.WEIGHTS", "no_such.pth")
    with pytest.raises(ValueError, match="TEST.AUG.ENABLED is True"):
        check("tde", tmp_path, "TEST.AUG.ENABLED", True)
    with pytest.raises(ValueError, match="TEST.CALIB_METRIC is 'APr'.*top1, "):
        check("tde", tmp_path, "TEST.CALIB_METRIC", "APr", "TEST.EVAL_PERIOD", 2)
    with pytest.raises(ValueError, match="one set"):
        check("tde", tmp_path, "DATASETS.CALIB", f"('{util.STEM}_calib', '{util.STEM}_fit')")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py.*download"):
        check("tde", tmp_path)


def test_boxes_and_whole_images_are_not_mixed_up(tmp_path, tiny_set, tiny_cfg):
    with pytest.raises(ValueError, match="--train-folder"):
        boxes = ["DATASETS.TRAIN", f"('{tiny_set['train']}',)", "DATASETS.CALIB", "()"]
        boxes += ["DATASETS.TEST", "()", "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", 7]
        check("tde", tmp_path, *boxes)
    folder = str(write_image_folder(tmp_path / "pets"))
    config = str(Path(util.CONFIGS).parent / "demo_softmax.yaml")
    args = argument_parser().parse_args(["--config-file", config, "--train-folder", folder])
    with pytest.raises(ValueError, match="--train-data JSON IMAGES"):
        setup(args)


def test_own_folders(tmp_path):
    train = write_image_folder(tmp_path / "pets", {"ant": 30, "bee": 12, "cat": 3})
    test = write_image_folder(tmp_path / "exam", {"ant": 2, "bee": 2, "cat": 2})
    options = ["--train-folder", str(train), "--test-folder", str(test)]
    recipe = check("tde", tmp_path / "out", options=[*options, "--hold-out"])
    assert (recipe.num_classes, recipe.train_sets) == (3, ("pets_fit",))
    assert (recipe.calibration_sets, recipe.test_sets) == (("pets_calib",), ("exam_test",))
    trainer = Trainer(recipe.cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert list(trainer.model.predictor.statistics.images) == [27, 11, 2]
    recipe = check("tde", tmp_path / "out2", options=options[:2])
    assert (recipe.train_sets, recipe.test_sets) == (("pets_train",), ())
    with pytest.raises(ValueError, match="needs --train-folder"):
        check("tde", tmp_path / "out3", options=options[2:])
