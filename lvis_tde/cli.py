"""The command ``lvis-tde``: the tools of the folder tools/ under one name."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import lvis_tde

__all__ = ["main", "run"]

# Module in tools/, and what it does.
COMMANDS = {
    "train": ("train_net", "train or evaluate a model"),
    "estimate": ("estimate_feature_mean", "put TDE on a trained model"),
    "sweep": ("sweep_alpha", "choose the strength of TDE"),
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


def run(tool: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> None:
    """Ends the process with what a tool returns.

    A file that is not there and what this package finds wrong with the input end it with one line
    and code 2. Other errors, those of the libraries below among them, keep their traceback.

    Args:
        tool: its ``main``; an integer that it returns is the exit code.
        argv: its arguments; default: the command line's.
    """
    try:
        status = tool(argv)
    except (FileNotFoundError, ValueError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        ours = frame.f_globals["__name__"].partition(".")[0] in ("lvis_tde", "__main__", "json")
        if isinstance(error, ValueError) and not ours:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``lvis-tde COMMAND ...``; only the module of the command is imported."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ("--help",)
    if name in ("-h", "--help"):
        print(f"{USAGE}\nlvis-tde COMMAND --help says what a command takes.")
        return
    if name not in COMMANDS:
        print(f"{USAGE}\nerror: {name!r} is no command.", file=sys.stderr)
        sys.exit(2)
    if not (Path(__file__).parent / "tools").is_dir():
        # In a checkout the folder is beside the package.
        lvis_tde.__path__.append(str(Path(__file__).parents[1]))
    tool = importlib.import_module(f"lvis_tde.tools.{COMMANDS[name][0]}")
    sys.argv[0] = f"lvis-tde {name}"  # argparse takes the name of the program from there
    run(tool.main, arguments)


if __name__ == "__main__":
    main()
