"""AP over the training: as an evaluation of each checkpoint by itself gives it."""

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from lvis_tde.engine import Trainer
from lvis_tde.experiments.study.checkpoint_curve import CURVE_FILE, checkpoint_curve

METRICS = ("AP", "APr", "APc", "APf")


@pytest.fixture
def trained(tiny_cfg, tiny_set):
    cfg = tiny_cfg(
        "deconfound", "DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", (), "SEED", 3,
        "SOLVER.MAX_ITER", 24, "SOLVER.CHECKPOINT_PERIOD", 10, "INPUT.MIN_SIZE_TRAIN", (64,),
        "INPUT.MIN_SIZE_TEST", 64, "MODEL.MASK_ON", False, "TEST.DETECTIONS_PER_IMAGE", 100,
    )  # fmt: skip
    Trainer(cfg).train()
    return cfg


def test_each_point_is_its_checkpoints_own_evaluation(trained, tiny_set, tmp_path, telling):
    points = checkpoint_curve(trained, tiny_set["calib"], alpha=1.5)
    assert [point["iteration"] for point in points] == [9, 19, 23]
    cfg = trained.clone()
    cfg.DATASETS.TEST = (tiny_set["calib"],)
    cfg.OUTPUT_DIR = str(tmp_path / "other")
    expected = []
    for name, iteration in (("0000009", 9), ("0000019", 19), ("final", 23)):
        point = {"iteration": iteration}
        for alpha, suffix in ((0.0, ""), (1.5, "_tde")):
            cfg.MODEL.TDE.ALPHA = alpha
            model = Trainer.build_model(cfg)
            DetectionCheckpointer(model).load(f"{trained.OUTPUT_DIR}/model_{name}.pth")
            found = Trainer.test(cfg, model)["bbox"]
            point.update({f"{m}{suffix}": found[m] for m in METRICS if found[m] >= 0})
        expected.append(pytest.approx(point, abs=1e-4))
    assert points == expected
    # Figures that any change of a detection changes: no two of the six evaluations are the same.
    assert len({point[name] for point in points for name in ("AP", "AP_tde")}) == 6


def test_what_is_known_is_not_evaluated_again(trained, tiny_set, tmp_path, monkeypatch):
    calib, folder = tiny_set["calib"], tmp_path / "output"
    assert str(folder) == trained.OUTPUT_DIR
    last = folder / "model_final.pth"
    away = last.rename(folder / "away")
    first = checkpoint_curve(trained, calib, alpha=1.5)  # as if interrupted
    away.rename(last)
    both = checkpoint_curve(trained, calib, alpha=1.5)
    assert both[:2] == first and len(both) == 3
    for path in folder.glob("model_0*.pth"):
        path.unlink()
    built = []
    build = Trainer.build_model
    monkeypatch.setattr(
        Trainer, "build_model", classmethod(lambda cls, cfg: built.append(1) or build(cfg))
    )
    assert checkpoint_curve(trained, calib, alpha=1.5) == both and not built
    # Of another alpha nothing is known but the checkpoint that is left.
    assert [p["iteration"] for p in checkpoint_curve(trained, calib, alpha=0.5)] == [23]
    assert len(built) == 1 and (folder / CURVE_FILE).is_file()


def test_a_softmax_that_tracked_no_mean_has_no_tde(tiny_cfg, tiny_set, tiny_model):
    cfg = tiny_cfg("softmax", "INPUT.MIN_SIZE_TEST", 64, "MODEL.MASK_ON", False)
    folder = cfg.OUTPUT_DIR
    Path(folder).mkdir()
    model = tiny_model("softmax", "MODEL.MASK_ON", False)
    torch.save({"model": model.state_dict()}, f"{folder}/model_final.pth")
    (point,) = checkpoint_curve(cfg, tiny_set["calib"], alpha=1.5)
    assert point["iteration"] == cfg.SOLVER.MAX_ITER - 1
    assert set(point) <= {"iteration", *METRICS} and "AP" in point
    assert cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
