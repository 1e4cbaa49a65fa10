"""Arguments that the tools share. Nothing here needs torch or Detectron2, so that ``--help`` and a
misspelt argument are answered at once."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import Any, NoReturn

__all__ = [
    "DEFAULT_ALPHAS",
    "SETTINGS",
    "Parser",
    "add_data_arguments",
    "add_fast_argument",
    "add_group_arguments",
    "add_folder_arguments",
    "add_weight_arguments",
    "argument_parser",
    "named_numbers",
    "names",
    "numbers",
]

# What a sweep chooses, and the strengths of TDE that it tries.
SETTINGS = ("alpha", "tau_norm", "logn", "logit_adjustment", "norcal", "fracal", "class_means")
DEFAULT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which knows ``--traceback``.

    The flag itself is for :func:`lvis_tde.cli.run`, which finds it wherever it stands.
    """

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)
        if not options.get("parents"):  # which have it
            self.add_argument(
                "--traceback", action="store_true", help="show where in the code an error arose"
            )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help says what it takes)\n")


def numbers(text: str) -> list[float]:
    """A comma-separated list, for ``type=``."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers such as 0,0.5,1"
        ) from None


def names(text: str) -> list[str]:
    """Comma-separated words, for ``type=``."""
    return [name for name in text.split(",") if name]


def named_numbers(text: str) -> tuple[str, list[float]]:
    """A name and its numbers, such as "tde=0.5,1", for ``type=``."""
    name, equals, values = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=NUMBER, such as APf=0.5")
    return name, numbers(values)


def add_group_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says which classes are rare where annotations do not."""
    parser.add_argument(
        "--train-annotations",
        metavar="JSON",
        help="file of the training set, whose numbers of images say which classes are rare; for "
        "annotations that do not say it",
    )
    _add_bounds(parser)


def _add_bounds(parser: Any) -> None:
    parser.add_argument(
        "--bounds",
        type=int,
        nargs=2,
        metavar=("RARE", "COMMON"),
        help="most training images of a rare and of a common class (LVIS: 10 100)",
    )


def add_data_arguments(
    parser: argparse.ArgumentParser, *, train: bool = True, brief: bool = False
) -> None:
    """Adds the arguments of ``engine.use_data``; without ``train`` only ``--test-data``.

    With ``brief`` in fewer words, and with those of :func:`add_folder_arguments`.
    """
    title = "your own data, in LVIS or COCO format"
    group = parser.add_argument_group(f"{title}, or images in folders" if brief else title)
    pair: dict[str, Any] = dict(nargs=2, metavar=("JSON", "IMAGES"))
    use = "for the class names"
    if train:
        use = "give --train-data too, whose counts of images make the groups of AP_r, AP_c and AP_f"
        use = "--train-data makes its groups" if brief else use
        group.add_argument("--train-data", help="annotation file and image folder", **pair)
        _add_bounds(group)
    group.add_argument("--test-data", help=f"annotation file and image folder; {use}", **pair)
    if brief:
        _add_folders(group, "choose on a tenth of every class of --train-folder, as in training")


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of :func:`lvis_tde.engine.image_recipe.use_folders`."""
    group = parser.add_argument_group(
        "your own images for a classifier: a folder that has a folder for each class"
    )
    _add_folders(
        group, "train without a tenth of every class of --train-folder, which is to choose on"
    )


def _add_folders(group: Any, hold_out: str) -> None:
    group.add_argument("--train-folder", metavar="FOLDER", help="with a folder for each class")
    group.add_argument("--test-folder", metavar="FOLDER", help="give --train-folder too")
    group.add_argument("--hold-out", action="store_true", help=hold_out)


def add_weight_arguments(parser: argparse.ArgumentParser, *, brief: bool = False) -> None:
    """Adds ``--allow-partial-weights``, for :attr:`~lvis_tde.engine.Recipe.partial_weights`."""
    lacks = "what a checkpoint lacks of the model stays random"
    if not brief:
        lacks = "go on where a checkpoint lacks parameters of the model; they stay random"
    parser.add_argument("--allow-partial-weights", action="store_true", help=lacks)


def add_fast_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--fast``, for :func:`lvis_tde.engine.use_fast`."""
    parser.add_argument("--fast", action="store_true", help="optimize the model for inference")


def argument_parser(*, trains: bool = True, fast: bool = True, **options: Any) -> Parser:
    """The arguments of Detectron2's own ``train_net.py``, and what this package adds.

    :func:`lvis_tde.engine.setup` takes its result. What only a training or several machines need is
    taken without ``trains``, too, but is not in the help then. Without ``fast`` no ``--fast`` is.
    """
    if not trains:  # one screen, which tests/test_cli.py measures
        wide = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)
        options.setdefault("formatter_class", wide)
    parser = Parser(**options)

    def rare(text: str) -> str:
        return text if trains else argparse.SUPPRESS

    file = (
        "path to config file" if trains else "yacs or LazyConfig; KEY VALUE or KEY=VALUE override"
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help=file)
    parser.add_argument(
        "--resume",
        action="store_true",
        help=rare("go on from the last checkpoint of the output folder"),
    )
    parser.add_argument("--eval-only", action="store_true", help=rare("perform evaluation only"))
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check data, weights, model and output folder, in seconds"
        + (", and print a table" if trains else ""),
    )
    add_weight_arguments(parser, brief=not trains)
    parser.set_defaults(fast=False)
    if fast:
        add_fast_argument(parser)
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="number of gpus *per machine*"
    )
    parser.add_argument(
        "--num-machines", type=int, default=1, help=rare("total number of machines")
    )
    parser.add_argument(
        "--machine-rank",
        type=int,
        default=0,
        help=rare("the rank of this machine (unique per machine)"),
    )
    # Detectron2's: orphans of an earlier run then show as a port that is taken.
    port = 2**15 + 2**14 + hash(os.getuid() if sys.platform != "win32" else 1) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help=rare("where the processes of several machines meet"),
    )
    add_data_arguments(parser, brief=not trains)
    if trains:
        add_folder_arguments(parser)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help=rare('overrides of the config: "KEY VALUE" for yacs, "key=value" for a LazyConfig'),
    )
    return parser
