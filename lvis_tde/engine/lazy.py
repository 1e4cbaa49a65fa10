"""Training and evaluation behind ``tools/lazyconfig_train_net.py``: LazyConfig instead of yacs."""

import logging

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import nn

from .checks import check_dataset, check_weights

__all__ = ["build_model", "evaluate", "setup", "train"]

logger = logging.getLogger(__name__)


def setup(args) -> DictConfig:
    """Loads the config of the command line ``args`` and sets up logging, folders and seeds.

    Raises:
        FileNotFoundError: if a dataset or the initial checkpoint is not there.
        ValueError: if a dataset has another number of classes than the model.
    """
    setup_logger(name="lvis_tde", distributed_rank=comm.get_rank())
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    if cfg.train.device.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: running on the CPU (train.device=cpu).")
        cfg.train.device = "cpu"
    for split in ("test",) if args.eval_only else ("train", "test"):
        names = cfg.dataloader[split].dataset.names
        for name in [names] if isinstance(names, str) else names:
            check_dataset(name, cfg.model.roi_heads.num_classes, "model.roi_heads.num_classes")
    check_weights(cfg.train.init_checkpoint, "train.init_checkpoint")
    default_setup(cfg, args)
    return cfg


def build_model(cfg: DictConfig) -> nn.Module:
    """The model on its device, wrapped for several processes where there are any."""
    model = instantiate(cfg.model).to(cfg.train.device)
    # Detectron2 would name a GPU for every process, which a model on the CPU refuses.
    device_ids = None if cfg.train.device == "cpu" else [comm.get_local_rank()]
    return create_ddp_model(model, device_ids=device_ids, **cfg.train.ddp)


def evaluate(cfg: DictConfig, model: nn.Module):
    """The metrics of ``cfg.dataloader.evaluator``, or None where the config has no evaluator."""
    if "evaluator" not in cfg.dataloader:
        return None
    evaluator = instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def train(cfg: DictConfig, *, resume: bool = False) -> nn.Module:
    """Trains ``cfg.model``; the nodes are those of Detectron2's ``common/train.py``.

    Args:
        cfg: with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``.
        resume: continue from the last checkpoint of ``train.output_dir``, if there is one.

    Returns:
        nn.Module: the trained model.
    """
    model = build_model(cfg)
    logger.info("Model:\n%s", model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    main = comm.is_main_process()
    writers = default_writers(cfg.train.output_dir, cfg.train.max_iter) if main else []
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)),
            hooks.PeriodicWriter(writers, period=cfg.train.log_period) if main else None,
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    resumed = resume and checkpointer.has_checkpoint()
    # The checkpoint holds the iteration that was finished last.
    trainer.train(trainer.iter + 1 if resumed else 0, cfg.train.max_iter)
    return model
