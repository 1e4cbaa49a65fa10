"""Recipes, training and evaluation of LazyConfigs."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_writers,
    hooks,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from ..calibration.statistics import prepare_statistics
from ..checkpointer import SafeCheckpointer
from ..data.files import atomic_path
from ..evaluation.build import prepare_reports
from ..layers.functional import check_alpha
from ..modeling.fast_rcnn import TDEFastRCNNOutputLayers
from ..modeling.roi_align import pool_faster
from ..modeling.sigmoid import FixedWeights, SigmoidFastRCNNOutputLayers
from ..modeling.strengths import posthoc_options
from .hooks import LastCheckpoint, PreciseMean, TrainingProgress, WeightNorms
from .lock import locked
from .recipes import Recipe
from .results import log_results
from .trainer import predicting_for, write_reports

__all__ = ["LazyRecipe", "build_model", "evaluate", "train"]

logger = logging.getLogger(__name__)


def _nodes(node) -> Iterator[DictConfig]:
    """All dictionaries of a config, each where it is written down."""
    if isinstance(node, DictConfig):
        yield node
    if isinstance(node, (DictConfig, ListConfig)):
        keys: Iterable[Any] = node if isinstance(node, DictConfig) else range(len(node))
        for key in keys:
            if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
                yield from _nodes(node[key])


def _target(node: DictConfig):
    target = node.get("_target_")
    return locate(target) if isinstance(target, str) else target


class LazyRecipe(Recipe):
    """A LazyConfig with the nodes of Detectron2's own: model, dataloader, train and so on."""

    cfg: DictConfig
    keys: ClassVar[dict[str, str]] = {
        "weights": "train.init_checkpoint",
        "output_dir": "train.output_dir",
        "device": "train.device",
        "num_classes": "model.roi_heads.num_classes",
        "train_sets": "dataloader.train.dataset.names",
        "test_sets": "dataloader.test.dataset.names",
        "masks": "model.roi_heads.mask_head",
        "mask_format": "dataloader.train.mapper.instance_mask_format",
    }

    @property
    def num_classes(self) -> int:
        return self.cfg.model.roi_heads.num_classes

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        before = self.num_classes
        # Most parts refer to the one number of the ROI heads; others repeat it.
        for node in _nodes(self.cfg.model.roi_heads):
            if "num_classes" in node and not OmegaConf.is_interpolation(node, "num_classes"):
                if node.num_classes == before:
                    node.num_classes = value

    @property
    def num_checkpoints(self):
        train = self.cfg.train
        written = train.max_iter // max(1, train.checkpointer.period)
        return 1 + min(written, train.checkpointer.get("max_to_keep") or written)

    @property
    def batch_size(self):
        return self.cfg.dataloader.train.get("total_batch_size", comm.get_world_size())

    @property
    def inference_dtype(self):
        return self.cfg.train.get("inference_dtype", "")

    def build_solver(self, model):
        cfg = self.clone().cfg
        cfg.optimizer.params.model = model
        instantiate(cfg.optimizer)
        instantiate(cfg.lr_multiplier)

    def _predictors(self) -> Iterator[tuple[DictConfig, type]]:
        """The box predictors, one for every cascade stage, and their classes."""
        for node in _nodes(self.cfg.model):
            target = _target(node)
            if inspect.isclass(target) and issubclass(target, FastRCNNOutputLayers):
                yield node, target

    def _tde_predictors(self) -> list[DictConfig]:
        found = [n for n, kind in self._predictors() if issubclass(kind, TDEFastRCNNOutputLayers)]
        if not found:
            raise ValueError("The config's model has no TDE: no node of it is a TDE box predictor.")
        return found

    def set_alpha(self, alpha):
        for node in self._tde_predictors():
            node.alpha = check_alpha(alpha)

    def set_posthoc(self, settings):
        for node in self._tde_predictors():
            node.update(**posthoc_options(settings))

    def put_tde_on_softmax(self, num_heads=1):
        for node, kind in self._predictors():
            if issubclass(kind, TDEFastRCNNOutputLayers):
                continue
            if kind not in (FastRCNNOutputLayers, SigmoidFastRCNNOutputLayers):
                raise ValueError(
                    f"The box predictor is a {kind.__name__}; TDE is known to replace "
                    "FastRCNNOutputLayers. For others use lvis_tde.swap_box_predictor."
                )
            node.update(_target_=TDEFastRCNNOutputLayers, norm="none", num_heads=num_heads)
            if node.get("use_sigmoid_ce"):
                node.alpha = 0.0  # as use_tde_on_softmax
            weights = node.get("get_fed_loss_cls_weights")
            if inspect.isfunction(weights):
                # Detectron2's configs have a lambda, which no file can hold; its numbers can be.
                node.get_fed_loss_cls_weights = LazyCall(FixedWeights)(weights=weights().tolist())

    def save(self, path):
        with atomic_path(path) as partial:
            LazyConfig.save(self.cfg, str(partial))

    def build_model(self):
        model = instantiate(self.cfg.model).to(self.device)
        return pool_faster(model) if self.device == "cpu" else model

    def train_loader(self):
        return instantiate(self.cfg.dataloader.train)

    def _tested_on(self, dataset: str) -> DictConfig:
        recipe = self.clone()
        recipe.cfg.dataloader.test.dataset.names = dataset
        return recipe.cfg.dataloader

    def test_loader(self, dataset):
        return instantiate(self._tested_on(dataset).test)

    def evaluator(self, dataset, *, save=True):
        node = self._tested_on(dataset).get("evaluator")
        if node is None:
            raise ValueError("The config has no dataloader.evaluator to evaluate with.")
        parameters = inspect.signature(_target(node)).parameters
        if "dataset_name" in parameters:
            node.dataset_name = dataset
        if "output_dir" in parameters:
            node.output_dir = self.results_folder(dataset) if save else None
        return instantiate(node)

    def test_input(self):
        mapper = self.cfg.dataloader.test.mapper
        return mapper.image_format, instantiate(mapper.augmentations)

    def train(self, *, resume=False):
        return train(self.cfg, resume=resume)

    def evaluate(self, model, *, bootstrap=-1):
        return evaluate(self.cfg, model, report=True, bootstrap=bootstrap)


