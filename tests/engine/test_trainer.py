"""Training, resumption and evaluation through the package's trainer, on the tiny set."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2 import engine
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from lvis_tde.engine import Trainer, YacsRecipe, argument_parser, launch, setup
from lvis_tde.engine.preflight import find, preflight


@pytest.fixture
def train(tiny_cfg, tiny_set, tmp_path):
    """Trains from the last checkpoint of a folder, if it has one, and returns the trainer."""

    def run(folder, max_iter, *overrides):
        # fmt: off
        cfg = tiny_cfg(
            "deconfound", "DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", (),
            "SEED", 3, "SOLVER.MAX_ITER", max_iter, "SOLVER.STEPS", (4,),
            "SOLVER.CHECKPOINT_PERIOD", 3, "OUTPUT_DIR", str(tmp_path / folder),
            "INPUT.MIN_SIZE_TRAIN", (64,), *overrides,
        )
        # fmt: on
        (tmp_path / folder).mkdir(exist_ok=True)
        seed_all_rng(3)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        losses = []
        write = trainer._trainer._write_metrics

        def record(loss_dict, *args, **kwargs):
            losses.append({name: loss.item() for name, loss in loss_dict.items()})
            return write(loss_dict, *args, **kwargs)

        trainer._trainer._write_metrics = record
        trainer.train()
        return trainer, losses

    return run


def test_resumed_training_equals_uninterrupted_training(train, tmp_path):
    whole, expected = train("whole", 6)
    # Killed after the checkpoint of iteration 2: everything later is lost.
    (tmp_path / "killed").mkdir()
    shutil.copy(tmp_path / "whole" / "model_0000002.pth", tmp_path / "killed")
    (tmp_path / "killed" / "last_checkpoint").write_text("model_0000002.pth")
    resumed, losses = train("killed", 6)
    assert len(expected) == 6 and losses == expected[3:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert whole.model.roi_heads.box_predictor.feature_mean.mean.norm() > 0
    # Killed between the last periodic checkpoint and the one of the end.
    last = tmp_path / "killed" / "model_final.pth"
    expected = torch.load(last)
    last.unlink()
    (tmp_path / "killed" / "last_checkpoint").write_text("model_0000005.pth")
    _, losses = train("killed", 6)
    found = torch.load(last)
    assert losses == [] and found["iteration"] == expected["iteration"] == 5
    assert found["trainer"]["iteration"] == expected["trainer"]["iteration"] == 5
    for name, value in expected["model"].items():
        assert torch.equal(value, found["model"][name]), name
    # A training that has ended is left as it is.
    before = last.stat().st_mtime_ns
    train("killed", 6)
    assert last.stat().st_mtime_ns == before


def test_evaluation_reports_rare_common_frequent(tiny_cfg, tiny_set, tiny_model):
    cfg = tiny_cfg("deconfound", "DATASETS.TEST", (tiny_set["val"],), "INPUT.MIN_SIZE_TEST", 64)
    results = Trainer.test_and_report(cfg, tiny_model())
    assert (Path(cfg.OUTPUT_DIR) / "report" / tiny_set["val"] / "segm" / "report.html").is_file()
    for task in ("bbox", "segm"):
        assert {"AP", "AP50", "AP75", "APr", "APc", "APf"} <= set(results[task])


def test_evaluation_makes_no_masks_of_image_size(tiny_cfg, tiny_set, tiny_model, monkeypatch):
    cfg = tiny_cfg("deconfound", "DATASETS.TEST", (tiny_set["val"],), "INPUT.MIN_SIZE_TEST", 64)
    model, file = tiny_model(), f"inference/{tiny_set['val']}/lvis_instances_results.json"
    evaluators = [Trainer.build_evaluator(cfg, tiny_set["val"])]
    super(Trainer, Trainer).test(cfg, model, evaluators)
    expected = (Path(cfg.OUTPUT_DIR) / file).read_bytes()
    assert b"segmentation" in expected

    def refuse(*_):
        raise AssertionError("pasted")

    monkeypatch.setattr(GeneralizedRCNN, "_postprocess", staticmethod(refuse))
    Trainer.test(cfg, model)
    assert (Path(cfg.OUTPUT_DIR) / file).read_bytes() == expected


def test_augmentation_and_expected_results_of_the_config(tiny_cfg, tiny_set, tiny_model):
    expected = ["bbox_TTA", "AP", 0.0, 100.0]
    cfg = tiny_cfg(
        "deconfound", "DATASETS.TEST", (tiny_set["val"],), "INPUT.MIN_SIZE_TEST", 64,
        "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 96),
        "TEST.EXPECTED_RESULTS", [expected],
    )  # fmt: skip
    results = Trainer.test_and_report(cfg, tiny_model())
    assert set(results) == {"bbox", "segm", "bbox_TTA", "segm_TTA"}
    assert {"AP", "APr"} <= set(results["segm_TTA"])
    expected[2:] = [1000.0, 1.0]
    cfg.TEST.EXPECTED_RESULTS = [expected]
    with pytest.raises(SystemExit):
        Trainer.test_and_report(cfg, tiny_model())


def test_training_ends_with_the_augmented_test(train, tiny_set, tmp_path):
    train(
        "augmented", 1, "DATASETS.TEST", (tiny_set["val"],), "INPUT.MIN_SIZE_TEST", 64,
        "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64,),
    )  # fmt: skip
    lines = (tmp_path / "augmented" / "metrics.json").read_text().splitlines()
    metrics = {key for line in lines for key in json.loads(line)}
    assert {"segm/APr", "segm_TTA/APr"} <= metrics


def test_a_detector_keeps_its_best_boxes_and_both_tests_are_of_them(
    train, tiny_set, tmp_path, monkeypatch
):
    values, calibrated, tested = iter([30.0, 20.0]), [], []

    def scripted(cls, cfg, model, evaluators=None):
        plain = getattr(model, "model", model)  # within the one that augments
        weight = plain.roi_heads.box_predictor.cls_score.weight.detach().clone()
        if cfg.DATASETS.TEST == (tiny_set["calib"],):
            calibrated.append(weight)
            return {"bbox": {"AP": next(values), "APr": 1.0}, "segm": {"AP": 0.0}}
        tested.append((cfg.OUTPUT_DIR.endswith("TTA"), weight))
        return {"bbox": {"AP": 1.0}}

    monkeypatch.setattr(Trainer, "test", classmethod(scripted))
    train(
        "best", 2, "DATASETS.CALIB", (tiny_set["calib"],), "DATASETS.TEST", (tiny_set["val"],),
        "TEST.EVAL_PERIOD", 1, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64,),
    )  # fmt: skip
    best, last = calibrated
    assert not torch.equal(best, last)
    assert [augmented for augmented, _ in tested] == [False, True]
    assert all(torch.equal(weight, best) for _, weight in tested)
    lines = (tmp_path / "best" / "metrics.json").read_text()
    assert '"bbox_TTA/AP"' in lines and '"calib/AP": 20.0' in lines


@pytest.mark.parametrize(
    "metric, status, message",
    [
        ("", "ok", "the best AP on"),
        ("APr", "ok", "the best APr on"),
        ("balanced", "error", "TEST.CALIB_METRIC is 'balanced'.*APr"),
        ("APf", "error", "bbox/APf would be undefined"),
    ],
)
def test_the_metric_of_the_best_is_checked_before(metric, status, message, tiny_cfg, tiny_set):
    cfg = tiny_cfg(
        "deconfound", "DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", (),
        "DATASETS.CALIB", (tiny_set["calib"],), "TEST.EVAL_PERIOD", 1, "TEST.CALIB_METRIC", metric,
        "MODEL.WEIGHTS", "",
    )  # fmt: skip
    (one,) = (one for one in preflight(YacsRecipe(cfg)) if one.what == "best")
    found = find(one)
    assert found.status == status and re.search(message, found.message), found


def test_a_check_counts_the_processes_that_will_train(tiny_cfg):
    cfg = tiny_cfg("deconfound", "SOLVER.IMS_PER_BATCH", 2, "MODEL.WEIGHTS", "")
    for processes, status in ((2, "ok"), (4, "error")):
        checks = preflight(YacsRecipe(cfg), processes=processes)
        (found,) = (find(one) for one in checks if one.what == "schedule")
        assert found.status == status
    assert "each of 4 processes" in found.message


def test_trains_on_images_whose_size_the_records_do_not_give(train, tiny_set):
    _, expected = train("sizes", 2)
    records = DatasetCatalog.get(tiny_set["train"])
    DatasetCatalog.register(
        "no_sizes",
        lambda: [{k: v for k, v in r.items() if k not in ("width", "height")} for r in records],
    )
    metadata = MetadataCatalog.get(tiny_set["train"]).as_dict()
    MetadataCatalog.get("no_sizes").set(**{k: v for k, v in metadata.items() if k != "name"})
    try:
        _, losses = train("no_sizes", 2, "DATASETS.TRAIN", ("no_sizes",))
    finally:
        DatasetCatalog.remove("no_sizes")
        MetadataCatalog.remove("no_sizes")
    assert losses == expected


def test_checkpoint_holds_the_mean(train, tiny_model, tmp_path):
    trainer, _ = train("mean", 3)
    model = tiny_model()
    DetectionCheckpointer(model).load(str(tmp_path / "mean" / "model_final.pth"))
    mean = trainer.model.roi_heads.box_predictor.feature_mean.mean
    assert torch.equal(model.roi_heads.box_predictor.feature_mean.mean, mean)


def test_setup_from_the_command_line(tiny_set, tmp_path):
    config = Path(__file__).parents[2] / "configs" / "demo_deconfound.yaml"
    args = argument_parser().parse_args(
        ["--config-file", str(config), "OUTPUT_DIR", str(tmp_path), "MODEL.TDE.ALPHA", "0.5"]
        + ["DATASETS.TRAIN", f"('{tiny_set['train']}',)", "DATASETS.TEST", "()"]
        + ["MODEL.ROI_HEADS.NUM_CLASSES", "7"]
    )
    assert setup(args).cfg.MODEL.TDE.ALPHA == 0.5
    assert (tmp_path / "config.yaml").is_file()
    args.config_file = "no_such.yaml"
    with pytest.raises(FileNotFoundError, match="no_such.yaml"):
        setup(args)


def test_metrics_hold_the_scalars(train, tmp_path):
    train("scalars", 3)
    lines = (tmp_path / "scalars" / "metrics.json").read_text().splitlines()
    last = json.loads(lines[-1])
    assert {"tde/mean_norm", "tde/num_fg", "tde/fg_cosine_to_mean", "lr"} <= set(last)


def test_several_processes_without_a_gpu(monkeypatch, caplog):
    # Release 0.6 cannot start them, main can.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = []
    monkeypatch.setattr(engine, "launch", lambda main, num_gpus, **_: asked.append(num_gpus))
    args = argument_parser().parse_args(["--num-gpus", "8"])
    launch(lambda _: asked.append("here"), args)
    if hasattr(comm, "create_local_process_group"):
        assert asked == [8]
    else:
        assert asked == ["here"] and "running 1" in caplog.text and args.num_gpus == 1
