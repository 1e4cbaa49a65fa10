"""Training, resumption and evaluation through the package's trainer, on the tiny set."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from detectron2 import engine
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from lvis_tde.engine import (
    Trainer,
    argument_parser,
    check_inputs,
    launch,
    setup,
    use_cpu_without_gpu,
    use_data,
)


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


def test_the_mean_sees_the_rate_of_its_own_step(train):
    # One step: warm-up gives a rate that no hook has logged yet.
    trainer, _ = train("rate", 1)
    assert trainer.model.roi_heads.box_predictor.feature_mean.lr == pytest.approx(
        0.02 * trainer.cfg.SOLVER.WARMUP_FACTOR
    )


def test_evaluation_reports_rare_common_frequent(tiny_cfg, tiny_set, tiny_model):
    cfg = tiny_cfg("deconfound", "DATASETS.TEST", (tiny_set["val"],), "INPUT.MIN_SIZE_TEST", 64)
    results = Trainer.test_and_report(cfg, tiny_model())
    assert (Path(cfg.OUTPUT_DIR) / "report" / tiny_set["val"] / "segm" / "report.html").is_file()
    for task in ("bbox", "segm"):
        assert {"AP", "AP50", "AP75", "APr", "APc", "APf"} <= set(results[task])


def test_checkpoint_holds_the_mean(train, tiny_model, tmp_path):
    trainer, _ = train("mean", 3)
    model = tiny_model()
    DetectionCheckpointer(model).load(str(tmp_path / "mean" / "model_final.pth"))
    mean = trainer.model.roi_heads.box_predictor.feature_mean.mean
    assert torch.equal(model.roi_heads.box_predictor.feature_mean.mean, mean)


def test_runs_on_the_cpu_and_says_so(tiny_cfg, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = tiny_cfg("softmax", "MODEL.DEVICE", "cuda")
    use_cpu_without_gpu(cfg)
    assert cfg.MODEL.DEVICE == "cpu" and "running on the CPU" in caplog.text


def test_missing_inputs_name_path_and_cure(tiny_cfg, tiny_set, tmp_path, monkeypatch):
    missing = str(tmp_path / "nowhere.pth")
    names = ("DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", ())
    with pytest.raises(FileNotFoundError, match="nowhere.pth.*datasets/README.md"):
        check_inputs(tiny_cfg("softmax", *names, "MODEL.WEIGHTS", missing))
    with pytest.raises(FileNotFoundError, match="'no_such_set'.*datasets/README.md"):
        check_inputs(tiny_cfg("softmax", "DATASETS.TRAIN", ("no_such_set",)))
    with pytest.raises(FileNotFoundError, match=r"lvis_v1_train.json.*datasets/README.md"):
        check_inputs(tiny_cfg("softmax", "DATASETS.TRAIN", ("lvis_v1_train",)))
    check_inputs(tiny_cfg("softmax", *names))


def test_setup_from_the_command_line(tiny_set, tmp_path):
    config = Path(__file__).parents[2] / "configs" / "demo_deconfound.yaml"
    args = argument_parser().parse_args(
        ["--config-file", str(config), "OUTPUT_DIR", str(tmp_path), "MODEL.TDE.ALPHA", "0.5"]
        + ["DATASETS.TRAIN", f"('{tiny_set['train']}',)", "DATASETS.TEST", "()"]
        + ["MODEL.ROI_HEADS.NUM_CLASSES", "7"]
    )
    assert setup(args).MODEL.TDE.ALPHA == 0.5
    assert (tmp_path / "config.yaml").is_file()
    args.config_file = "no_such.yaml"
    with pytest.raises(FileNotFoundError, match="no_such.yaml"):
        setup(args)


def test_metrics_hold_the_scalars(train, tmp_path):
    train("scalars", 3)
    lines = (tmp_path / "scalars" / "metrics.json").read_text().splitlines()
    last = json.loads(lines[-1])
    assert {"tde/mean_norm", "tde/num_fg", "tde/fg_cosine_to_mean", "lr"} <= set(last)


def test_a_users_own_files(tiny_cfg, tiny_set):
    train, val = (MetadataCatalog.get(tiny_set[split]) for split in ("train", "val"))
    cfg = tiny_cfg("deconfound", "MODEL.ROI_HEADS.NUM_CLASSES", 3)
    use_data(
        cfg, (train.json_file, train.image_root), (val.json_file, val.image_root), bounds=(2, 5)
    )
    check_inputs(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7
    frequency = MetadataCatalog.get(cfg.DATASETS.TEST[0]).class_frequency
    counts = [
        c["image_count"] for c in MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).class_image_count
    ]
    assert frequency == ["r" if n <= 2 else "c" if n <= 5 else "f" for n in counts]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    with pytest.raises(ValueError, match="has 7 classes.*NUM_CLASSES is 3"):
        check_inputs(cfg)
    with pytest.raises(FileNotFoundError, match="no_such.json"):
        use_data(cfg, ("no_such.json", train.image_root))


def test_several_processes_without_a_gpu(monkeypatch, caplog):
    # Release 0.6 cannot start them, main can.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = []
    monkeypatch.setattr(engine, "launch", lambda main, num_gpus, **_: asked.append(num_gpus))
    launch(print, argument_parser().parse_args(["--num-gpus", "8"]))
    if hasattr(comm, "create_local_process_group"):
        assert asked == [8]
    else:
        assert asked == [1] and "running 1" in caplog.text
