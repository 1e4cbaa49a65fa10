"""The demo of classification: two long-tailed sets, two models of each, every post-hoc method.

Each seed has its own training images, weights and order. Strengths are chosen on the calibration
part; the test part is run through the network once, at the end.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.env import seed_all_rng

from ..calibration.estimate import estimate_feature_mean
from ..calibration.family import COMPOSITION
from ..calibration.image_sweep import TASK, ImagePass, choose_for_images
from ..calibration.methods import FACTUAL
from ..calibration.settings import describe, tde_predictors
from ..data.emoji_lt import make_emoji_lt
from ..data.files import write_text, write_with
from ..data.processes import end_with_parent
from ..engine import Trainer, load_recipe
from ..engine.console import setup_part
from ..evaluation.classification_evaluator import ClassificationEvaluator
from ..evaluation.seeds import seed_intervals, seed_rows
from ..modeling.image_classifier import ImageClassifier
from ..posthoc import Settings
from ..visualization.palette import METHOD_NAMES
from ..visualization.top1_charts import plot_shifts, plot_top1_runs

__all__ = ["PARTS", "SETS", "format_classification", "run_classification_demo"]

# Name of a set to what it is called.
SETS = {"digits_lt": "digits_lt, 10 classes", "emoji_lt": "emoji_lt, 100 classes"}
# What is trained: its config's ending, and its name.
PARTS = {"softmax": "softmax", "tde": "de-confound"}
# Less than half of CIFAR-100-LT, for a demo of minutes.
EMOJI_SIZES: dict[str, Any] = {"train_per_class": 200, "calib_per_class": 10, "test_per_class": 30}
_SHOWN = ("top1", "many", "medium", "few", "ece")
_SHIFTED = ("factual", "tde", "logit_adjustment")


@dataclass(frozen=True)
class Task:
    """One training and all that follows from it; one process each.

    Attributes:
        output: folder of the demo.
        configs: folder with ``<set>_<part>.yaml``.
        name, part, seed: of :data:`SETS` and :data:`PARTS`.
        overrides: "KEY VALUE" changes of the config.
    """

    output: Path
    configs: Path
    name: str
    part: str
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.output / self.name / f"seed{self.seed}" / self.part

    def recipe(self):
        """The recipe, on the sets of the seed."""
        stem = f"{self.name}_100_seed{self.seed}"
        sets = {"TRAIN": f"('{stem}_train',)", "CALIB": f"('{stem}_calib',)", "TEST": "()"}
        options = [item for key, value in sets.items() for item in (f"DATASETS.{key}", value)]
        options += ["SEED", str(self.seed), "OUTPUT_DIR", str(self.folder), *self.overrides]
        recipe = load_recipe(str(self.configs / f"{self.name}_{self.part}.yaml"), options)
        recipe.use_cpu_without_gpu()
        return recipe


@contextlib.contextmanager
def _data_in(folder: Path) -> Iterator[None]:
    """Lets the names of sets be looked up in a folder."""
    before = os.environ.get("DETECTRON2_DATASETS")
    os.environ["DETECTRON2_DATASETS"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["DETECTRON2_DATASETS"]
        else:
            os.environ["DETECTRON2_DATASETS"] = before


def run_task(task: Task) -> dict[str, Any]:
    """Trains, chooses on ``calib``, tests; what is finished is not run again.

    Returns:
        dict: ``{method: {"settings", "strength", "calibration": {metric: percent},
        "test": {metric: percent}}}``.

    Raises:
        ValueError: if the folder holds a run with another config.
    """
    done, config = task.folder / "results.json", task.folder / "config.yaml"
    task.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with _data_in(task.output / "datasets"):
        recipe = task.recipe()
        if config.is_file() and config.read_text("utf-8") != recipe.cfg.dump():
            raise ValueError(
                f"{task.folder} holds a run with another configuration. Remove it, or choose "
                "another output."
            )
        if done.is_file():
            return json.loads(done.read_text("utf-8"))
        recipe.save(config)
        setup_part(str(task.folder), f"{task.name} {task.part} seed {task.seed}")
        found = _rows(recipe, _trained(recipe, task.seed))
    write_text(done, json.dumps(found, indent=1) + "\n")
    return found


def _trained(recipe, seed: int) -> ImageClassifier:
    """The trained model with the statistics of its logits and the mean that training tracked."""
    seed_all_rng(seed)
    trainer = Trainer(recipe.cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    model = trainer.model
    mean = tde_predictors(model)[0].feature_mean.mean
    tracked = mean.clone()
    estimate_feature_mean(model, recipe.train_loader(), max_batches=20, tolerance=0)
    mean.copy_(tracked)
    return model


def _warnings(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _rows(recipe, model: ImageClassifier) -> dict[str, Any]:
    def measured(name: str) -> tuple[ImagePass, ClassificationEvaluator]:
        return ImagePass(model, recipe.test_loader(name)), recipe.evaluator(name, save=False)

    # A table for each of many settings says nothing that the choice does not.
    logging.getLogger("lvis_tde.evaluation.classification_evaluator").addFilter(_warnings)
    (calib,) = recipe.calibration_sets
    images, evaluator = measured(calib)
    choice = choose_for_images(images, evaluator.fresh_copy, metric="top1")
    images, evaluator = measured(calib.removesuffix("calib") + "test")
    tested: dict[Settings, dict[str, float]] = {
        one: images.evaluate(one, evaluator)[TASK]
        for one in dict.fromkeys(row.settings for row in choice.rows)
    }
    return {
        row.method: {
            "settings": asdict(row.settings),
            "strength": row.strength,
            "calibration": {name: round(row.metrics[name], 4) for name in _SHOWN},
            "test": {name: round(value, 4) for name, value in tested[row.settings].items()},
        }
        for row in choice.rows
    }


def _make_emoji(output: Path, seed: int, sizes: Mapping[str, Any]) -> None:
    make_emoji_lt(output / "datasets", seed=seed, **{**EMOJI_SIZES, **sizes})


def run_classification_demo(
    output: str | os.PathLike,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    sets: Sequence[str] = tuple(SETS),
    configs: str | os.PathLike = "configs/classification",
    jobs: int = 2,
    emoji: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, dict[str, list]]:
    """Trains every part on every set for every seed, and draws what came of it.

    A second call finds what is finished; an interrupted one is resumed.

    Args:
        output: folder for ``results.json``, ``top1.png`` and ``shifts.png``, the sets and the runs.
        seeds: each draws its own training images, weights and order.
        sets: of :data:`SETS`; "emoji_lt" needs a color emoji font.
        configs: folder with ``<set>_<part>.yaml``.
        jobs: processes of one thread each; 1 runs all in this one. The figures do not depend on it.
        emoji: further arguments of :func:`~lvis_tde.data.emoji_lt.make_emoji_lt`.
        overrides: "KEY VALUE" changes of the configs.

    Returns:
        dict: set to run, "softmax/tde" for TDE on the trained softmax, to one dict a seed, see
        :func:`run_task`.

    Raises:
        ValueError: for an unknown set, without a font, or if the folder holds other runs.
    """
    unknown = [name for name in sets if name not in SETS]
    if unknown or not sets or not seeds:
        raise ValueError(f"sets must be some of {', '.join(SETS)} and seeds some, got {sets}.")
    root = Path(output)
    tasks = [
        Task(root, Path(configs), name, part, seed, tuple(overrides))
        for name in sorted(sets, reverse=True)  # the longest first
        for seed in seeds
        for part in PARTS
    ]
    fonts = seeds if "emoji_lt" in sets else ()
    if jobs == 1:
        for seed in fonts:
            _make_emoji(root, seed, emoji or {})
        found = [run_task(task) for task in tasks]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, initializer=end_with_parent) as pool:
            made = [pool.submit(_make_emoji, root, seed, emoji or {}) for seed in fonts]
            for one in made:
                one.result()
            found = list(pool.map(run_task, tasks))
    results: dict[str, dict[str, list]] = {name: {} for name in sets}
    for task, methods in zip(tasks, found):
        for method, row in methods.items():
            results[task.name].setdefault(f"{task.part}/{method}", []).append(row)
    content = {"seeds": list(seeds), "results": results}
    write_text(root / "results.json", json.dumps(content, indent=1) + "\n")
    _draw(results, root)
    return results


def _name(run: str) -> str:
    part, method = run.split("/")
    words = "" if method == FACTUAL else f", {METHOD_NAMES.get(method, method)}"
    return PARTS[part] + words


def _tested(runs: Mapping[str, list]) -> dict[str, list[dict[str, float]]]:
    return {run: [row["test"] for row in seeds] for run, seeds in runs.items()}


def _draw(results: Mapping[str, Mapping[str, list]], output: Path) -> None:
    sets = {SETS[name]: _tested(runs) for name, runs in results.items()}
    names = {run: _name(run) for runs in sets.values() for run in runs}
    intervals = {name: seed_intervals(runs) for name, runs in sets.items()}
    figure = plot_top1_runs(sets, intervals=intervals, names=names)
    write_with(output / "top1.png", functools.partial(figure.savefig, dpi=150))
    name, runs = list(sets.items())[-1]
    shown = {run: seeds for run, seeds in runs.items() if run.split("/")[1] in _SHIFTED}
    priors = {
        run: [{k: v for k, v in s.items() if k not in (*_SHOWN, "balanced")} for s in seeds]
        for run, seeds in shown.items()
    }
    title = f"{name}: top-1 accuracy under other priors of the test set (%)"
    figure = plot_shifts(priors, names=names, title=title)
    write_with(output / "shifts.png", functools.partial(figure.savefig, dpi=150))


def _strength(row: Mapping[str, Any]) -> str:
    if row["strength"] is None:
        return describe(Settings(**row["settings"])) or FACTUAL
    return f"{row['strength']:g}"


def format_classification(results: Mapping[str, Mapping[str, list]]) -> str:
    """A table in Markdown for each set: mean and 95 % interval over seeds.

    Args:
        results: what :func:`run_classification_demo` returns.
    """
    tables = []
    for name, runs in results.items():
        names = {run: _name(run) for run in runs}
        rows = seed_rows(_tested(runs), names=names)
        rows[0][0] = f"{SETS[name]}, {len(next(iter(runs.values())))} seeds"
        rows[0].insert(1, "strengths")
        for row, (run, seeds) in zip(rows[1:], runs.items()):
            between = "; " if run.endswith(COMPOSITION) else ", "
            chosen = between.join(dict.fromkeys(map(_strength, seeds)))
            row.insert(1, "" if run.endswith(FACTUAL) else chosen)
        lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)
