"""Training and evaluation of yacs configs: Detectron2's trainer, plus what TDE needs."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, defaults
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from ..calibration.statistics import prepare_statistics
from ..checkpointer import SafeCheckpointer
from ..data.classification.loader import build_test_loader as build_image_test_loader
from ..data.classification.loader import build_train_loader as build_image_train_loader
from ..data.classification.names import register_by_name
from ..data.resume import ResumableSampler, is_wide, training_sampler
from ..data.shared import brief, load_once
from ..evaluation import ClassificationEvaluator, LVISEvaluator
from ..evaluation.build import build_evaluator, prepare_reports
from ..modeling.check_heads import check_heads
from ..modeling.mask_postprocess import masks_as_rle
from ..modeling.roi_align import pool_faster
from .classification import best_by, calibrated_on, is_classification, new_classifier, resolved
from .hooks import (
    KeepBest,
    LastCheckpoint,
    PreciseMean,
    SeedEveryIteration,
    TrainingProgress,
    WeightNorms,
)
from .lock import locked
from .optimizer import build_optimizer
from .results import log_results

__all__ = ["Trainer", "model_name", "predicting_for", "write_reports"]

logger = logging.getLogger(__name__)


def predicting_for(model: nn.Module, evaluators: Iterable[DatasetEvaluator]):
    """A context in which a model predicts no masks of image size if the evaluators need none."""
    compact = all(isinstance(evaluator, LVISEvaluator) for evaluator in evaluators)
    return masks_as_rle(model) if compact else contextlib.nullcontext()


def write_reports(evaluators: Mapping[str, DatasetEvaluator], folder: str, weights: str) -> None:
    """Writes a page and pictures for every LVIS or classification set, and says where.

    Args:
        evaluators: by name of the dataset, after ``evaluate``.
        folder: of the run; its ``report`` gets a folder for every dataset.
        weights: of the model, for the titles.
    """
    for name, evaluator in evaluators.items():
        ours = isinstance(evaluator, (LVISEvaluator, ClassificationEvaluator))
        if comm.is_main_process() and ours:
            place = os.path.join(folder, "report", name)
            for page in evaluator.write_report(place, model_name(weights, folder)):
                logger.info("Report: %s", page)


def model_name(weights: str, folder: str) -> str:
    """What a model is called in a report: its checkpoint and the folder of that, or of the run."""
    return "/".join(Path(weights or os.path.join(folder, "model")).parts[-2:])


@contextlib.contextmanager
def _ddp_on(device: str):
    """Lets ``DefaultTrainer`` train on several CPU processes.

    It gives every process the GPU of its rank, which DistributedDataParallel refuses for a model
    on the CPU, and offers no argument or method to say otherwise.
    """
    create = defaults.create_ddp_model
    if device == "cpu":
        defaults.create_ddp_model = functools.partial(create, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = create


class Trainer(DefaultTrainer):
    """:class:`DefaultTrainer` with LVIS evaluation, test-time augmentation and resumption.

    With ``SEED`` >= 0 a resumed run sees the images that the uninterrupted one would have seen, in
    the same batches, whatever ``DATALOADER.NUM_WORKERS`` of either; it must have as many processes.
    With ``DATALOADER.NUM_WORKERS`` 0 and images of one orientation it also repeats its losses;
    otherwise some images are augmented otherwise.

    ``TEST.AUG`` and ``TEST.EXPECTED_RESULTS`` are honored as by Detectron2's ``train_net.py``.
    """

    def __init__(self, cfg):
        with _ddp_on(cfg.MODEL.DEVICE):
            super().__init__(resolved(cfg))

    def train(self):
        """
        Raises:
            ValueError: if another process trains into the output folder.
        """
        holds = comm.is_main_process() and self.cfg.OUTPUT_DIR
        with locked(self.cfg.OUTPUT_DIR) if holds else contextlib.nullcontext():
            return super().train()

    def resume_or_load(self, resume=True):
        resumed = resume and self.checkpointer.has_checkpoint()
        with new_classifier(self.model, unless=resumed):
            super().resume_or_load(resume)
        early = 0 < self.cfg.TEST.EVAL_PERIOD < self.cfg.SOLVER.MAX_ITER
        measured = self.cfg.MODEL.get("TDE", {}).get("PRECISE_MEAN", 0) > 0 and not early
        sets = self.cfg.DATASETS.TRAIN
        prepare_statistics(self.model, sets, measured=measured, resumed=resumed)
        sampler = getattr(self.data_loader, "resumable_sampler", None)
        if sampler is not None:
            sampler.resume(self.start_iter)
            if "_data_loader_iter" in vars(self._trainer):
                # Release 0.6 starts the workers, and with them the sampler, on construction.
                self._trainer._data_loader_iter = iter(self.data_loader)

    def state_dict(self):
        state = super().state_dict()
        # Release 0.6 leaves out the optimizer and its momentum; main saves them under this key.
        state.setdefault("_trainer", self._trainer.state_dict())
        return state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if "_trainer" not in state_dict:
            logger.warning("The checkpoint has no optimizer state: resuming with zero momentum.")
        elif "_trainer" not in super().state_dict():
            self._trainer.load_state_dict(state_dict["_trainer"])

    def build_hooks(self):
        # Before the hook that saves is made with it.
        self.checkpointer = SafeCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        hooks = super().build_hooks()
        hooks.insert(0, LastCheckpoint(self.checkpointer))
        if comm.is_main_process():
            hooks.insert(0, TrainingProgress())
            hooks.insert(0, WeightNorms(self.model, next(iter(self.cfg.DATASETS.TRAIN), "")))
        num_batches = self.cfg.MODEL.get("TDE", {}).get("PRECISE_MEAN", 0)
        if num_batches:
            # After the statistics of batch norm, before the last checkpoint and the evaluation.
            saves = (PeriodicCheckpointer, EvalHook)
            place = next(i for i, hook in enumerate(hooks) if isinstance(hook, saves))
            loader = functools.partial(self.build_train_loader, self.cfg)
            hooks.insert(place, PreciseMean(self.model, loader, num_batches))
        if self.cfg.DATASETS.get("CALIB") and self.cfg.TEST.EVAL_PERIOD > 0:
            self._keep_best(hooks)
        if self.cfg.TEST.AUG.ENABLED:
            # Behind the test, which may load the best weights, and before the writer's end.
            (place,) = (i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
            hooks.insert(place + 1, EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model)))
        if self.cfg.SEED >= 0:
            hooks.insert(0, SeedEveryIteration(self.cfg.SEED))
        return hooks

    def _keep_best(self, hooks: list) -> None:
        """Lets DATASETS.CALIB choose the checkpoint that is tested, once, at the end."""
        calib = calibrated_on(self.cfg)

        def evaluate():
            results = self.test(calib, self.model)
            return next(iter(results.values()), {})

        def test_best():
            best.load()
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        period, metric = self.cfg.TEST.EVAL_PERIOD, best_by(self.cfg)
        best = KeepBest(period, evaluate, metric, self.checkpointer)
        (place,) = (i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        hooks[place] = EvalHook(0, test_best)
        saves = [i for i, hook in enumerate(hooks) if isinstance(hook, PeriodicCheckpointer)]
        hooks.insert(saves[0] if saves else place, best)

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        check_heads(model, cfg)
        if cfg.MODEL.DEVICE == "cpu":
            # Faster, with other roundings: a tenth of convolutions, nearly all of pooling regions.
            model.to(memory_format=torch.channels_last)
            pool_faster(model)
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg):
        if is_classification(cfg):
            return build_image_train_loader(cfg)
        samplers = ("TrainingSampler", "RepeatFactorTrainingSampler")
        if cfg.DATALOADER.SAMPLER_TRAIN not in samplers:
            return super().build_train_loader(cfg)
        keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        load = functools.partial(
            get_detection_dataset_dicts,
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        dataset = load_once(load, cfg.DATASETS.TRAIN)
        seen = dataset if isinstance(dataset, list) else brief(dataset)
        grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        sampler = ResumableSampler(
            training_sampler(cfg, seen),
            wide=[is_wide(record) for record in seen] if grouped else (),
            grouped=grouped,
            batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        loader = build_detection_train_loader(cfg, dataset=dataset, sampler=sampler)
        loader.resumable_sampler = sampler
        return loader

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        if is_classification(cfg):
            return build_image_test_loader(cfg, dataset_name)
        return super().build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, *, save=True):
        register_by_name(dataset_name)
        return build_evaluator(cfg, dataset_name, save=save)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        with predicting_for(model, evaluators):
            results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            log_results(results)
        return results

    @classmethod
    def test_with_TTA(cls, cfg, model) -> dict:
        """:meth:`test` with the test-time augmentation of ``TEST.AUG``.

        Args:
            cfg: detections go to ``OUTPUT_DIR/TTA``.
            model: a :class:`GeneralizedRCNN`.

        Returns:
            dict: as :meth:`test`, its keys with ``_TTA`` at the end.
        """
        logger.info("Testing with the augmentation of TEST.AUG.")
        augmented = cfg.clone()
        augmented.defrost()
        augmented.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "TTA")
        results = cls.test(augmented, GeneralizedRCNNWithTTA(cfg, model))
        return {f"{key}_TTA": value for key, value in results.items()}

    @classmethod
    def test_and_report(cls, cfg, model, *, bootstrap: int = -1) -> dict:
        """All that a run of evaluation gives.

        Args:
            cfg: reports go to ``OUTPUT_DIR/report``.
            model: with its weights.
            bootstrap: resamples for the reports' intervals, see :func:`prepare_reports`.

        Returns:
            dict: the results of :meth:`test`, and where ``TEST.AUG`` is enabled those of
            :meth:`test_with_TTA`. The process ends if they are not ``TEST.EXPECTED_RESULTS``.
        """
        evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        prepare_reports(evaluators, bootstrap)
        results = cls.test(cfg, model, evaluators)
        named = dict(zip(cfg.DATASETS.TEST, evaluators))
        write_reports(named, cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS)
        if cfg.TEST.AUG.ENABLED:
            results.update(cls.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
