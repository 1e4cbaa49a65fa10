"""The way from a command line to a recipe, and to processes that run it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

import torch
from detectron2 import engine
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..config import add_tde_config
from ..data.files import atomic_path
from ..modeling.inference_mode import check_dtype, named_dtype
from ..modeling.intercept import intercepted
from .classification import is_classification
from .console import setup_console
from .image_recipe import ClassifierRecipe, use_folders
from .lazy import LazyRecipe
from .merging import config_errors, imports_kept, merge_file, merge_overrides, warn_of_new_key
from .own_data import use_data
from .preflight import Check, Finding, Warned, find, preflight
from .recipes import Recipe, YacsRecipe

__all__ = [
    "check",
    "check_run",
    "launch",
    "load_config",
    "load_recipe",
    "setup",
    "use_fast",
]

logger = logging.getLogger(__name__)


def load_config(config_file: str = "", opts=()) -> CfgNode:
    """Detectron2's defaults, ``MODEL.TDE``, the file and the "KEY VALUE" overrides, in this order.

    Keys whose default is a float take integers, too: ``MODEL.TDE.ALPHA 0``, ``SOLVER.BASE_LR 1``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is no config, a key is unknown or a value of the wrong kind.
    """
    cfg = get_cfg()
    add_tde_config(cfg)
    if config_file:
        _check_config_file(config_file)
        merge_file(cfg, config_file)
    merge_overrides(cfg, opts)
    if cfg.MODEL.WEIGHTS is None:
        cfg.MODEL.WEIGHTS = ""
    return cfg


def _check_config_file(path: str) -> None:
    if os.path.isdir(path):
        raise ValueError(f"--config-file {path} is a folder: name the file in it.")
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
    with config_errors(config_file), imports_kept():
        cfg = LazyConfig.load(config_file)
    for override in opts:
        with config_errors(override):
            warn_of_new_key(cfg, override)
            cfg = LazyConfig.apply_overrides(cfg, [override])
    return LazyRecipe(cfg)


def _is_lazy(path: str) -> bool:
    _check_config_file(path)
    if path.endswith(".py"):
        return True
    # A saved LazyConfig; yacs has MODEL.
    with config_errors(path), open(path, encoding="utf-8") as file:
        return any(line.startswith("model:") for line in file)


def launch(main: Callable, args: argparse.Namespace):
    """Detectron2's launcher: runs ``main(args)`` in ``args.num_gpus`` processes on every machine.

    Release 0.6 starts several processes on GPUs only; without any it runs one, and says so. Checks
    (``args.check``) take one.

    Returns:
        what ``main`` returns if it runs in this process, else None.
    """
    num_gpus, num_machines = args.num_gpus, args.num_machines
    if num_gpus * num_machines < 1 or not 0 <= args.machine_rank < num_machines:
        raise ValueError(
            f"--num-gpus {num_gpus}, --num-machines {num_machines} and --machine-rank "
            f"{args.machine_rank} are no processes: at least 1, 1, and from 0 up to the machines."
        )
    if torch.cuda.is_available() and num_gpus > torch.cuda.device_count():
        raise ValueError(f"--num-gpus {num_gpus}: there are {torch.cuda.device_count()} GPUs.")
    on_cpu = hasattr(comm, "create_local_process_group")  # the launcher of main
    if num_gpus * num_machines > 1 and not on_cpu and not torch.cuda.is_available():
        logger.warning("No GPU found, and this Detectron2 starts one process on CPUs: running 1.")
        num_gpus = num_machines = args.num_gpus = args.num_machines = 1
    if args.check or num_gpus * num_machines <= 1:
        return main(args)
    return engine.launch(
        main,
        num_gpus,
        num_machines=num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def use_fast(recipe: Recipe) -> None:
    """Has the models that a recipe loads optimized for inference.

    Raises:
        ValueError: if the config's data type for it is none, or not for the device.
    """
    check_dtype(named_dtype(recipe.inference_dtype), recipe.device)
    recipe.fast = True


def check(args, **options) -> list[Finding]:
    """All that can be checked of a run, without running it, for ``--check``.

    Args:
        args: from :func:`~lvis_tde.arguments.argument_parser`.
        **options: as :func:`setup` takes them.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_recipe` and :func:`use_data`.
    """
    setup_console()
    _, checks = _checked_recipe(args, thorough=True, **options)
    return list(map(find, checks))


def setup(args, **options) -> Recipe:
    """The recipe of the command line ``args``, checked, with logging, folders and seeds set up.

    Args:
        args: from :func:`~lvis_tde.arguments.argument_parser`.
        **options: of :func:`_checked_recipe`: ``testing`` (False for what needs no test set),
            ``trained`` (whether the weights must be all of the model; default: in an evaluation),
            ``output_dir`` (folder for all that is written; default: the config's), ``prepare``
            (changes a copy of the recipe before it is checked), ``also`` (further checks).

    Raises:
        FileNotFoundError, ValueError: see :func:`load_recipe`, :func:`use_data` and
            :func:`~lvis_tde.engine.preflight.preflight`, whose first error it is.
    """
    setup_console(rank=comm.get_rank())
    recipe, checks = _checked_recipe(args, **options)
    if comm.is_main_process():
        _meet(checks)
    comm.synchronize()
    setup_console(recipe.output_dir, comm.get_rank())
    # Detectron2 writes config.yaml as it goes along.
    with intercepted(PathManager, "open", _open_whole):
        default_setup(recipe.cfg, args)
    return recipe


def _open_whole(original: Callable, path: str, mode: str = "r", **options):
    """``PathManager.open``, but a local file that is written anew is whole or not there."""
    written = mode == "w" and "://" not in path
    return _whole_file(path) if written else original(path, mode, **options)


@contextlib.contextmanager
def _whole_file(path: str) -> Iterator[TextIO]:
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
        yield file


def check_run(recipe: Recipe) -> None:
    """Fails if a model cannot predict, or its output folder not be written to, before it is built.

    Raises:
        FileNotFoundError, ValueError: see :func:`~lvis_tde.engine.preflight.preflight`.
    """
    _meet(preflight(recipe, training=False, testing=False, trained=True))


def _meet(checks: Iterable[Check]) -> None:
    for one in checks:
        found = one.run()
        if isinstance(found, Warned):
            logger.warning("%s: %s", one.what, found)


def _checked_recipe(
    args,
    *,
    testing: bool = True,
    trained: bool | None = None,
    output_dir: str | None = None,
    prepare: Callable[[Recipe], None] | None = None,
    also: Callable | None = None,
    thorough: bool = False,
) -> tuple[Recipe, Iterator[Check]]:
    recipe = load_recipe(args.config_file, args.opts)
    recipe.partial_weights = args.allow_partial_weights
    if output_dir is not None:
        recipe.output_dir = output_dir
    training = not args.eval_only
    if trained and args.resume:
        raise ValueError(f"--resume is for train. Name the checkpoint in {recipe.keys['weights']}.")
    trained = args.eval_only if trained is None else trained
    calib = getattr(args, "calib_data", None)
    use_data(recipe, args.train_data, args.test_data, args.bounds, calib)
    use_folders(recipe, args.train_folder, args.test_folder, hold_out=args.hold_out)
    recipe.use_cpu_without_gpu()
    if args.fast:
        use_fast(recipe)
    checked = recipe.clone()
    if prepare is not None:
        prepare(checked)
    checks = preflight(
        checked,
        training=training,
        testing=testing,
        trained=trained,
        resume=args.resume,
        also=also,
        thorough=thorough,
        processes=args.num_gpus * args.num_machines,
    )
    return recipe, checks
