"""Records of a training set, read once for all processes of a machine.

As Python objects the annotations of LVIS v1 take 6 GB while they are read, and a process that keeps
them for itself another one. So one process of a machine reads them, and all use one file.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch.utils.data import Dataset

__all__ = ["Records", "brief", "load_once"]

logger = logging.getLogger(__name__)

_SHAPE = ("file_name", "width", "height")


class Records(Dataset):
    """Dicts that are unpickled from a file whenever they are asked for.

    Args:
        path: the file; it may be removed once this exists.
        ends: (I,) int64, where in it each record ends.
    """

    def __init__(self, path: str, ends: np.ndarray) -> None:
        self._ends = ends
        # An empty file cannot be mapped.
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r") if len(ends) else np.empty(0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        begin = int(self._ends[index - 1]) if index else 0
        return pickle.loads(self._bytes[begin : int(self._ends[index])].data)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


def load_once(
    load: Callable[[], list[dict[str, Any]]], names: Sequence[str]
) -> list[dict[str, Any]] | Records:
    """Calls ``load`` in one process of each machine, and gives all of them what it returns.

    Every process must call it. Where it fails, or the file has no room in the folder for temporary
    files, each process loads for itself.

    Args:
        load: gives the records.
        names: of the data sets whose metadata ``load`` may add to.

    Returns:
        The list itself where a process is alone on its machine.
    """
    hosts = comm.all_gather(socket.gethostname())
    mine, rank = hosts[comm.get_rank()], comm.get_rank()
    leader, alone = hosts.index(mine), hosts.count(mine) == 1
    shared: tuple[str, Any, Any] = ("", None, None)
    if rank == leader and not alone:
        shared = _shared(load, names)
    path, ends, added = comm.all_gather(shared)[leader]
    found = None
    if path and os.path.exists(path):
        found = Records(path, ends)
        for name, metadata in added.items():
            MetadataCatalog.get(name).set(**metadata)
    comm.synchronize()
    if path and rank == leader:
        os.unlink(path)
    return load() if found is None else found


def _shared(load: Callable, names: Sequence[str]) -> tuple[str, Any, Any]:
    """The file, where each record ends, and what the metadata have since; "" if it failed."""
    before = {name: set(MetadataCatalog.get(name).as_dict()) for name in names}
    path = ""
    try:
        records = load()
        handle, path = tempfile.mkstemp(prefix="lvis_tde_records_")
        with os.fdopen(handle, "wb") as file:
            sizes = [file.write(pickle.dumps(record, protocol=-1)) for record in records]
    except Exception as error:  # what it is, each process finds for itself
        logger.warning("Each process reads the training set for itself: %s", error)
        if path:
            os.unlink(path)
        return "", None, None
    added = {
        name: {
            k: v for k, v in MetadataCatalog.get(name).as_dict().items() if k not in before[name]
        }
        for name in names
    }
    logger.info("%d records in %.0f MB, once for all processes.", len(sizes), sum(sizes) / 1e6)
    return path, np.cumsum(sizes, dtype=np.int64), added


def brief(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What samplers ask of records: shapes of the images, and which classes they show.

    Args:
        records: in Detectron2's format.

    Returns:
        Of each the class of every object, and what is known of its file and shape.
    """
    objects: dict[int, dict[str, int]] = {}  # one for each class, which all records share
    return [
        {
            **{key: record[key] for key in _SHAPE if key in record},
            "annotations": [
                objects.setdefault(one["category_id"], {"category_id": one["category_id"]})
                for one in record.get("annotations", ())
            ],
        }
        for record in records
    ]
