"""Commands with their wall time, CPU time and peak memory, all their processes together."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Measured", "measure"]

_PERIOD = 0.3


@dataclass
class Measured:
    """What one step took.

    Attributes:
        seconds: wall time.
        cpu_seconds: of all processes that ended and were waited for.
        peak: bytes, greatest sum over all processes at one time; shared pages count once.
        largest: bytes, peak of the largest process.
        processes: most at one time.
        stopped: they grew beyond what they may take.
        returncodes: of the commands.
        output: text of the commands, both streams.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak: int = 0
    largest: int = 0
    processes: int = 0
    stopped: bool = False
    returncodes: list[int] = field(default_factory=list)
    output: str = ""


def measure(
    commands: Sequence[Sequence[str]],
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
    most_bytes: float = float("inf"),
) -> Measured:
    """Run commands side by side.

    Args:
        commands: the arguments of each.
        log: gets their output; a number is added for the second and so on.
        environment: of the processes.
        folder: where they run.
        most_bytes: all are ended when together they take more.

    Returns:
        What they took.
    """
    out = Measured()
    logs = [log.with_suffix(f".{i}.txt" if i else ".txt") for i in range(len(commands))]
    spent, start = _children_seconds(), time.perf_counter()
    running = []
    for command, path in zip(commands, logs):
        with open(path, "w", encoding="utf-8") as file:
            running.append(
                subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder
                )
            )
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(running, out, ended, most_bytes))
    watch.start()
    try:
        for process in running:
            process.wait()
            if process.returncode not in (0, 1):
                # The others would wait for it until their time is up.
                for other in running:
                    other.terminate()
    finally:
        ended.set()
        watch.join()
    out.seconds = time.perf_counter() - start
    out.cpu_seconds = _children_seconds() - spent
    out.returncodes = [process.returncode for process in running]
    out.output = "".join(path.read_text("utf-8", "replace") for path in logs)
    return out


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(
    running: list[subprocess.Popen[bytes]],
    out: Measured,
    ended: threading.Event,
    most_bytes: float,
) -> None:
    pause = _PERIOD
    while not ended.wait(pause):
        start, family = time.perf_counter(), [p for root in running for p in _family(root.pid)]
        sizes = [_bytes(pid, shares=len(family) > 1) for pid in family]
        # Counting the pages of a process of gigabytes takes a while, of the step's own processors.
        pause = max(_PERIOD, 20 * (time.perf_counter() - start))
        out.peak = max(out.peak, sum(sizes))
        out.largest = max(out.largest, *sizes, 0)
        out.processes = max(out.processes, sum(size > 0 for size in sizes))
        if out.peak > most_bytes:
            out.stopped = True
            for process in running:
                process.kill()


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
            for task in tasks:
                text = Path(f"/proc/{parent}/task/{task}/children").read_text()
                found += map(int, text.split())
        except OSError:
            continue  # it has ended
    return found


def _bytes(pid: int, shares: bool) -> int:
    """Resident memory; if it may share pages, each over the number of processes that have it."""
    name, key = ("smaps_rollup", "Pss") if shares else ("status", "VmRSS")
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/{name}").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0
