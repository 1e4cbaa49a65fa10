"""Checkpoints: read without running code from them, written whole or not at all.

A checkpoint is a pickle, and a pickle can run any code. Tensors, numbers, texts, lists and arrays
are read with an unpickler that knows nothing else. What holds more is refused with a message that
names it, before anything of it is run; who trusts its origin sets ``LVIS_TDE_TRUST_CHECKPOINTS=1``.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import io
import logging
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn

from .data.files import atomic_path, free_space, write_text

__all__ = ["SafeCheckpointer", "load_weights", "read_checkpoint", "save_checkpoint"]

logger = logging.getLogger(__name__)

TRUST = "LVIS_TDE_TRUST_CHECKPOINTS"
_CURE = "Name the checkpoint that a training wrote (model_final.pth), or a file of a model zoo"


def read_checkpoint(path: str | os.PathLike[str], *, lazily: bool = False) -> dict[str, Any]:
    """What a checkpoint file holds, without running code from it.

    Args:
        path: a file of ``torch.save``, or a pickle of arrays (.pkl), as in Detectron2's model zoo.
        lazily: leave the numbers on disk until they are used, where the format allows it.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is something else, damaged, or needs code; the message names path and cure.
    """
    path = os.fspath(path)
    start = _start(path)
    trusted = os.environ.get(TRUST) == "1"
    try:
        with _arrays_allowed():
            if path.endswith(".pkl"):
                found = _read_pickle(path, trusted)
            else:
                found = torch.load(
                    path,
                    map_location="cpu",
                    weights_only=not trusted,
                    mmap=lazily and start.startswith(b"PK"),
                )
    except Exception as error:  # damaged files raise anything, a MemoryError for a wild length, too
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise ValueError(
                f"{path} holds more than numbers and texts ({code[1]}), so that reading it runs "
                f"code. Nothing was run. If you trust its origin, set {TRUST}=1."
            ) from error
        _, _, reason = str(error).rpartition("WeightsUnpickler error: ")
        reason = next(iter(reason.splitlines()), "") or type(error).__name__
        raise ValueError(
            f"{path} is truncated or damaged, or no checkpoint ({reason[:200]}). {_CURE}; if this "
            "is one, copy or download it again."
        ) from error
    weights = found.get("model", found) if isinstance(found, dict) else None
    if not isinstance(weights, Mapping) or not any(
        isinstance(value, (Tensor, np.ndarray, Mapping)) for value in weights.values()
    ):
        raise ValueError(f"{path} holds no weights, but a {type(found).__name__}. {_CURE}.")
    return found


def _start(path: str) -> bytes:
    """The first bytes of a file that may be a checkpoint."""
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder, no checkpoint. {_CURE}.")
    with open(path, "rb") as file:
        start = file.read(200)
    if not start:
        raise ValueError(f"{path} is empty, so it is no checkpoint. {_CURE}.")
    if not start.startswith((b"PK\x03\x04", b"\x80")) and b"\0" not in start:
        with contextlib.suppress(UnicodeDecodeError):
            text = start[:60].decode("utf-8").strip().split("\n")[0]
            if text.isprintable() and not path.endswith(".pkl"):
                raise ValueError(f"{path} is a text file ({text!r} ...), no checkpoint. {_CURE}.")
    return start


def _reconstructors() -> list[Any]:
    # NumPy's own names of them have changed; a pickle shows where they are.
    return [np.array([1.0]).__reduce__()[0], np.float64(1).__reduce__()[0]]


@contextlib.contextmanager
def _arrays_allowed() -> Iterator[None]:
    """NumPy's arrays and numbers are no code; torch before 2.5 cannot be told so."""
    allow = getattr(torch.serialization, "safe_globals", None)
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    # As earlier releases of NumPy wrote them.
    old = [(one, f"numpy.core.multiarray.{one.__name__}") for one in _reconstructors()]
    names: list[Any] = [*_reconstructors(), *old, bytes, np.ndarray, np.dtype, *kinds]
    with contextlib.nullcontext() if allow is None else allow(names):
        yield


