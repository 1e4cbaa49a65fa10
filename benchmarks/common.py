"""Measuring: median times of interleaved calls, and peak memory."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["add_common_arguments", "clock", "median_seconds", "peak_memory", "set_up"]


def add_common_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Options that all benchmarks here share."""
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=repeats, help="measured repeats, median")
    parser.add_argument("--warmup", type=int, default=1, help="repeats before the measured ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU time of the process in place of wall time, for a machine that is in use",
    )


def set_up(args: argparse.Namespace) -> dict[str, Any]:
    """Set threads and seed; give what belongs beside every figure.

    Raises:
        ValueError: If a number of repeats or threads is out of range.
    """
    if args.threads < 1 or args.repeats < 1 or args.warmup < 0:
        raise ValueError(
            f"--threads {args.threads} and --repeats {args.repeats} must be at least 1, "
            f"--warmup {args.warmup} at least 0"
        )
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "clock": "CPU time of the process" if args.cpu_time else "wall time",
        "repeats": args.repeats,
        "torch": torch.__version__,
    }


def clock(args: argparse.Namespace) -> Callable[[], float]:
    """The clock that was asked for, in seconds."""
    return time.process_time if args.cpu_time else time.perf_counter


def median_seconds(
    calls: dict[str, Callable[[], Any]], args: argparse.Namespace
) -> dict[str, float]:
    """Median time of each call; they take turns, so that a slow phase meets them all."""
    device, now = torch.device(args.device), clock(args)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(args.warmup + args.repeats):
        for name, call in calls.items():
            _synchronize(device)
            start = now()
            result = call()
            _synchronize(device)
            if repeat >= args.warmup:
                seconds[name].append(now() - start)
            del result
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(call: Callable[[], Any], device: str) -> float:
    """Megabytes of tensors that ``call`` holds at most beyond those that exist before it."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = peak = 0
    for _, size in changes:
        held += size
        peak = max(peak, held)
    return peak / 1e6


def _synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
