"""The way from a command line to a recipe, and to processes that run it."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2 import engine
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import add_tde_config
from ..data.long_tailed import register_long_tailed
from .checks import check_inputs
from .classification import is_classification
from .image_recipe import ClassifierRecipe, add_folder_arguments, use_folders
from .lazy import LazyRecipe
from .recipes import Recipe, YacsRecipe

__all__ = [
    "add_data_arguments",
    "argument_parser",
    "launch",
    "load_config",
    "load_recipe",
    "setup",
    "use_data",
]

logger = logging.getLogger(__name__)


def use_data(recipe: Recipe, train=None, test=None, bounds=None) -> None:
    """Registers a user's files and points a recipe at them: data sets and number of classes.

    Without ``test``, test sets of other classes than those of ``train`` are left out.

    Args:
        recipe: changed.
        train, test: (annotation file, image folder) in LVIS or COCO format, or None to leave the
            recipe's own. The groups of ``test`` are those of ``train`` where both are given.
        bounds: most images of a rare and of a common class; None for LVIS's 10 and 100.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if a file is not consistent, see :func:`register_long_tailed`.
    """
    for path in (*(train or ()), *(test or ())):
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} does not exist (see datasets/README.md).")
    if train is not None:
        name = f"{Path(train[0]).stem}_train"
        register_long_tailed(name, *train, bounds=bounds)
        recipe.train_sets = (name,)
        recipe.num_classes = len(_classes(name))
    if test is not None:
        name = f"{Path(test[0]).stem}_test"
        register_long_tailed(name, *test, train_json=train and train[0], bounds=bounds)
        recipe.test_sets = (name,)
        recipe.num_classes = len(_classes(name))
        if train is None:
            logger.warning(
                "No --train-data: the groups rare, common and frequent are those that %s itself "
                "gives or counts, not those of the training set.",
                test[0],
            )
    elif train is not None:
        _leave_out_tests_of_others(recipe, _classes(name))


def _classes(dataset: str) -> Sequence[str]:
    """Empty where the set does not tell."""
    return MetadataCatalog.get(dataset).get("thing_classes") or ()


def _leave_out_tests_of_others(recipe: Recipe, classes: Sequence[str]) -> None:
    kept = tuple(name for name in recipe.test_sets if _classes(name) in ((), classes))
    if kept != recipe.test_sets:
        logger.warning(
            "No --test-data: %s have other classes than --train-data, so evaluation on them is "
            "skipped.",
            ", ".join(name for name in recipe.test_sets if name not in kept),
        )
        recipe.test_sets = kept


def load_config(config_file: str = "", opts=()) -> CfgNode:
    """Detectron2's defaults, ``MODEL.TDE``, the file and the "KEY VALUE" overrides, in this order.

    Raises:
        FileNotFoundError: if the file does not exist.
    """
    cfg = get_cfg()
    add_tde_config(cfg)
    if config_file:
        _check_config_file(config_file)
        cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    return cfg


def _check_config_file(path: str) -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--config-file {path} does not exist.")


def load_recipe(config_file: str = "", opts: Sequence[str] = ()) -> Recipe:
    """The recipe of a config file of either kind.

    Args:
        config_file: a yacs file; or a LazyConfig, a Python file or what :class:`LazyConfig` saved;
            or "" for Detectron2's defaults.
        opts: overrides: "KEY", "VALUE" and so on for yacs, "key=value" for a LazyConfig.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if an override is of the wrong kind.
    """
    if not config_file or not _is_lazy(config_file):
        cfg = load_config(config_file, opts)
        return ClassifierRecipe(cfg) if is_classification(cfg) else YacsRecipe(cfg)
    for override in opts:
        if "=" not in override:
            raise ValueError(
                f"{override!r} is no override of {config_file}, a LazyConfig: give key=value, such "
                "as train.max_iter=10."
            )
    return LazyRecipe(LazyConfig.apply_overrides(LazyConfig.load(config_file), list(opts)))


def _is_lazy(path: str) -> bool:
    _check_config_file(path)
    if path.endswith(".py"):
        return True
    # A saved LazyConfig; yacs has MODEL.
    with open(path, encoding="utf-8") as file:
        return any(line.startswith("model:") for line in file)


def add_data_arguments(parser: argparse.ArgumentParser, *, train: bool = True) -> None:
    """Adds the arguments of :func:`use_data`; without ``train`` only ``--test-data``."""
    group = parser.add_argument_group("your own data, in LVIS or COCO format")
    pair: dict[str, Any] = dict(nargs=2, metavar=("JSON", "IMAGES"))
    use = "for the class names"
    if train:
        use = "give --train-data too, whose counts of images make the groups of AP_r, AP_c and AP_f"
        group.add_argument("--train-data", help="annotation file and image folder", **pair)
        group.add_argument(
            "--bounds",
            type=int,
            nargs=2,
            metavar=("RARE", "COMMON"),
            help="most training images of a rare and of a common class (LVIS: 10 100)",
        )
    group.add_argument("--test-data", help=f"annotation file and image folder; {use}", **pair)


def argument_parser(**options) -> argparse.ArgumentParser:
    """Detectron2's command line, and that of :func:`use_data`; :func:`setup` takes its result."""
    parser = default_argument_parser(**options)
    add_data_arguments(parser)
    add_folder_arguments(parser)
    return parser


def launch(main: Callable, args: argparse.Namespace):
    """Detectron2's launcher: runs ``main(args)`` in ``args.num_gpus`` processes on every machine.

    Release 0.6 starts several processes on GPUs only; without any it runs one, and says so.

    Returns:
        what ``main`` returns if it runs in this process, else None.
    """
    num_gpus, num_machines = args.num_gpus, args.num_machines
    on_cpu = hasattr(comm, "create_local_process_group")  # the launcher of main
    if num_gpus * num_machines > 1 and not on_cpu and not torch.cuda.is_available():
        logger.warning("No GPU found, and this Detectron2 starts one process on CPUs: running 1.")
        num_gpus = num_machines = 1
    if num_gpus * num_machines <= 1:
        return main(args)
    return engine.launch(
        main,
        num_gpus,
        num_machines=num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def setup(args, *, testing: bool = True, output_dir: str | None = None) -> Recipe:
    """The recipe of the command line ``args``, checked, with logging, folders and seeds set up.

    Args:
        args: from :func:`argument_parser`.
        testing: False for what needs no test set.
        output_dir: folder for all that is written; default: the config's.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_recipe`, :func:`use_data` and
            :func:`check_inputs`.
    """
    recipe = load_recipe(args.config_file, args.opts)
    if output_dir is not None:
        recipe.output_dir = output_dir
    setup_logger(recipe.output_dir, distributed_rank=comm.get_rank(), name="lvis_tde")
    use_data(recipe, args.train_data, args.test_data, args.bounds)
    use_folders(recipe, args.train_folder, args.test_folder, hold_out=args.hold_out)
    recipe.use_cpu_without_gpu()
    check_inputs(recipe, training=not args.eval_only, testing=testing, resume=args.resume)
    default_setup(recipe.cfg, args)
    return recipe
