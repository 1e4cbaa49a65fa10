"""All that can be checked of a run before anything of it is built or written.

The same list of checks serves every start, which fails with the first that is not met, and
``--check``, which goes on and prints a table. The model is built without memory for its numbers,
and of a checkpoint only the shapes are read, so that it takes seconds.
"""

from __future__ import annotations

import copy
import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..calibration.checkpoint import check_named, load_all
from ..calibration.posthoc_checks import task_of
from ..calibration.sweep_checks import check_defined, metrics_of
from ..data.files import existing_parent, free_space
from .checks import check_dataset, check_images, check_weights
from .classification import best_by, ignored_for_epochs
from .data_checks import check_annotations, check_sets
from .hooks import PreciseMean
from .lock import check_unlocked
from .recipes import Recipe, YacsRecipe
from .trial import TrialModel, building, is_ours, quiet

__all__ = ["Check", "Finding", "Warned", "find", "preflight"]

# Reading larger annotations twice would double the minutes that a start takes.
_MOST_BYTES = 200e6


class Warned(str):
    """The message of a check that is met, yet should be looked at."""


class Check(NamedTuple):
    """What is checked, and a function that returns what it found , or raises."""

    what: str
    run: Callable[[], str]


class Finding(NamedTuple):
    """A line of the table: "ok", "warning" or "error"."""

    status: str
    what: str
    message: str


def preflight(
    recipe: Recipe,
    *,
    training: bool = True,
    testing: bool = True,
    trained: bool = False,
    resume: bool = False,
    also: Callable[..., Iterable[tuple[str, Callable[[], str]]]] | None = None,
    thorough: bool = False,
    processes: int = 1,
) -> Iterator[Check]:
    """The checks of a run, in the order in which a user would mend them.

    Args:
        recipe: what is to be run.
        training, testing: whether the training and the test sets will be read.
        trained: the weights must be those of the whole model, since nothing is trained.
        resume: whether to continue from the last checkpoint in ``output_dir``.
        also: further checks, what and function; takes the recipe and what gives the model.
        thorough: read annotation files of any size.
        processes: that will train, if they are more than run now.
    """
    model = TrialModel(recipe)
    yield Check("device", functools.partial(_device, recipe))
    yield Check("input", functools.partial(_input, recipe, training))
    yield Check("data", functools.partial(check_sets, recipe, training, testing))
    read = recipe.train_sets if training else ()
    read += (*recipe.calibration_sets, *recipe.test_sets) if testing else ()
    for name in dict.fromkeys(read):
        yield Check(f"data {name}", functools.partial(_data, recipe, name, training, thorough))
    yield Check("model", functools.partial(_builds, model))
    yield Check("weights", functools.partial(_weights, recipe, model, trained, resume))
    writes = training and not trained
    if writes:
        processes = max(processes, comm.get_world_size())
        yield Check("schedule", functools.partial(_schedule, recipe, model, processes))
        if isinstance(recipe, YacsRecipe) and recipe.calibration_sets:
            yield Check("best", functools.partial(_best, recipe, model))
    if also is not None:
        yield from (Check(*one) for one in also(recipe, lambda: model.built))
    yield Check("output", functools.partial(_output, recipe, model, writes))


