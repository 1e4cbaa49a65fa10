"""One training for each output folder: two would mix their checkpoints and logs.

The lock is a file that names process, host and the process's time of start. A process that is gone,
or whose number another one has got since, holds nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no POSIX: then two that start in the same instant are not told apart
    fcntl = None  # type: ignore[assignment]

from ..data.files import write_text

__all__ = ["check_unlocked", "locked"]

FILE = "training.lock"


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a folder while it is open, for this process; one that it holds already stays so.

    Raises:
        ValueError: see :func:`check_unlocked`.
    """
    if "://" in os.fspath(folder):  # a storage that knows no exclusive files
        yield
        return
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    if _read(path) == _me():
        yield
        return
    with _alone(path.parent):
        check_unlocked(folder)
        write_text(path, json.dumps(_me()))
    try:
        yield
    finally:
        if _read(path) == _me():
            path.unlink(missing_ok=True)


def check_unlocked(folder: str | os.PathLike[str]) -> None:
    """Fails if another process trains into a folder.

    Raises:
        ValueError: naming its host and number.
    """
    path = Path(folder) / FILE
    holder = _read(path)
    if holder is None or holder == _me() or not _may_live(holder):
        return
    here = holder["host"] == socket.gethostname()
    cure = "" if here else f" If that process is gone, remove {path}."
    raise ValueError(
        f"Process {holder['pid']} on {holder['host']} trains into {folder} already: give another "
        f"output folder, or wait for its end.{cure}"
    )


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "start": _start_of(os.getpid())}


def _start_of(pid: int) -> str | None:
    """When a process of this host was started, in its kernel's own words; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program, in brackets, may hold anything.
        return f"{boot} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """None also for what is no lock, such as one that was written by hand."""
    try:
        holder = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(holder, dict) and holder.keys() >= {"pid", "host", "start"}
    return holder if complete and isinstance(holder["pid"], int) else None


def _may_live(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return True  # nobody can tell from here
    try:
        os.kill(holder["pid"], 0)
    except OSError as error:
        return error.errno == errno.EPERM  # there, and another user's
    except OverflowError:
        return False
    start = _start_of(holder["pid"])
    return start is None or holder["start"] is None or start == holder["start"]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """For the moment between looking at a lock and taking it."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