def build_model(cfg: DictConfig) -> nn.Module:
    """The model on its device, wrapped for several processes where there are any."""
    model = LazyRecipe(cfg).build_model()
    # Detectron2 would name a GPU for every process, which a model on the CPU refuses.
    device_ids = None if cfg.train.device == "cpu" else [comm.get_local_rank()]
    return create_ddp_model(model, device_ids=device_ids, **cfg.train.ddp)


def evaluate(cfg: DictConfig, model: nn.Module, *, report: bool = False, bootstrap: int = -1):
    """The metrics of ``cfg.dataloader.evaluator``, by test set where there are several.

    Args:
        cfg: with ``dataloader.test`` and ``dataloader.evaluator``; None comes back without them.
        model: to be evaluated.
        report: write a page and pictures, too, as :meth:`Trainer.test_and_report` does.
        bootstrap: resamples for the report's intervals, likewise.
    """
    if not {"test", "evaluator"} <= set(cfg.dataloader):
        return None
    recipe, results, evaluators = LazyRecipe(cfg), {}, {}
    for name in recipe.test_sets:
        evaluator = evaluators[name] = recipe.evaluator(name)
        if report:
            prepare_reports([evaluator], bootstrap)
        with predicting_for(model, [evaluator]):
            results[name] = inference_on_dataset(model, recipe.test_loader(name), evaluator)
        if comm.is_main_process():
            print_csv_format(results[name])
            log_results(results[name], f"{name} ")
    if report:
        write_reports(evaluators, recipe.output_dir, recipe.weights)
    return next(iter(results.values())) if len(results) == 1 else results


def train(cfg: DictConfig, *, resume: bool = False) -> nn.Module:
    """Trains ``cfg.model``; the nodes are those of Detectron2's ``common/train.py``.

    Args:
        cfg: with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``. A key
            ``train.precise_mean`` does what ``MODEL.TDE.PRECISE_MEAN`` does.
        resume: continue from the last checkpoint of ``train.output_dir``, if there is one. The
            images then begin anew; yacs configs continue with them, see :class:`Trainer`.

    Returns:
        nn.Module: the trained model.
    """
    model = build_model(cfg)
    logger.info("Model:\n%s", model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    checkpointer = SafeCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    main = comm.is_main_process()
    precise = cfg.train.get("precise_mean", 0)
    writers = default_writers(cfg.train.output_dir, cfg.train.max_iter) if main else []
    # A loader of one's own may have no registered sets.
    names = OmegaConf.select(cfg, LazyRecipe.keys["train_sets"]) or ()
    sets = [names] if isinstance(names, str) else list(names)
    norms = WeightNorms(model, next(iter(sets), ""), cfg.train.log_period)
    trainer.register_hooks(
        [
            LastCheckpoint(checkpointer),
            hooks.IterationTimer(),
            TrainingProgress() if main else None,
            norms if main else None,
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            PreciseMean(model, LazyRecipe(cfg).train_loader, precise) if precise else None,
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)),
            hooks.PeriodicWriter(writers, period=cfg.train.log_period) if main else None,
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    resumed = resume and checkpointer.has_checkpoint()
    early = 0 < cfg.train.eval_period < cfg.train.max_iter
    prepare_statistics(model, sets, measured=precise > 0 and not early, resumed=resumed)
    # The checkpoint holds the iteration that was finished last.
    with locked(cfg.train.output_dir) if main else contextlib.nullcontext():
        trainer.train(trainer.iter + 1 if resumed else 0, cfg.train.max_iter)
    return model
