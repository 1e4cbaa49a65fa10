"""Two processes with gloo on the CPU, through the real training loop; one process is the oracle.

All runs share one start of the processes: importing Detectron2 twice costs more than training.
"""

import datetime
import itertools
import logging
from pathlib import Path

import heads_util as util
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.engine import launch
from detectron2.utils import comm
from torch import distributed

from lvis_tde.calibration.class_means import estimate_class_means
from lvis_tde.calibration.estimate import estimate_feature_mean
from lvis_tde.engine import Trainer, lazy
from lvis_tde.modeling.swap import swap_box_predictor

WORLD = 2
CONFIGS = {
    "TDEROIHeads": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "TDECascadeROIHeads": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "TDERes5ROIHeads": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
}
# What the images of the second process lack.
CASES = ("nothing", "foreground", "proposals")
# Release 0.6 refuses to launch processes without GPUs.
LAUNCHES_ON_CPU = hasattr(comm, "create_local_process_group")


def make_cfg(heads, output_dir, *overrides):
    cfg = util.zoo_config(CONFIGS[heads])
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    cfg.MODEL.LOAD_PROPOSALS = True
    # No random choice: every proposal is used, in one process as in two.
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7  # a quarter of the work for C4
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.MAX_ITER = 2
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.merge_from_list(list(overrides))
    return cfg


def images_for(cfg, lacking, rank, world):
    """Four images, dealt out to the ranks; those of rank 1 of 2 lack something."""
    images = [util.training_image(cfg, num_objects=i + 1, seed=i) for i in range(4)]
    for image in images[1::2]:
        if lacking in ("foreground", "proposals"):
            image["instances"] = image["instances"][:0]
        if lacking == "proposals":
            image["proposals"] = image["proposals"][:0]
        if lacking == "finite pixels":
            image["image"] = image["image"] * float("nan")
    return images[rank::world]


class ListTrainer(Trainer):
    """The package's trainer on given images instead of a dataset."""

    images = None

    @classmethod
    def build_model(cls, cfg):
        return util.build(cfg)

    @classmethod
    def build_train_loader(cls, cfg):
        return itertools.repeat(cls.images)


def train(cfg, lacking="nothing", rank=0, world=1, mean=0.0):
    """Trains by the config; returns the running means and the parameters."""
    ListTrainer.images = images_for(cfg, lacking, rank, world)
    trainer = ListTrainer(cfg)
    for predictor in util.predictors(trainer.model):
        predictor.feature_mean.mean.fill_(mean)
    try:
        trainer.train()
    except FloatingPointError:
        assert lacking == "finite pixels"
    return results_of(trainer.model)


def results_of(model):
    state = {k.replace("module.", "", 1): v for k, v in model.state_dict().items()}
    return {"means": [p.feature_mean.mean for p in util.predictors(model)], "state": state}


def train_lazy(heads, folder, rank):
    """Two steps of a LazyConfig; the images differ between the ranks."""
    cfg = util.lazy_config(heads)
    images = [util.lazy_image(seed=2 * rank), util.lazy_image(seed=2 * rank + 1)]
    cfg.dataloader.train = L(itertools.repeat)(object=images)
    cfg.train.update(device="cpu", max_iter=2, output_dir=f"{folder}/out")
    del cfg.dataloader["evaluator"]
    cfg.optimizer.lr = 0.001
    return results_of(lazy.train(cfg))


def swap_before_wrapping(rank):
    """A softmax model, swapped with other weights on every rank, then wrapped and trained."""
    cfg = util.zoo_config(CONFIGS["TDEROIHeads"])
    model = swap_box_predictor(util.build(cfg, seed=rank))
    model = torch.nn.parallel.DistributedDataParallel(model)
    for seed in range(2):
        util.step(cfg, model, [util.training_image(cfg, seed=10 * rank + seed)])
    return results_of(model)


def estimate(cfg, rank=0, world=1):
    """The mean of a frozen model from two batches; each rank has every other image."""
    images, half = images_for(cfg, "nothing", rank, world), 2 // world
    model = util.build(cfg)
    batches = [images[:half], images[half:]]
    found = vars(estimate_feature_mean(model, batches, class_means=True))
    stages = [predictor.statistics for predictor in util.predictors(model)]
    moments = [torch.stack([one.logit_mean, one.logit_std]) for one in stages]
    classes = [torch.cat([one.class_means, one.center[None]]) for one in stages]  # copies
    similarity = [one.similarity.clone() for one in stages]
    # Nothing is known of the images, so it waits for classes, and every process as long.
    missing = estimate_class_means(model, [*batches, *batches], num_batches=1)
    assert len(missing) == len(stages) and all(one.similarity > 0 for one in stages)
    return {**found, "moments": moments, "classes": classes, "similarity": similarity}


SIGMOIDS = ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "MODEL.TDE.NORM", "none")
# Losses that go by what was seen so far.
COUNTING = {
    "seesaw": ("MODEL.TDE.LOSS", "seesaw"),
    "eqlv2": (*SIGMOIDS, "MODEL.TDE.LOSS", "eqlv2"),
}


