"""A generated set appears under its final name complete, or not at all."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .records import SPLITS

__all__ = ["materialize", "register_splits"]

logger = logging.getLogger(__name__)


def materialize(
    target: Path, parameters: Mapping[str, Any], write: Callable[[Path], None], *, overwrite: bool
) -> Path:
    """Generate a set, or find it already generated.

    A run works in a hidden folder beside the set. Killed, it leaves that to the next run, which
    removes it. The set that is replaced is gone only when the new one is there.

    Args:
        target: the set's folder.
        parameters: all that the set follows from, as it is in its ``parameters.json``.
        write: makes the folder it is given and fills it, ``parameters.json`` included.
        overwrite: replace a set that was generated with other parameters.

    Raises:
        ValueError: if the folder holds a set of other parameters and ``overwrite`` is False.
    """
    if _is_reusable(target, parameters, overwrite):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    # The system gives the lock back however this process ends.
    lock = open(work / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        _remove_abandoned(work, target)
        # What a run before was about to replace may be back.
        if _is_reusable(target, parameters, overwrite):
            return target
        logger.info("Generating the synthetic set %s", target)
        fresh = work / "new"
        # mkdtemp made `work` private; the set inside has the usual permissions.
        write(fresh)
        if target.exists():
            target.rename(work / "old")
        try:
            fresh.rename(target)
        except OSError:
            # Another process was faster; what it wrote is the same set or an error.
            if not _is_reusable(target, parameters, overwrite=False):
                raise
    finally:
        lock.close()
        _remove(work, target)
    return target


def _remove(work: Path, target: Path) -> None:
    """Remove the folder of a run; a set that it has moved away and not replaced goes back."""
    try:
        if (work / "old").exists() and not target.exists():
            (work / "old").rename(target)
    except OSError as error:
        logger.warning("%s was not put back to %s: %s", work / "old", target, error)
        return
    shutil.rmtree(work, ignore_errors=True)


def _remove_abandoned(work: Path, target: Path) -> None:
    """Remove what runs before have left that were killed: folders whose lock nobody holds."""
    for left in work.parent.glob(f".{target.name}.*"):
        if left == work or not (left / "lock").is_file():
            continue
        with open(left / "lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            _remove(left, target)


def register_splits(folder: Path, prefix: str, cure: str) -> dict[str, str]:
    """Register the splits of a generated set with Detectron2; calling it again changes nothing.

    Args:
        folder: of the set.
        prefix: beginning of the dataset names.
        cure: what to do where the set is missing.

    Returns:
        The dataset name of each split.

    Raises:
        ValueError: if the set has not been generated.
    """
    # Whoever only generates a set needs neither torch nor Detectron2.
    from ..long_tailed import register_long_tailed

    names = {split: f"{prefix}_{split}" for split in SPLITS}
    for split, name in names.items():
        json_file = folder / "annotations" / f"{split}.json"
        if not json_file.is_file():
            raise ValueError(f"{str(json_file)!r} does not exist: {cure}")
        register_long_tailed(name, json_file, folder)
    return names


def _is_reusable(target: Path, parameters: Mapping[str, Any], overwrite: bool) -> bool:
    if not target.exists():
        return False
    try:
        found = json.loads((target / "parameters.json").read_text("utf-8"))
    except (OSError, ValueError):
        found = {}
    if found == parameters:
        return True
    if overwrite:
        return False
    differ = {k: (found.get(k), v) for k, v in parameters.items() if found.get(k) != v}
    raise ValueError(
        f"{str(target)!r} holds a set generated with other arguments (found, asked for): {differ}. "
        "Pass overwrite=True (--overwrite) to replace it, or use another root."
    )