def find(check: Check) -> Finding:
    """What a check gives, as a line of the table."""
    try:
        message = check.run()
    except (ValueError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
        return Finding("error", check.what, text)
    return Finding("warning" if isinstance(message, Warned) else "ok", check.what, message)


def _device(recipe: Recipe) -> str:
    try:
        device = torch.device(recipe.device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{recipe.keys['device']} is {recipe.device!r}, no device such as cuda or cpu."
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{recipe.keys['device']} is {recipe.device!r}, and there are "
            f"{torch.cuda.device_count()} GPUs."
        )
    return recipe.device


def _input(recipe: Recipe, training: bool) -> str:
    recipe.check(training=training)
    with building("image"):
        image = recipe.prepare(np.zeros((48, 64, 3), np.uint8))["image"]
    return f"a picture of 64 x 48 pixels becomes one of {image.shape[2]} x {image.shape[1]}"


def _schedule(recipe: Recipe, model: TrialModel, processes: int) -> str:
    size = recipe.batch_size
    if size < 1 or size % processes:
        raise ValueError(
            f"{size} images per batch (SOLVER.IMS_PER_BATCH, or dataloader.train.total_batch_size) "
            f"are not at least one, and as many, for each of {processes} processes."
        )
    with quiet(), building("optimizer and schedule"):
        recipe.build_solver(copy.deepcopy(model.built))
    if isinstance(recipe, YacsRecipe):
        precise = recipe.cfg.MODEL.get("TDE", {}).get("PRECISE_MEAN", 0)
    else:
        precise = recipe.cfg.train.get("precise_mean", 0)
    if precise:
        PreciseMean(model.built, list, precise)  # or its error, which a start would have
    text = f"{size} images per batch, {recipe.num_checkpoints} checkpoints"
    ignored = ignored_for_epochs(recipe.cfg) if isinstance(recipe, YacsRecipe) else ""
    return Warned(f"{text}. {ignored}") if ignored else text


def _best(recipe: YacsRecipe, model: TrialModel) -> str:
    """Of the checkpoint that is kept: on what, by what."""
    cfg = recipe.cfg
    if cfg.TEST.EVAL_PERIOD <= 0 and not cfg.SOLVER.EPOCHS.EVAL:
        return "no evaluation period, so the last checkpoint is tested"
    if len(recipe.calibration_sets) > 1:
        raise ValueError(f"DATASETS.CALIB is {recipe.calibration_sets}: one set chooses.")
    (name,), metric = recipe.calibration_sets, best_by(cfg)
    known = metrics_of(name)
    if known and metric not in known and not metric.startswith("AP-"):
        raise ValueError(
            f"TEST.CALIB_METRIC is {metric!r}, but an evaluation on {name} gives "
            f'{", ".join(known)}: choose one of them, or "" for what suits the model.'
        )
    check_defined(f"{task_of(model.built)}/{metric}", name)
    return f"the checkpoint with the best {metric} on {name}"


def _data(recipe: Recipe, name: str, training: bool, thorough: bool) -> str:
    check_dataset(name, recipe.num_classes, recipe.keys["num_classes"])
    check_annotations(recipe, name, training=training and name in recipe.train_sets)
    path = MetadataCatalog.get(name).get("json_file")
    large = path is not None and os.path.isfile(path) and os.path.getsize(path) > _MOST_BYTES
    if large and not thorough:
        return "files are there (--check reads them)"
    with quiet():
        try:
            records = DatasetCatalog.get(name)
        except Exception as error:
            if isinstance(error, OSError) or is_ours(error):
                raise
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise ValueError(f"{path or name} cannot be read ({reason[:200]}).") from error
    count = sum(len(record.get("annotations", ())) for record in records)
    if not records:
        raise ValueError(f"Dataset {name!r} has no images.")
    images = check_images(name, records, recipe.test_input()[0])
    return f"{len(records):,} images, {count:,} annotations; {images}"


def _builds(model: TrialModel) -> str:
    total = sum(one.numel() for one in model.built.parameters())
    return f"{total / 1e6:,.1f} million parameters"


def _weights(recipe: Recipe, model: TrialModel, trained: bool, resume: bool) -> str:
    path = recipe.weights_to_load(resume=resume)
    if trained:
        if resume and path == recipe.weights == "":
            raise ValueError(f"there is no checkpoint in {recipe.output_dir} to resume from.")
        check_named(recipe if path == recipe.weights else _with(recipe, path))
    check_weights(path, recipe.keys["weights"])
    if not path:
        return "random"
    if not os.path.isfile(path.partition("?")[0]):
        return f"{path} is not on this disk: it will be downloaded, and was not looked into"
    total = len(list(model.built.parameters()))
    with quiet():
        partial = not trained or recipe.partial_weights
        # A copy: a model that has numbers keeps its own.
        missing, other = load_all(copy.deepcopy(model.built), path, partial=partial, lazily=True)
    if len(missing) == total:
        raise ValueError(
            f"{path} has none of the {total} parameters of the model. Is it of another model? "
            f'{recipe.keys["weights"]} "" trains from scratch.'
        )
    if not missing:
        return f"{path} fits, all {total} parameters"
    text = f"{path} has {total - len(missing)} of {total} parameters, the others start at random"
    if other or trained:
        return Warned(f"{text}; {len(other)} have another shape, such as {(other or missing)[0]}")
    return text


def _with(recipe: Recipe, weights: str) -> Recipe:
    recipe = recipe.clone()
    recipe.weights = weights
    return recipe


def _output(recipe: Recipe, model: TrialModel, training: bool) -> str:
    """
    Raises:
        OSError: nothing can be written there.
        ValueError: it is in use, or too small for one checkpoint.
    """
    folder = recipe.output_dir
    if not folder or "://" in folder:
        return f"{folder or 'none'}: not looked into"
    parent = existing_parent(folder)
    if not parent.is_dir():
        raise ValueError(
            f"{recipe.keys['output_dir']} is {folder}, but {parent} is a file: name a folder."
        )
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise type(error)(
            error.errno,
            f"nothing can be written there ({error.strerror}): give another "
            f"{recipe.keys['output_dir']}",
            str(folder),
        ) from error
    if training:
        check_unlocked(folder)
    one = sum(t.numel() * t.element_size() for t in model.built.state_dict().values())
    number = 1
    if training:
        one *= 2  # with the momentum
        number = recipe.num_checkpoints
    free = free_space(folder)
    text = f"{folder}: {free / 1e9:,.1f} GB free, {number} checkpoints of {one / 1e9:,.2f} GB"
    if free < one:
        raise ValueError(f"{text}: there is no room for one.")
    return Warned(f"{text}: they do not fit") if free < one * number else text
