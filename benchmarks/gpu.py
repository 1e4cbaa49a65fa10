"""The figures that wait for a GPU, each by the benchmark that prints it, as one table of a page.

Every benchmark runs in a process of its own, so one that fails or does not end leaves cells empty,
is told of, and makes the exit code 1; the others go on. What was measured is written at once.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from .gpu_cells import CELLS, Cell

__all__ = ["add_arguments", "markdown", "run"]

TOOL = Path(__file__).parents[1] / "tools" / "benchmark.py"
BEGIN, END = "<!-- written by benchmarks/gpu.sh -->", "<!-- end -->"


def add_arguments(parser):
    """Options of ``benchmark.py gpu``."""
    parser.add_argument("--device", default="cuda", help="torch device (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the commands")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it (default: 9)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these benchmarks alone")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into a page")


def run(args):
    """Figures by title, and the commands they are of.

    Raises:
        ValueError: if there is no such device, benchmark or place on the page; before anything is
            measured.
    """
    cuda = torch.device(args.device).type == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device; --device cpu --tiny tries the commands")
    cells = [cell for cell in CELLS if not args.only or cell.arguments[0] in args.only]
    known = {cell.arguments[0] for cell in CELLS}
    if unknown := set(args.only or ()) - known:
        raise ValueError(f"--only takes {', '.join(sorted(known))}, got {', '.join(unknown)}")
    if args.write:
        replace_table(args.write.read_text("utf-8"), "")
    deadline = time.monotonic() + 60 * args.minutes
    result = {
        "benchmark": "figures of a GPU",
        "device": torch.cuda.get_device_name(args.device) if cuda else args.device,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "figures": {},
        "failed": [],
    }
    for cell in cells:
        figures, why = _measure(cell, args, deadline - time.monotonic())
        result["figures"].update(figures)
        result["failed"] += [f"{cell.arguments[0]}: {why}"] if why else []
        if args.write:  # nothing that was measured is lost to what comes after it
            page = replace_table(args.write.read_text("utf-8"), markdown(result))
            args.write.write_text(page, "utf-8")
    return result


def _measure(cell: Cell, args, seconds: float) -> tuple[dict[str, str], str]:
    """The figures of one benchmark, or why there are none."""
    command = [sys.executable, str(TOOL), *cell.command(args.tiny), "--json"]
    command += ["--device", args.device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        return {}, "no time was left"
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        if done.returncode < 0:  # such as 9, for want of memory
            return {}, f"ended by signal {-done.returncode}"
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {}, last[:200]
    # Logs may come before the JSON, which is the last thing printed.
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    return {title: pick(found) for title, pick in cell.rows.items()}, ""


def markdown(result=None) -> str:
    """The table of :data:`CELLS`; without a result its figures are empty."""
    figures = result["figures"] if result else {}
    if result:
        head = f"{result['device']}, PyTorch {result['torch']}, {result['date']}"
    else:
        head = "not measured yet"
    rows = [f"| {head} | | `tools/benchmark.py ... --device cuda` |", "|---|---|---|"]
    for cell in CELLS:
        command = " ".join(cell.arguments)
        rows += [f"| {title} | {figures.get(title, '')} | `{command}` |" for title in cell.rows]
    told = [f"\nNot measured: {why}." for why in (result or {}).get("failed", ())]
    return "\n".join([*rows, *told])


def replace_table(page: str, table: str) -> str:
    """The page with another table between its two marks.

    Raises:
        ValueError: if it does not have each mark once.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page needs one line {BEGIN!r} and after it one line {END!r}")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"
