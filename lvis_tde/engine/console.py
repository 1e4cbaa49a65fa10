"""What a run says on the console, and what goes to ``log.txt`` alone.

Detectron2 logs environment, arguments, config and model, hundreds of lines, before anything can be
wrong. The console shows this package's messages, warnings, progress and where checkpoints go; all
else is in the file.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

from detectron2.utils.logger import setup_logger
from termcolor import colored

from ..progress import Pace, progress_line

__all__ = ["setup_console", "setup_part"]

_ROOTS = ("lvis_tde", "detectron2", "fvcore")
# Of these only warnings, or not even those: they are told in our own words.
_EVALUATION = "detectron2.evaluation.evaluator"
_PROGRESS = ("lvis_tde", _EVALUATION)
# Of the loop of an evaluation: how many batches are done, of how many, and how long it takes.
_DONE = re.compile(r"Inference done (\d+)/(\d+).*ETA=(\S+)")
_BEGUN = re.compile(r"Start inference on (\d+)")
_SILENT = ("fvcore.common.checkpoint", "detectron2.checkpoint", "detectron2.evaluation.testing")
# A sweep would show two for every alpha: who evaluates shows them at the end.
_TABLES = tuple(f"lvis_tde.evaluation.{kind}_evaluator" for kind in ("lvis", "classification"))
_SAVED = "Saving checkpoint"
_LONGEST = 400


class _Console(logging.StreamHandler):
    """Writes to what ``sys.stdout`` is at the time."""

    def __init__(self, tag: str) -> None:
        super().__init__(sys.stdout)
        self.addFilter(_is_shown)
        self.addFilter(_Evaluation())
        color = sys.stdout.isatty()
        stamp = f"[%(asctime)s{tag and ' '}{tag}] "
        self.setFormatter(_Short(colored(stamp, "green") if color else stamp))

    @property
    def stream(self) -> Any:
        return sys.stdout

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


class _Evaluation(logging.Filter):
    """Lets the progress of evaluations pass at the pace of all others."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name != _EVALUATION or record.levelno >= logging.WARNING:
            return True
        message = record.getMessage()
        if _BEGUN.match(message):
            self._pace = Pace()
            return True
        found = _DONE.match(message)
        return found is not None and (self._pace.due() or found[1] == found[2])


class _Short(logging.Formatter):
    def __init__(self, stamp: str):
        super().__init__(stamp + "%(message)s", datefmt="%m/%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.name == _EVALUATION and record.levelno < logging.WARNING:
            return f"{text.partition('] ')[0]}] {_evaluated(record.getMessage())}"
        if record.levelno >= logging.WARNING:
            stamp, _, message = text.partition("] ")
            text = f"{stamp}] {record.levelname}: {message}"
        if record.name.startswith("lvis_tde"):
            return text
        first, *more = text.splitlines() or [""]
        cut = first[:_LONGEST]
        return f"{cut} ... (more in log.txt)" if more or cut != first else cut


def _evaluated(message: str) -> str:
    """Progress of an evaluation in this package's form."""
    if begun := _BEGUN.match(message):
        return progress_line("evaluation", 0, int(begun[1]))
    if found := _DONE.match(message):
        return progress_line("evaluation", int(found[1]), int(found[2]), found[3])
    return message


def _is_shown(record: logging.LogRecord) -> bool:
    name = record.name
    if name.startswith(_SILENT):
        return record.getMessage().startswith(_SAVED) or record.levelno >= logging.ERROR
    if record.levelno >= logging.WARNING:
        return True
    return record.levelno >= logging.INFO and name.startswith(_PROGRESS) and name not in _TABLES


def setup_part(output_dir: str, tag: str, *, shown: bool = True) -> None:
    """:func:`setup_console` for one of several trainings of a process, in place of the last one's.

    Args:
        output_dir: folder of ``log.txt``.
        tag: what the lines on the console begin with, since those of all parts reach one terminal.
        shown: whether there are any; ``log.txt`` has them.
    """
    setup_logger.cache_clear()  # which remembers what it did, not what is still there
    for name in _ROOTS:
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            if isinstance(handler, logging.StreamHandler):
                logger.removeHandler(handler)
    setup_console(output_dir, tag=tag)
    for name in () if shown else _ROOTS:
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            if isinstance(handler, _Console):
                logger.removeHandler(handler)


def setup_console(output_dir: str | None = None, rank: int = 0, tag: str = "") -> None:
    """Sends the messages of this package and of Detectron2 to console and file.

    Args:
        output_dir: folder of ``log.txt``, which gets all of them; None for no file.
        rank: of this process; only the first has a console.
        tag: what the lines on the console begin with, after the time.

    Raises:
        OSError: the file cannot be written.
    """
    for name in _ROOTS:
        logger = logging.getLogger(name)
        # In the same words as Detectron2's default_setup, which then finds it done.
        options = {} if name == "detectron2" else {"name": name}
        setup_logger(output_dir, distributed_rank=rank, **options)
        for handler in logger.handlers[:]:
            shown = getattr(handler, "stream", None) in (sys.stdout, sys.__stdout__)
            if shown and not isinstance(handler, _Console):
                logger.removeHandler(handler)
        if rank == 0 and not any(isinstance(handler, _Console) for handler in logger.handlers):
            logger.addHandler(_Console(tag))
    # On stderr, that there is no GPU, and what Detectron2 should call otherwise.
    for name in ("torch.utils.cpp_extension", "torch.fx._symbolic_trace"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Of the libraries, as cli.run catches them.
    of_libraries = logging.getLogger("py.warnings")
    of_libraries.propagate = False
    for handler in logging.getLogger("detectron2").handlers:
        if not isinstance(handler, _Console) and handler not in of_libraries.handlers:
            of_libraries.addHandler(handler)
