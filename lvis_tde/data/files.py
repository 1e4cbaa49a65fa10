"""Files that are whole or not there: the one way in which this package writes what matters."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = [
    "atomic_path",
    "existing_parent",
    "free_space",
    "write_bytes",
    "write_text",
    "write_with",
]

try:
    import fcntl
except ImportError:  # no POSIX: then nothing is tidied
    fcntl = None  # type: ignore[assignment]

# Seconds after which a file that nobody holds is one of a process that is gone.
_ABANDONED = 60
# A full disk, a full quota, and a limit on the size of files.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def existing_parent(path: str | os.PathLike[str]) -> Path:
    """The path itself if something is there, else the lowest folder above it that is."""
    path = Path(os.path.abspath(path))
    return next(one for one in (path, *path.parents) if os.path.lexists(one))


def free_space(path: str | os.PathLike[str]) -> int:
    """Bytes that can be written at a path, whether or not it is there."""
    return shutil.disk_usage(existing_parent(path)).free


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, tidy: bool = False) -> Iterator[Path]:
    """A temporary path to write to, which takes the name ``path`` when the block ends well.

    Readers see the old file or the complete new one, whatever ends the process. After an error the
    old file stays and the temporary one is removed.

    Args:
        path: the final name. Folders above it are made. A link stays one: what it points to is
            written.
        tidy: remove what processes have left behind that were killed while they wrote it, for files
            that are large.

    Yields:
        A path in the same folder as the file.

    Raises:
        OSError: the folder cannot be made or written to, or there is no space; the message names
            ``path``, and where it is full what is free there.
    """
    path, final = Path(path), Path(os.path.realpath(path))
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=final.parent
        )
    except OSError as error:
        raise _named(error, path) from error
    partial = Path(name)
    try:
        _lock(handle)
        if tidy:
            _remove_abandoned(final.parent, f".{glob.escape(path.name)}.*")
        yield partial
        # What the system still holds back may not fit either.
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp's files are private; this one has the permissions of any new file.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        os.replace(partial, final)
    except OSError as error:
        # Others, such as that a file that is read in the block is missing, say all themselves.
        if error.errno in _FULL or error.filename in (str(partial), partial):
            raise _named(error, path) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
        os.close(handle)  # and the lock


def _lock(handle: int) -> bool:
    """Whether it is this process's until the handle is closed, however the process ends."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another's, or a file system without locks
        return False
    return True


def _remove_abandoned(folder: Path, pattern: str) -> None:
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            # A new one has no lock yet.
            if time.time() - os.fstat(file.fileno()).st_mtime > _ABANDONED and _lock(file.fileno()):
                left.unlink()


def _named(error: OSError, path: Path) -> OSError:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        with contextlib.suppress(OSError):
            reason += f" ({free_space(path) / 1e6:,.1f} MB free there)"
    kept = "what was there is kept" if path.exists() else "nothing was written"
    return type(error)(error.errno, f"cannot be written: {reason}; {kept}", str(path))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file as :func:`atomic_path` does.

    Args:
        path: the file.
        text: its whole content.
    """
    with atomic_path(path) as partial:
        partial.write_text(text, "utf-8")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file as :func:`atomic_path` does.

    Args:
        path: the file.
        content: all of it.
    """
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_with(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Writes a file as :func:`atomic_path` does.

    Args:
        path: the file.
        write: writes it to the path that it is given, which has the same ending.
    """
    with atomic_path(path) as partial:
        write(partial)
