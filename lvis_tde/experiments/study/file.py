"""The study file: what is trained on which set with which seeds, and what is compared."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...calibration.family import COMPOSITION
from ...calibration.methods import FACTUAL
from ...data.generated import KINDS
from ...evaluation.ranking import counted_pairs
from ...layers.functional import check_alpha
from .content import check_opts, check_words, listed, load_content
from .run_names import METHODS, RunNames

__all__ = ["SHOWN", "SPLITS", "DataSet", "Order", "Recipe", "Study", "read_study"]

SPLITS = ("train", "calib", "val")
TASKS = ("bbox", "segm")
# Metrics that results keep.
SHOWN = ("AP", "AP50", "APr", "APc", "APf")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Recipe:
    """What is trained.

    Attributes:
        name: its folder and the first half of the names of its runs.
        title: what tables call it.
        config: path of a config.
        opts: "KEY", "VALUE" and so on.
    """

    name: str
    title: str
    config: str
    opts: tuple[Any, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """Where images come from.

    Attributes:
        kind: of :data:`~lvis_tde.data.generated.KINDS`, one set a seed; "" for given sets.
        options: further arguments of what makes it, as pairs.
        splits: of given sets, for each of :data:`SPLITS` a registered name, or an annotation file
            and its folder of images.
    """

    kind: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    splits: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Order:
    """An order of runs that others have published.

    Attributes:
        title: what tables call it.
        source: who published it.
        metric, task: which of ours is held against it.
        runs: worst first; items of an inner tuple are tied.
        without: runs of it whose recipes are left out.
    """

    title: str
    source: str
    metric: str
    task: str
    runs: tuple[tuple[str, ...], ...]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study file, checked.

    Attributes:
        title: of its page.
        data: the set.
        seeds: of the generated set, the weights and the order of training.
        recipes: by name, in the order of the file.
        methods: post-hoc methods to choose and evaluate; None for all that a model can have.
        masks: those whose masks are evaluated, too.
        pairs: runs, and those whose difference to them is told.
        orders: that were published.
        opts: changes of all configs.
        mean_batches: training batches for the means of the classes, that of a model that tracked
            none, and the statistics of the logits; None for all training images once.
        curve: iterations between two points of AP over the training, and the alpha of TDE there;
            None for no such curve.
        content: the file as it was understood, for ``study.json``.
    """

    title: str
    data: DataSet
    seeds: tuple[int, ...]
    recipes: Mapping[str, Recipe]
    methods: tuple[str, ...] | None
    masks: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    orders: tuple[Order, ...]
    opts: tuple[Any, ...]
    mean_batches: int | None
    curve: tuple[int, float] | None
    content: Mapping[str, Any]


def read_study(
    path: str | os.PathLike, *, configs: str | os.PathLike = "configs", quick: bool = False
) -> Study:
    """Reads and checks a study file.

    ``base`` names another study file, which this one changes: a key takes the place of the other's,
    except that ``recipes`` as a mapping are added to the other's and as a list of names choose
    among them, that ``opts`` are added, and that ``set`` without a kind or names changes the
    arguments of the other's. ``quick`` changes the file itself in the same way. Pairs and orders
    lose the runs whose recipes are left out.

    Args:
        path: YAML file.
        configs: folder that the configs of recipes are looked for in, before that of the file and
            the one above it.
        quick: make the changes under ``quick``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no study file; the message quotes what is wrong.
    """
    path = Path(path)
    content, known = load_content(path, quick)
    where = os.fspath(path)
    recipes = _recipes(content["recipes"], Path(configs), path.parent, where)
    methods, masks = content["methods"], content["masks"] or []
    check_words([] if methods is None else methods, METHODS, f"{where}: methods")
    check_words(masks, METHODS, f"{where}: masks")
    if methods is not None and COMPOSITION in methods and not {*methods} - {COMPOSITION, FACTUAL}:
        raise ValueError(
            f"{where}: methods: {COMPOSITION!r} is made of the methods beside it, and there is none"
        )
    evaluated = METHODS if methods is None else (FACTUAL, *methods)
    runs = RunNames(where, known, frozenset(recipes), tuple(evaluated), tuple(masks))
    seeds = content["seeds"]
    whole = isinstance(seeds, list) and all(type(s) is int and 0 <= s < 2**31 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"{where}: seeds must be a list of different integers from 0 to 2147483647, got "
            f"{seeds!r}"
        )
    check_opts(content["opts"], f"{where}: opts")
    batches = content["mean_batches"]
    if batches is not None and (type(batches) is not int or batches < 2):
        raise ValueError(
            f"{where}: mean_batches={batches!r} must be at least 2, or null for all images once"
        )
    pairs = [runs.pair(pair) for pair in listed(content["pairs"], "pairs", where)]
    orders = [_order(one, runs) for one in listed(content["orders"], "orders", where)]
    return Study(
        title=str(content["title"] or path.stem),
        data=_data(content["set"], where),
        seeds=tuple(seeds),
        recipes=recipes,
        methods=None if methods is None else tuple(methods),
        masks=tuple(masks),
        pairs=tuple(pair for pair in pairs if pair is not None),
        orders=tuple(order for order in orders if len(order.runs) > 1),
        opts=tuple(content["opts"]),
        mean_batches=batches,
        curve=_curve(content["curve"], where),
        content=content,
    )


