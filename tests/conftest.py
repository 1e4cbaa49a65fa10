"""One tiny model and one tiny generated set, shared by all tests."""

import dataclasses
import logging
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.env import seed_all_rng
from glyph_font_util import write_color_font

from lvis_tde.data.synthetic import make_synthetic_lvis, register_synthetic_lvis
from lvis_tde.engine import load_config
from lvis_tde.evaluation import lvis_evaluator
from lvis_tde.experiments.study import workers

ROOT = Path(__file__).parent.parent
# What tests start with "forkserver" is a fork of one process that has imported these: to import
# them anew takes seconds.
multiprocessing.set_forkserver_preload(
    ["lvis_tde.engine", "lvis_tde.export", "lvis_tde.experiments.study.run"]
)
# The demo's model, narrower: what a test is about does not depend on the width.
TINY = [
    "MODEL.FPN.OUT_CHANNELS", 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
    "MODEL.ROI_MASK_HEAD.NUM_CONV", 1,
    "MODEL.ROI_HEADS.NUM_CLASSES", 7,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "SOLVER.IMS_PER_BATCH", 2,
    "SOLVER.WARMUP_ITERS", 2,
    "TEST.DETECTIONS_PER_IMAGE", 10,
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk():
    # Only a power cut would tell.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _libraries_lose_no_time():
    # What costs seconds and no test is about: YAML in Python, half of the reading of a config, and
    # the stack of every seeding, kept for a GPU that may yet come.
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("SafeLoader", "UnsafeLoader", "SafeDumper"):
            patch.setattr(yaml, kind, getattr(yaml, f"C{kind}", getattr(yaml, kind)))
        if not torch.cuda.is_available():
            for device in (torch.cuda, torch.mtia, torch.xpu):
                patch.setattr(device, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(autouse=True)
def _same_random_numbers():
    # Whatever ran before: what a training of a few steps gives is no matter of the tests' order.
    seed_all_rng(0)


@pytest.fixture(autouse=True)
def _logs_reach_caplog(monkeypatch):
    # Detectron2's setup_logger, once called in a test, would hide messages from all later ones.
    for name in ("lvis_tde", "detectron2", "fvcore"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    yield
    # A tool's console would write into what later tests capture.
    for name in ("lvis_tde", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            if type(handler).__name__ == "_Console":
                logger.removeHandler(handler)


@pytest.fixture
def tiny_cfg(tmp_path):
    """``tiny_cfg("softmax" or "deconfound", *overrides)`` returns a config."""

    def make(name="deconfound", *overrides):
        options = [*TINY, "OUTPUT_DIR", str(tmp_path / "output"), *overrides]
        return load_config(str(ROOT / "configs" / f"demo_{name}.yaml"), options)

    return make


@pytest.fixture
def tiny_model(tiny_cfg):
    """``tiny_model(name, *overrides)`` returns a model with fixed random weights."""

    def make(name="deconfound", *overrides):
        torch.manual_seed(0)
        return build_model(tiny_cfg(name, *overrides))

    return make


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """Dataset names of a generated set with 7 classes: ``{"train", "calib", "val"}``."""
    root = tmp_path_factory.mktemp("datasets")
    make_synthetic_lvis(
        root, seed=0, num_train=24, num_calib=4, num_val=6, num_classes=7, image_size=64
    )
    return register_synthetic_lvis(root, seed=0, prefix="tiny")


@pytest.fixture(scope="session")
def playground(tmp_path_factory, tiny_set):
    """A folder with data, configs and checkpoints, good and bad; no test writes to it."""
    from wrong_turns_util import make_playground

    root = tmp_path_factory.mktemp("playground")
    make_playground(root, tiny_set)
    return root


@pytest.fixture
def command(playground, tmp_path, capsys, monkeypatch):
    """``command("train", ...)`` in the playground: (exit code, stdout, stderr); {out} is free."""
    from wrong_turns_util import run

    monkeypatch.chdir(playground)
    monkeypatch.setenv("HOME", str(tmp_path))  # completed copies of annotations go there
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))  # and subsets here
    stems = [file.stem for file in playground.glob("*.json")]
    names = {f"{stem}_{kind}" for stem in stems for kind in ("train", "test")}

    def forget():
        for name in names.intersection(DatasetCatalog.list()):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    def call(*arguments):
        forget()  # each command is a process of its own
        words = [str(one).replace("{out}", str(tmp_path / "out")) for one in arguments]
        return run(words, capsys, monkeypatch)

    yield call
    forget()


@pytest.fixture(scope="session")
def color_font(tmp_path_factory):
    """A font file with a small color bitmap for every glyph of the glyph sets."""
    return write_color_font(tmp_path_factory.mktemp("fonts") / "color.ttf")


@pytest.fixture
def make_batch():
    """``make_batch(n, objects=2)`` returns n images of 64 x 64 with ``objects`` boxes each."""

    def make(n=2, objects=2, num_classes=7):
        generator = torch.Generator().manual_seed(n * 100 + objects)
        batch = []
        for _ in range(n):
            corner = torch.rand(objects, 2, generator=generator) * 30
            size = torch.rand(objects, 2, generator=generator) * 20 + 12
            boxes = torch.cat([corner, corner + size], dim=1)
            masks = torch.zeros(objects, 64, 64, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
                mask[y0:y1, x0:x1] = True
            instances = Instances((64, 64))
            instances.gt_boxes = Boxes(boxes)
            instances.gt_classes = torch.randint(num_classes, (objects,), generator=generator)
            instances.gt_masks = BitMasks(masks)
            image = torch.randint(256, (3, 64, 64), generator=generator).float()
            batch.append({"image": image, "instances": instances, "height": 64, "width": 64})
        return batch

    return make


def tell_boxes(patch):
    """Box figures that any change of a detection changes: two steps of training have an AP of 0."""
    evaluate = lvis_evaluator.evaluate_lvis

    def figures(truth, detections, task, **options):
        result = evaluate(truth, detections, task, **options)
        if task != "bbox":
            return result
        value = detections.scores * (1 + detections.boxes.sum(axis=1) / 1000)
        told = {
            name: 100 * float((value / (1 + (detections.category_ids + i) % 4)).mean())
            for i, name in enumerate(("AP", "APr", "APc", "APf"))
        }
        return dataclasses.replace(result, metrics={**result.metrics, **told})

    patch.setattr(lvis_evaluator, "evaluate_lvis", figures)


@pytest.fixture
def forked_workers(monkeypatch):
    """Workers of a study are forks of a process that has imported what they need."""
    monkeypatch.setattr(workers, "_CONTEXT", multiprocessing.get_context("forkserver"))


@pytest.fixture
def telling(monkeypatch):
    tell_boxes(monkeypatch)
