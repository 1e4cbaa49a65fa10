"""LVIS v1 at full size without LVIS: what a user runs, step by step, with time and memory.

Annotations, classes and images are as many as LVIS v1's (:mod:`.rehearsal_data`); the steps are the
project's own commands. The network is narrow and sees small images, so that what is measured is
everything else; steps that it bounds nevertheless take a share of the images, which the table says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from lvis_tde.data.files import write_text

from .rehearsal_data import write_detections, write_set
from .rehearsal_monitor import Measured, measure

ROOT = Path(__file__).resolve().parents[1]
# Limits of a step: bytes of all its processes, and seconds.
MOST_BYTES, MOST_SECONDS = 12 << 30, 600
_SMALL = {
    "MODEL.ROI_HEADS.NUM_CLASSES": "1203",
    "DATASETS.TRAIN": "('lvis_v1_train',)",
    "DATASETS.TEST": "('lvis_v1_val',)",
    # The last level, too: measured so before outputs that nobody reads were frozen.
    "MODEL.RPN.IN_FEATURES": "['p4','p5']",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MAX_SIZE_TRAIN": "96",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "96",
    "INPUT.MASK_FORMAT": "polygon",
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": "0.001",
    "DATALOADER.NUM_WORKERS": "2",
    "TEST.DETECTIONS_PER_IMAGE": "300",
}


@dataclass
class Step:
    """One thing that a user does.

    Attributes:
        name: for the table.
        tool: module in tools/.
        arguments: of it.
        processes: side by side.
        note: share of the images, where it is not all.
        right: exit codes of a good end.
        products: files that it writes.
    """

    name: str
    tool: str
    arguments: Sequence[str]
    processes: int = 1
    note: str = ""
    right: Sequence[int] = (0,)
    products: Sequence[Path] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--output", default="output/rehearsal", help="folder for all it writes")
    parser.add_argument("--share", type=float, default=1.0, help="of LVIS's images (default: 1)")
    parser.add_argument("--tiny", action="store_true", help="a five-hundredth, in a minute or two")
    parser.add_argument("--iterations", type=int, default=30, help="of training (default: 30)")
    parser.add_argument("--calibrate", type=float, default=0.01, help="share to choose on (0.01)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples (default: 1000)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="words of the steps to run")
    parser.add_argument("--keep", action="store_true", help="leave images and annotations there")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Rehearse.

    Args:
        args: see :func:`add_arguments`.

    Returns:
        Hardware, date and what each step took; "faults" lists what failed or is over a limit.

    Raises:
        ValueError: the share is none, or the folder holds a set of another share.
    """
    if args.tiny:
        args.share, args.iterations, args.bootstrap = min(args.share, 0.002), 2, 20
    if not 0 < args.share <= 1:
        raise ValueError(f"--share must be above 0 and at most 1, got {args.share}")
    folder = Path(args.output).resolve()
    data, logs = folder / "datasets", folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    results = folder / "detections.json"
    # Of a call that was ended, or had --only: its figures stand in the table of this one.
    record = folder / "rehearsal.json"
    known = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    rows = known["rows"] if known.get("share") == args.share else {}
    if not (data / "lvis").is_dir():
        start = time.perf_counter()
        pool, val = write_set(data, args.share, args.seed)
        write_detections(results, val, pool, args.seed)
        size = sum(path.stat().st_size for path in (*(data / "lvis").iterdir(), results))
        name = "writing the set and the detections, no step of a user's"
        note, seconds = f"{size / 1e9:.2f} GB of JSON", time.perf_counter() - start
        rows = {name: {"step": name, "note": note, "seconds": seconds, "faults": []}}
        write_text(record, json.dumps({"share": args.share, "rows": rows}))
    elif known.get("share") != args.share:
        raise ValueError(
            f"{folder} holds a set of another share than {args.share}, or part of one: remove the "
            "folder, or name another with --output"
        )
    all_steps = steps(args, folder, data, results)
    try:
        for step in all_steps:
            if args.only and not any(word in step.name for word in args.only):
                continue
            taken = _perform(step, folder, data, logs)
            rows[step.name] = {**_row(step, taken), "faults": _faults(step, taken, args.share)}
            write_text(record, json.dumps({"share": args.share, "rows": rows}, indent=1))
    finally:
        if not args.keep:
            shutil.rmtree(data, ignore_errors=True)
            results.unlink(missing_ok=True)
    order = {step.name: place for place, step in enumerate(all_steps)}
    return {
        "date": date.today().isoformat(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores",
        "share of LVIS": args.share,
        "steps": sorted(rows.values(), key=lambda row: order.get(row["step"], -1)),
        "faults": [fault for row in rows.values() for fault in row["faults"]],
    }


def steps(args: argparse.Namespace, folder: Path, data: Path, results: Path) -> list[Step]:
    """What a user does, in this order.

    Args:
        args: of the benchmark.
        folder: for what the steps write.
        data: root of the data sets.
        results: file of detections on val.

    Returns:
        The steps; each may need the products of those before it.
    """
    whole = args.share == 1
    of_set = "" if whole else f"{args.share:g} of LVIS"
    trained, with_mean, swept = folder / "trained", folder / "mean", folder / "swept"
    overrides = [word for pair in _SMALL.items() for word in pair]
    overrides += ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", str(args.iterations)]
    overrides += ["SOLVER.STEPS", "()", "SOLVER.BASE_LR", "0.01"]
    config = ["--config-file", str(ROOT / "configs" / "demo_deconfound.yaml")]
    weights = str(trained / "model_final.pth")
    val = str(data / "lvis" / "lvis_v1_val.json")
    report, numbers = folder / "report", folder / "evaluated.json"
    with_config = ["--config-file", str(with_mean / "config_tde.yaml")]
    return [
        Step(
            "check-data", "check_datasets", ["--root", str(data)], note=of_set,
            right=(0,) if whole else (1,),  # which says that there are fewer images
        ),
        Step(
            "train --check", "train_net",
            [*config, "--check", *overrides, "OUTPUT_DIR", str(trained)], note=of_set,
        ),
        Step(
            f"train, {args.iterations} iterations with repeat factors", "train_net",
            [*config, *overrides, "DATASETS.TEST", "()", "OUTPUT_DIR", str(trained)], 2,
            note=of_set, products=[trained / "model_final.pth"],
        ),
        Step(
            "estimate", "estimate_feature_mean",
            [*config, "--output", str(with_mean), "--max-batches", str(args.iterations),
             *overrides, "MODEL.WEIGHTS", weights],
            note=of_set, products=[with_mean / "model_tde.pth"],
        ),
        Step(
            "sweep on a calibration split", "sweep_posthoc",
            [*with_config, "--calibrate", str(args.calibrate), "--no-report", "--methods",
             "tde,logit_adjustment", "--rounds", "1", "OUTPUT_DIR", str(swept)],
            note=f"{args.calibrate:g} of the training images of every class",
            products=[swept / "posthoc.json"],
        ),
        Step(
            "evaluate, bbox and segm, with intervals", "evaluate",
            [val, str(results), "--bootstrap", str(args.bootstrap), "--output", str(numbers)],
            note=of_set, products=[numbers],
        ),
        Step(
            "report, segm, with intervals", "report",
            [val, str(results), "--bootstrap", str(args.bootstrap), "--output", str(report)],
            note=of_set, products=[report / "report.html"],
        ),
    ]  # fmt: skip


def _perform(step: Step, folder: Path, data: Path, logs: Path) -> Measured:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(data), "OMP_NUM_THREADS": "1"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    python = [sys.executable, "-W", "ignore"]
    if step.processes == 1:
        commands = [[*python, str(ROOT / "tools" / f"{step.tool}.py"), *step.arguments]]
    else:
        store = folder / "store"
        store.unlink(missing_ok=True)
        start = [*python, "-m", "benchmarks.rehearsal_process"]
        world = str(step.processes)
        commands = [
            [*start, str(rank), world, str(store), step.tool, *step.arguments]
            for rank in range(step.processes)
        ]
    log = logs / re.sub(r"\W+", "_", step.name)
    return measure(commands, log, environment, ROOT, most_bytes=MOST_BYTES)


def _row(step: Step, taken: Measured) -> dict[str, Any]:
    sizes = [path.stat().st_size for path in step.products if path.is_file()]
    return {
        "step": step.name,
        "note": step.note,
        "seconds": taken.seconds,
        "CPU seconds": taken.cpu_seconds,
        "peak": taken.peak,
        "largest process": taken.largest,
        "processes": taken.processes,
        "written": sum(sizes),
    }


def _faults(step: Step, taken: Measured, share: float) -> list[str]:
    out = []
    if any(code not in step.right for code in taken.returncodes):
        end = "\n".join(taken.output.strip().splitlines()[-12:])
        out.append(f"{step.name} ended with {taken.returncodes}:\n{end}")
    out += [f"{step.name} wrote no {path}" for path in step.products if not path.is_file()]
    if taken.stopped:
        out.append(f"{step.name} was ended at {taken.peak / 2**30:.1f} GiB, over the limit of 12")
    if share == 1 and taken.seconds > MOST_SECONDS:
        out.append(f"{step.name} took {taken.seconds:.0f} s, over the limit of {MOST_SECONDS}")
    return out


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def markdown(result: dict[str, Any]) -> str:
    """The table for docs/benchmarks.md."""
    lines = [
        f"{result['date']}, {result['hardware']}, {result['share of LVIS']:g} of LVIS v1:",
        "",
        "| step | of | wall s | CPU s | peak GiB, all processes | largest process | processes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["steps"]:
        cells = [row["step"], row["note"] or "all", f"{row['seconds']:.0f}"]
        if "peak" in row:
            cells += [f"{row['CPU seconds']:.0f}", f"{row['peak'] / 2**30:.1f}"]
            cells += [f"{row['largest process'] / 2**30:.1f}", str(row["processes"])]
        else:
            cells += [""] * 4
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"FAULT: {one}" for one in result["faults"])]
    return "\n".join(lines).rstrip()
