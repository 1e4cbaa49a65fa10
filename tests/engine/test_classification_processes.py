"""Two processes with gloo on the CPU train and evaluate a classifier; one process is the oracle."""

import datetime
import logging
import os
from pathlib import Path

import classification_util as util
import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import distributed

from lvis_tde.calibration.estimate import estimate_feature_mean
from lvis_tde.calibration.image_sweep import sweep_images
from lvis_tde.engine import Trainer

WORLD = 2
TEST = f"{util.STEM}_test"


def evaluate(folder):
    """A fixed model: its metrics for two alphas, and the mean and statistics estimated anew."""
    recipe, model = util.recipe("tde", folder), util.model_with_mean()
    found = sweep_images(
        model, recipe.test_loader(TEST), [0.0, 3.0], lambda: recipe.evaluator(TEST, save=False)
    )
    estimate = estimate_feature_mean(model, recipe.train_loader(), max_batches=4, tolerance=0)
    statistics = model.predictor.statistics
    moments = torch.stack([statistics.logit_mean, statistics.logit_std])
    return {"found": found, "mean": estimate.means[0], "moments": moments}


def train(folder):
    recipe = util.recipe("tde", folder, "TEST.EVAL_PERIOD", 3, "SOLVER.EPOCHS.TOTAL", 1)
    seed_all_rng(comm.get_rank())
    trainer = Trainer(recipe.cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    state = trainer.model.state_dict()
    return {name.removeprefix("module."): value for name, value in state.items()}


def second_stage(folder, weights):
    recipe = util.recipe("crt", folder, "MODEL.WEIGHTS", weights, "SOLVER.BASE_LR", 1e-9)
    seed_all_rng(comm.get_rank())
    trainer = Trainer(recipe.cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return next(iter(trainer.model.modules())).state_dict()


def work(rank, folder):
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    os.environ["DETECTRON2_DATASETS"] = f"{folder}/datasets"
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=120),
    )
    Path(folder, "out").mkdir(exist_ok=True)
    results = {"evaluated": evaluate(f"{folder}/out"), "state": train(f"{folder}/out")}
    comm.synchronize()
    results["stage"] = second_stage(f"{folder}/stage", f"{folder}/out/model_best.pth")
    torch.save(results, f"{folder}/{rank}.pth")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    util.write_sets(folder / "datasets")
    torch.multiprocessing.start_processes(
        work, args=(str(folder),), nprocs=WORLD, start_method="forkserver"
    )
    results = [torch.load(folder / f"{rank}.pth", weights_only=False) for rank in range(WORLD)]
    return folder, results


def test_the_metrics_and_the_estimate_are_those_of_one_process(both, monkeypatch):
    folder, (first, second) = both
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
    expected = evaluate(folder / "one")
    metrics = {a: one["classification"]["top1"] for a, one in expected["found"].items()}
    found = {a: one["classification"]["top1"] for a, one in first["evaluated"]["found"].items()}
    assert found == pytest.approx(metrics)
    for name in ("mean", "moments"):
        ours, theirs = first["evaluated"][name], second["evaluated"][name]
        assert torch.equal(ours, theirs) and ours.any()
        torch.testing.assert_close(ours, expected[name], rtol=1e-4, atol=1e-5)


def test_training_keeps_the_processes_equal(both):
    folder, results = both
    for key in ("state", "stage"):
        first, second = (one[key] for one in results)
        for name, value in first.items():
            if "running_" in name or "num_batches" in name:
                continue  # batch norm is each process's own
            assert value.isfinite().all() and torch.equal(value, second[name]), name
    assert results[0]["state"]["predictor.feature_mean.mean"].any()
    assert (folder / "out" / "model_best.pth").is_file()