def _recipes(value: Any, configs: Path, beside: Path, where: str) -> dict[str, Recipe]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{where}: recipes must map names to configs, got {value!r}")
    found = {}
    for name, one in value.items():
        place = f"{where}: recipe {name!r}"
        if not isinstance(name, str) or not _WORD.fullmatch(name):
            raise ValueError(f"{place} needs a name of letters, digits, '_', '-' and '.'")
        if not isinstance(one, dict) or not isinstance(one.get("config"), str):
            raise ValueError(f"{place} must be {{title: ..., config: FILE, opts: [...]}}: {one!r}")
        check_words(one, ("title", "config", "opts"), place)
        folders = (configs, beside, beside.parent)
        files = [folder / one["config"] for folder in folders]
        config = next((file for file in files if file.is_file()), None)
        if config is None:
            looked = " or ".join(map(str, folders))
            raise ValueError(f"{place}: its config {one['config']} is not in {looked}")
        opts = listed(one.get("opts", []), "opts", place)
        check_opts(opts, place)
        found[name] = Recipe(name, str(one.get("title") or name), str(config), tuple(opts))
    titles = [recipe.title for recipe in found.values()]
    for title in titles:
        if titles.count(title) > 1:  # pictures and tables could not tell them apart
            raise ValueError(f"{where}: two recipes have the title {title!r}")
    return found


def _data(value: Any, where: str) -> DataSet:
    kinds = ", ".join(KINDS)
    if not isinstance(value, dict) or not {"kind", "train"} & value.keys():
        raise ValueError(
            f"{where}: set must be {{kind: KIND}}, KIND one of {kinds}, or {{train: NAME, calib: "
            f"NAME, val: NAME}}; got {value!r}"
        )
    if "kind" not in value:
        if value.keys() != set(SPLITS) or len({str(one) for one in value.values()}) < 3:
            raise ValueError(f"{where}: set needs three different {', '.join(SPLITS)}: {value!r}")
        splits = tuple(tuple(v) if isinstance(v, list) else v for v in map(value.get, SPLITS))
        for one in splits:
            two = isinstance(one, tuple) and len(one) == 2 and {*map(type, one)} == {str}
            if not isinstance(one, str) and not two:
                raise ValueError(f"{where}: set takes a name or [JSON, IMAGES], got {one!r}")
        return DataSet(splits=splits)
    options = {k: v for k, v in value.items() if k != "kind"}
    if value["kind"] not in list(KINDS):  # which may be anything, a list as well
        raise ValueError(f"{where}: set: kind must be one of {kinds}, got {value['kind']!r}")
    taken = inspect.signature(KINDS[value["kind"]].make).parameters
    own = ("root", "seed", "jobs", "overwrite")
    check_words(options, tuple(one for one in taken if one not in own), f"{where}: set")
    return DataSet(value["kind"], tuple(options.items()))


def _curve(value: Any, where: str) -> tuple[int, float] | None:
    if value is None:
        return None
    place = f"{where}: curve"
    if not isinstance(value, dict) or value.keys() != {"every", "alpha"}:
        raise ValueError(f"{place} must be {{every: ITERATIONS, alpha: ALPHA}}, got {value!r}")
    every, alpha = value["every"], value["alpha"]
    if type(every) is not int or every < 1 or type(alpha) not in (int, float):
        raise ValueError(f"{place} needs every >= 1 and a number alpha, got {value!r}")
    return every, check_alpha(alpha)


def _order(one: Any, runs: RunNames) -> Order:
    place = f"{runs.where}: order"
    if not isinstance(one, dict) or not isinstance(one.get("runs"), list):
        raise ValueError(f"{place} must be {{title, source, metric, runs: [[RUN, ...], ...]}}")
    check_words(one, ("title", "source", "metric", "task", "runs"), place)
    metric, task = one.get("metric", "AP"), one.get("task", "bbox")
    check_words([metric], SHOWN, f"{place}: metric")
    check_words([task], TASKS, f"{place}: task")
    tied = [list(some) if isinstance(some, list) else [some] for some in one["runs"]]
    kept = [tuple(run for run in some if runs.has(run, task)) for some in tied]
    counted_pairs(tied)  # complains
    return Order(
        str(one.get("title") or ""),
        str(one.get("source") or ""),
        metric,
        task,
        tuple(some for some in kept if some),
        tuple(run for some in tied for run in some if not runs.has(run)),
    )