class _ArrayUnpickler(pickle.Unpickler):
    """Knows arrays and containers, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {one.__name__: one for one in _reconstructors()}
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in known:
            return known[name]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("_codecs", "encode"):
            return _latin
        if name == "bytes" and module in ("builtins", "__builtin__"):
            return bytes  # of an empty array
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _latin(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _read_pickle(path: str, trusted: bool) -> Any:
    with open(path, "rb") as file:
        unpickler = pickle.Unpickler if trusted else _ArrayUnpickler
        return unpickler(file, encoding="latin1").load()


class _SafeReader(Checkpointer):
    """What :class:`DetectionCheckpointer` calls to read a ``.pth`` file."""

    lazily = False

    def _load_file(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f, lazily=self.lazily)


class SafeCheckpointer(DetectionCheckpointer, _SafeReader):
    """Detectron2's checkpointer, which runs no code and leaves no half files.

    Attributes:
        incompatible: after :meth:`load`, what did not fit, as fvcore reports it.
    """

    incompatible: Any = None

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        if "://" in self.save_dir:  # a storage that PathManager knows
            super().save(name, **kwargs)
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        states = {key: one.state_dict() for key, one in self.checkpointables.items()}
        _write(path, {"model": self.model.state_dict(), **states, **kwargs})
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
        else:
            write_text(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """
        Raises:
            FileNotFoundError: there is none at ``path``.
            ValueError: see :func:`read_checkpoint`; or what it holds is not what the model, the
                optimizer or another part takes.
        """
        known = (KeyError, TypeError, AttributeError, AssertionError, IndexError, RuntimeError)
        try:
            return super().load(path, *args, **kwargs)
        except (*known, ValueError) as error:
            if type(error).__name__ == "OutOfMemoryError":
                raise
            if isinstance(error, ValueError) and path in str(error):
                raise
            if isinstance(error, AssertionError) and "not found" in str(error):
                raise FileNotFoundError(errno.ENOENT, "does not exist", path) from error
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ValueError(
                f"{path} cannot be loaded into this model: {reason[:300]}. Is it the config that "
                "it was trained with?"
            ) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):
            read_checkpoint(filename)  # Detectron2 reads these itself, with an unpickler that runs
        return super()._load_file(filename)

    def _load_model(self, checkpoint: Any) -> Any:
        if not isinstance(checkpoint.get("model"), dict):
            checkpoint["model"] = dict(checkpoint["model"])
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


def load_weights(
    model: nn.Module, path: str, *, lazily: bool = False
) -> tuple[list[str], list[str]]:
    """Loads what a checkpoint has of a model.

    Args:
        model: changed; one on the device "meta" only learns whether the shapes fit.
        path: as Detectron2's checkpointer takes it.
        lazily: see :func:`read_checkpoint`.

    Returns:
        (names of the model's parameters that stay as they were, names of the checkpoint's entries
        that have another shape in the model)

    Raises:
        FileNotFoundError, ValueError: see :meth:`SafeCheckpointer.load`.
    """
    checkpointer = SafeCheckpointer(model)
    checkpointer.lazily = lazily
    checkpointer.load(path)
    parameters = {name for name, _ in model.named_parameters()}
    lacking = sorted(parameters.intersection(checkpointer.incompatible.missing_keys))
    return lacking, [name for name, *_ in checkpointer.incompatible.incorrect_shapes]


def save_checkpoint(model: nn.Module, path: str | os.PathLike, **extra: Any) -> None:
    """Writes a checkpoint that Detectron2 loads, under its final name only when it is complete.

    Args:
        model: its weights are stored under "model".
        path: the file to write.
        **extra: further entries.

    Raises:
        OSError: it cannot be written; the message names the path and the space. An old file stays.
    """
    _write(path, {"model": model.state_dict(), **extra})


class _Sink(io.RawIOBase):
    """Takes all that it is given, and keeps the first error for later.

    torch's writer is C++ and ends the process if it cannot write.
    """

    def __init__(self, file: Any):
        self._file, self.size = file, 0
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.failure = error
        length = memoryview(data).nbytes
        self.size += length
        return length


def _write(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    needed, free = _bytes_of(content), free_space(Path(path).parent)
    if free < needed:
        space = f"it takes {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free"
        raise OSError(errno.ENOSPC, f"cannot be written: {space}; an old one is kept", str(path))
    with atomic_path(path, tidy=True) as partial:
        with open(partial, "wb") as file:
            sink = _Sink(file)
            torch.save(content, sink)  # type: ignore[arg-type]
            if sink.failure is not None:
                raise sink.failure
        size = os.path.getsize(partial)
        if size != sink.size:
            raise OSError(errno.EIO, f"{size} of {sink.size} bytes were written", str(partial))


def _bytes_of(content: Any) -> int:
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(_bytes_of, content.values()))
    return sum(map(_bytes_of, content)) if isinstance(content, (list, tuple)) else 0
