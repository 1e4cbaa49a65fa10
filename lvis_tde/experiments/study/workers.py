"""Units side by side, each in a process of its own, and how far they all are."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from ...data.processes import end_with_parent
from ...progress import Pace, progress_line
from .unit import Unit, run_unit

__all__ = ["run_units"]

logger = logging.getLogger(__name__)

_CONTEXT = multiprocessing.get_context("spawn")
# Of the work of a unit: its training, about as measured on two cores.
_TRAINING = 0.8


@dataclass
class _Worker:
    unit: Unit
    process: multiprocessing.process.BaseProcess
    receiver: Connection
    gpu: int | None

    def ended(self) -> str:
        """Why it failed; "" if it did not."""
        self.process.join()
        try:
            told = self.receiver.recv() if self.receiver.poll() else None
        except EOFError:  # killed, so it has told nothing
            told = None
        self.receiver.close()
        if told is None:
            return f"its process ended with code {self.process.exitcode}"
        return str(told)


def run_units(units: Sequence[Unit], jobs: int, gpus: int, *, before: int = 0) -> dict[str, str]:
    """Runs units in their order, and goes on when one fails.

    Args:
        units: that are not finished.
        jobs: processes; 0 runs them in this one.
        gpus: the processes take turns on them.
        before: finished units of the study, which the progress counts.

    Returns:
        Name of a unit to why it failed.
    """
    progress = _Progress(units, before)
    if jobs == 0:
        failed = {}
        for unit in units:
            why = _attempt(unit, 0 if gpus else None, shown=True)
            if why:
                failed[unit.name] = why
            progress.finished(unit, why)
        return failed
    waiting, running = list(units), list[_Worker]()
    failed = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(0), _free(running, gpus)))
            wait([one.process.sentinel for one in running], timeout=1.0)
            for one in [one for one in running if not one.process.is_alive()]:
                running.remove(one)
                why = one.ended()
                if why:
                    failed[one.unit.name] = why
                progress.finished(one.unit, why)
            progress.tell([one.unit for one in running])
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join()
    return failed


def _free(running: Sequence[_Worker], gpus: int) -> int | None:
    """The GPU with the fewest processes; None without any."""
    taken = [one.gpu for one in running]
    return min(range(gpus), key=taken.count) if gpus else None


def _start(unit: Unit, gpu: int | None) -> _Worker:
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(unit, gpu, sender), name=unit.name)
    process.start()
    sender.close()
    return _Worker(unit, process, receiver, gpu)


def _work(unit: Unit, gpu: int | None, sender: Connection) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent ends this process
    logging.captureWarnings(True)  # as cli.run does
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    sender.send(_attempt(unit, gpu))


def _attempt(unit: Unit, gpu: int | None, *, shown: bool = False) -> str:
    """Why a unit failed; "" if it did not."""
    try:
        run_unit(unit, gpu, shown=shown)
    except Exception as error:
        # Its log has the rest; the other units are to run.
        logger.exception("%s failed", unit.name)
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return ""


class _Progress:
    """One line over the whole study, at the pace of all others."""

    def __init__(self, units: Sequence[Unit], before: int):
        self._units, self._before = list(units), before
        self._pace, self._ended = Pace(), set[str]()
        self._start = sum(map(_share, units))
        self._began = time.monotonic()

    def finished(self, unit: Unit, why: str) -> None:
        """Tells of a unit that has ended."""
        self._ended.add(unit.name)
        if why:
            logger.error("%s failed: %s", unit.name, why)
        self._tell(f"{unit.name} {'failed' if why else 'done'}")

    def tell(self, running: Sequence[Unit]) -> None:
        """Tells of running units, if it is time to."""
        if self._pace.due():
            self._tell(", ".join(f"{unit.name} {unit.state()}" for unit in running))

    def _tell(self, note: str) -> None:
        shares = [1.0 if unit.name in self._ended else _share(unit) for unit in self._units]
        gained = sum(shares) - self._start
        left = (len(shares) - sum(shares)) * (time.monotonic() - self._began)
        eta = left / gained if gained > 0 else None
        done, total = self._before + len(self._ended), self._before + len(self._units)
        logger.info("%s", progress_line("study", done, total, eta, note))


def _share(unit: Unit) -> float:
    """How much of a unit's work is done, as far as is known from its files."""
    done, total = unit.iterations()
    return _TRAINING * done / total if done < total else (1 + _TRAINING) / 2
