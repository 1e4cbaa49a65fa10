"""The command ``lvis-tde``: the tools of the folder tools/ under one name, and how all of them end.

A tool imports what takes long (torch, Detectron2, most of this package) in its ``main``, after the
arguments are read: ``--help`` and a misspelt argument are then answered at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lvis_tde

if TYPE_CHECKING:
    from .engine.preflight import Finding

__all__ = ["main", "run", "tell", "wrote"]

# Module in tools/, and what it does.
COMMANDS = {
    "train": ("train_net", "train or evaluate a model"),
    "estimate": ("estimate_feature_mean", "put TDE on a trained model"),
    "sweep": ("sweep_posthoc", "choose post-hoc methods and their strengths"),
    "sweep-alpha": ("sweep_alpha", "choose one strength, such as that of TDE"),
    "study": ("run_study", "compare recipes and methods over seeds, with intervals"),
    "demo": ("demo", "draw detections without and with TDE"),
    "export": ("export_model", "write TorchScript and ONNX"),
    "evaluate": ("evaluate", "evaluate a result file: LVIS, or top-1 accuracy"),
    "report": ("report", "write a page and pictures about result files"),
    "check-data": ("check_datasets", "say what is there and what is missing of LVIS"),
    "make-data": ("make_synthetic_lvis", "generate a small long-tailed set"),
}
USAGE = "usage: lvis-tde COMMAND [ARGUMENT ...]\n\n" + "".join(
    f"  {name:<12}{summary}\n" for name, (_, summary) in COMMANDS.items()
)
# Of the tool that chooses one strength, which was the first to have the name.
_OF_ONE_STRENGTH = ("--alphas", "--setting", "--split-only")
# Whose ValueErrors are messages to the user.
_OURS = ("lvis_tde", "__main__", "json", "tools")
_MOST_LINES, _MOST_LETTERS = 3, 1200


def run(tool: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> None:
    """Ends the process with what a tool returns.

    What this package finds wrong with the input, and files that cannot be read or written, end it
    with one to three lines on stderr and code 2; ``--traceback`` among the arguments adds the
    traceback. Other errors, those of the libraries below among them, keep theirs.

    Args:
        tool: its ``main``; an integer that it returns is the exit code.
        argv: its arguments; default: the command line's.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    shown = "--traceback" in argv
    # Deprecations of the libraries are no message to who runs a tool; log.txt has them.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    try:
        status = tool([one for one in argv if one != "--traceback"])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        if shown:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def wrote(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Prints where the results of a tool are, as its last lines."""
    there = [str(path) for path in paths if os.path.exists(path)]
    if there:
        print("Wrote " + "\n      ".join(there))


def tell(findings: Sequence[Finding]) -> int:
    """Prints the table of ``--check``; the tool's exit code, 2 where something is wrong."""
    width = max(len(one.what) for one in findings)
    for one in findings:
        print(f"{one.status:<8} {one.what:<{width}}  {one.message}")
    counts = Counter(one.status for one in findings)
    print(f"{counts['error']} errors, {counts['warning']} warnings")
    return 2 if counts["error"] else 0


def _message(error: Exception) -> str | None:
    """What to tell the user; None for what only a programmer can mend."""
    text = _text(error)
    if text is None:
        return None
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:_MOST_LINES])[:_MOST_LETTERS] or type(error).__name__


def _text(error: Exception) -> str | None:
    name = type(error).__name__
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, (ValueError, ImportError)):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        ours = frame.f_globals["__name__"].partition(".")[0] in _OURS
        return str(error) if ours else None
    if name in ("OutOfMemoryError", "MemoryError"):
        first = (str(error).splitlines() or [""])[0]
        return f"out of memory. {first} Use fewer images per batch, or smaller ones."
    if name == "ProcessRaisedException":
        # The text of a worker's traceback; its last line is the error.
        last = re.search(r"^(\w+(?:\.\w+)*Error): ([^\n]*)\n*\Z", str(error), re.MULTILINE)
        if last and last[1] in ("ValueError", "FileNotFoundError", "OSError", "PermissionError"):
            return last[2]
    return None


def _of_system(error: OSError) -> str:
    if error.errno is None or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``lvis-tde COMMAND ...``; only the module of the command is imported."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ("--help",)
    if name in ("-h", "--help"):
        print(f"{USAGE}\nlvis-tde COMMAND --help says what a command takes.")
        return
    if name == "sweep" and any(one.partition("=")[0] in _OF_ONE_STRENGTH for one in arguments):
        name = "sweep-alpha"
    if name not in COMMANDS:
        print(f"error: {name!r} is no command: {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    if not (Path(__file__).parent / "tools").is_dir():
        # In a checkout the folder is beside the package.
        lvis_tde.__path__.append(str(Path(__file__).parents[1]))
    tool = importlib.import_module(f"lvis_tde.tools.{COMMANDS[name][0]}")
    sys.argv[0] = f"lvis-tde {name}"  # argparse takes the name of the program from there
    run(tool.main, arguments)


if __name__ == "__main__":
    main()