def work(folder):
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rank, folder = comm.get_rank(), Path(folder)
    results = {"world": comm.get_world_size(), "swapped": swap_before_wrapping(rank)}
    for heads in CONFIGS:
        for lacking in CASES:
            cfg = make_cfg(heads, folder / "out", "SOLVER.BASE_LR", 0.0)
            results[heads, lacking] = train(cfg, lacking, rank, WORLD)
        results[heads, "yacs"] = train(make_cfg(heads, folder / "out"), "nothing", rank, WORLD)
        results[heads, "lazy"] = train_lazy(heads, folder, rank)
        results[heads, "estimate"] = estimate(make_cfg(heads, folder / "out"), rank, WORLD)
        cfg = make_cfg(heads, folder / "out", *SIGMOIDS)
        results[heads, "sigmoids"] = train(cfg, "nothing", rank, WORLD)
        results[heads, "sigmoids", "estimate"] = estimate(cfg, rank, WORLD)
    for loss, options in COUNTING.items():
        cfg = make_cfg("TDEROIHeads", folder / "out", "SOLVER.BASE_LR", 0.0, *options)
        results[loss] = train(cfg, "nothing", rank, WORLD)
    # Last: the run stops with an error on rank 0 alone, where Detectron2 looks at the losses.
    cfg = make_cfg("TDEROIHeads", folder / "out", "SOLVER.MAX_ITER", 1)
    results["not finite"] = train(cfg, "finite pixels", rank, WORLD, mean=3.0)
    torch.save(results, folder / f"{rank}.pth")


def work_without_launcher(rank, folder):
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=120),
    )
    work(folder)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The results of both ranks."""
    folder = str(tmp_path_factory.mktemp("processes"))
    if LAUNCHES_ON_CPU and not torch.cuda.is_available():
        launch(
            work, WORLD, dist_url="auto", args=(folder,), timeout=datetime.timedelta(seconds=120)
        )
    else:
        torch.multiprocessing.start_processes(
            work_without_launcher, args=(folder,), nprocs=WORLD, start_method="forkserver"
        )
    results = [torch.load(f"{folder}/{rank}.pth") for rank in range(WORLD)]
    assert [r["world"] for r in results] == [WORLD, WORLD]
    return results


@pytest.mark.parametrize("lacking", CASES)
@pytest.mark.parametrize("heads", CONFIGS)
def test_the_mean_is_that_of_one_process_with_the_whole_batch(heads, lacking, both, tmp_path):
    first, second = (results[heads, lacking]["means"] for results in both)
    # A learning rate of zero: two processes average their losses otherwise than one.
    expected = train(make_cfg(heads, tmp_path, "SOLVER.BASE_LR", 0.0), lacking)["means"]
    assert len(first) == len(expected) == (3 if heads == "TDECascadeROIHeads" else 1)
    for a, b, mean in zip(first, second, expected):
        assert torch.equal(a, b) and mean.norm() > 0
        torch.testing.assert_close(a, mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", COUNTING)
def test_a_loss_has_seen_what_one_process_with_the_whole_batch_has(loss, both, tmp_path):
    cfg = make_cfg("TDEROIHeads", tmp_path, "SOLVER.BASE_LR", 0.0, *COUNTING[loss])
    (expected,) = seen(train(cfg))
    (first,), (second,) = (seen(results[loss]) for results in both)
    assert torch.equal(first, second) and expected.any()
    torch.testing.assert_close(first, expected)


def seen(results):
    return [value for name, value in results["state"].items() if ".box_loss." in name]


@pytest.mark.parametrize("options", [(), SIGMOIDS], ids=["softmax", "sigmoids"])
@pytest.mark.parametrize("heads", CONFIGS)
def test_the_estimate_is_that_of_one_process_with_all_images(heads, options, both, tmp_path):
    key = (heads, "sigmoids", "estimate") if options else (heads, "estimate")
    first, second = (results[key] for results in both)
    expected = estimate(make_cfg(heads, tmp_path, *options))
    assert first["num_foreground"] == second["num_foreground"] == expected["num_foreground"]
    assert first["angle"] == second["angle"] == pytest.approx(expected["angle"], abs=1e-3)
    for a, b, mean in zip(first["means"], second["means"], expected["means"]):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, mean)
    for a, b, moments in zip(first["moments"], second["moments"], expected["moments"]):
        assert torch.equal(a, b) and a[1].all()
        torch.testing.assert_close(a, moments)
    for a, b, means in zip(first["classes"], second["classes"], expected["classes"]):
        assert torch.equal(a, b) and a[-1].any()
        torch.testing.assert_close(a, means, rtol=1e-3, atol=1e-3)  # of few regions each
    for a, b, usual in zip(first["similarity"], second["similarity"], expected["similarity"]):
        assert torch.equal(a, b) and 0 < a < 1
        torch.testing.assert_close(a, usual, rtol=0, atol=5e-3)


@pytest.mark.parametrize("system", ["yacs", "lazy", "sigmoids"])
@pytest.mark.parametrize("heads", CONFIGS)
def test_training_keeps_the_ranks_equal_bit_for_bit(heads, system, both):
    first, second = (results[heads, system]["state"] for results in both)
    means = [value for name, value in first.items() if name.endswith("feature_mean.mean")]
    assert means and all(mean.any() for mean in means)
    for name, value in first.items():
        if "running_" in name or "num_batches" in name:
            continue  # batch norm is the ranks' own
        assert value.isfinite().all() and torch.equal(value, second[name]), name


def test_features_that_are_not_finite_on_one_rank_leave_every_mean_alone(both):
    for results in both:
        (mean,) = results["not finite"]["means"]
        assert torch.equal(mean, torch.full_like(mean, 3.0))


def test_a_swapped_model_trains_in_step_once_it_is_wrapped(both):
    first, second = (results["swapped"] for results in both)
    assert first["means"][0].norm() > 0 and torch.equal(first["means"][0], second["means"][0])
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
