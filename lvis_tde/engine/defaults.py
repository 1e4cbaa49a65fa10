"""The way from a command line to a config, and to processes that run it."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2 import engine
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import add_tde_config
from ..data.long_tailed import register_long_tailed
from .checks import check_inputs

__all__ = ["argument_parser", "launch", "load_config", "setup", "use_cpu_without_gpu", "use_data"]

logger = logging.getLogger(__name__)


def use_data(cfg: CfgNode, train=None, test=None, bounds=None) -> None:
    """Registers a user's files and points ``cfg`` at them: ``DATASETS`` and ``NUM_CLASSES``.

    Args:
        cfg: changed in place.
        train, test: (annotation file, image folder) in LVIS or COCO format, or None to leave the
            config's own. The groups of ``test`` are those of ``train`` where both are given.
        bounds: most images of a rare and of a common class; None for LVIS's 10 and 100.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if a file is not consistent, see :func:`register_long_tailed`.
    """
    for path in (*(train or ()), *(test or ())):
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} does not exist (see datasets/README.md).")
    for key, data, train_json in (("TRAIN", train, None), ("TEST", test, train and train[0])):
        if data is None:
            continue
        name = f"{Path(data[0]).stem}_{key.lower()}"
        register_long_tailed(name, *data, train_json=train_json, bounds=bounds)
        cfg.DATASETS[key] = (name,)
        if key == "TEST" and train is None:
            logger.warning(
                "No --train-data: the groups rare, common and frequent are those that %s itself "
                "gives or counts, not those of the training set.",
                data[0],
            )
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(MetadataCatalog.get(name).thing_classes)


def use_cpu_without_gpu(cfg: CfgNode) -> None:
    """Turns ``MODEL.DEVICE`` to "cpu" where no GPU can be used, and says so."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU found: running on the CPU (MODEL.DEVICE cpu).")
        cfg.MODEL.DEVICE = "cpu"


def load_config(config_file: str = "", opts=()) -> CfgNode:
    """Detectron2's defaults, ``MODEL.TDE``, the file and the "KEY VALUE" overrides, in this order.

    Raises:
        FileNotFoundError: if the file does not exist.
    """
    cfg = get_cfg()
    add_tde_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"--config-file {config_file} does not exist.")
        cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    return cfg


def argument_parser(**options) -> argparse.ArgumentParser:
    """Detectron2's command line, and that of :func:`use_data`; :func:`setup` takes its result."""
    parser = default_argument_parser(**options)
    group = parser.add_argument_group("your own data, in LVIS or COCO format")
    pair = dict(nargs=2, metavar=("JSON", "IMAGES"))
    group.add_argument("--train-data", help="annotation file and image folder", **pair)
    group.add_argument(
        "--test-data",
        help="annotation file and image folder; give --train-data too, whose counts of images "
        "make the groups of AP_r, AP_c and AP_f",
        **pair,
    )
    group.add_argument(
        "--bounds",
        type=int,
        nargs=2,
        metavar=("RARE", "COMMON"),
        help="most training images of a rare and of a common class (LVIS: 10 100)",
    )
    return parser


def launch(main: Callable, args: argparse.Namespace):
    """Detectron2's launcher: runs ``main(args)`` in ``args.num_gpus`` processes on every machine.

    Release 0.6 starts several processes on GPUs only; without any it runs one, and says so.
    """
    num_gpus, num_machines = args.num_gpus, args.num_machines
    on_cpu = hasattr(comm, "create_local_process_group")  # the launcher of main
    if num_gpus * num_machines > 1 and not on_cpu and not torch.cuda.is_available():
        logger.warning("No GPU found, and this Detectron2 starts one process on CPUs: running 1.")
        num_gpus = num_machines = 1
    return engine.launch(
        main,
        num_gpus,
        num_machines=num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def setup(args, *, testing: bool = True) -> CfgNode:
    """Loads the config of the command line ``args`` and sets up logging, folders and seeds.

    ``testing`` False is for what needs no test set.
    """
    cfg = load_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="lvis_tde")
    use_data(cfg, args.train_data, args.test_data, args.bounds)
    use_cpu_without_gpu(cfg)
    cfg.freeze()
    check_inputs(cfg, training=not args.eval_only, testing=testing)
    default_setup(cfg, args)
    return cfg
