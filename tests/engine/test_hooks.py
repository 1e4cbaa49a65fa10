"""The mean that is measured once more when training ends."""

import pytest
import torch
from detectron2.modeling import build_model

from lvis_tde.engine import Trainer
from lvis_tde.engine.hooks import PreciseMean


@pytest.fixture
def train(tiny_cfg, tiny_model, make_batch, monkeypatch):
    """Trains on given batches; returns the running mean, and the checkpoint's."""
    batches = [make_batch(n) for n in (1, 2, 3, 4)]
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: batches))

    def run(num_batches, *options):
        cfg = tiny_cfg(
            "deconfound", "DATASETS.TEST", (), "SOLVER.MAX_ITER", 2, "MODEL.TDE.PRECISE_MEAN",
            num_batches, "SEED", 1, "SOLVER.BASE_LR", 0.0, *options,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        saved = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth")["model"]
        name = "roi_heads.box_predictor.feature_mean.mean"
        return trainer.model, saved[name]

    return run


def test_the_last_checkpoint_has_the_precise_mean(train):
    model, saved = train(4)
    mean = model.roi_heads.box_predictor.feature_mean.mean
    assert torch.equal(mean, saved) and model.training
    _, running = train(0)
    # The running mean started from zero; that of all four batches has the length of a feature.
    assert 0 < running.norm() < 0.1 * saved.norm()


def test_logn_is_not_evaluated_before_it_is_known(train):
    options = ("MODEL.POSTHOC.LOGN", 1.0, "TEST.EVAL_PERIOD")
    with pytest.raises(ValueError, match="LOGN.*TEST.EVAL_PERIOD to 0"):
        train(4, *options, 1)
    model, _ = train(4, *options, 2)  # that of the end
    assert model.roi_heads.box_predictor.statistics.known().std is not None


def test_too_few_batches(train):
    with pytest.raises(ValueError, match="num_batches=1"):
        train(1)


def test_a_model_without_tde_is_refused_before_its_training(tiny_cfg):
    cfg = tiny_cfg("softmax", "MODEL.TDE.PRECISE_MEAN", 4, "DATASETS.TEST", ())
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(ValueError, match="no TDE predictor"):
        PreciseMean(build_model(cfg), lambda: [], 4)


def test_batches_without_foreground_keep_the_running_mean(train, make_batch, monkeypatch, caplog):
    loaders = iter([[make_batch(n) for n in (1, 2)], [make_batch(n, 0) for n in (1, 2)]])
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda *_: next(loaders)))
    model, saved = train(2)
    mean = model.roi_heads.box_predictor.feature_mean.mean
    assert mean.any() and torch.equal(mean, saved) and "The running mean is kept" in caplog.text
