"""Files that are whole or not there: the one way in which this package writes what matters."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["atomic_path", "write_text"]


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to, which takes the name ``path`` when the block ends well.

    Readers see the old file or the complete new one, whatever ends the process. After an error the
    old file stays and the temporary one is removed.

    Args:
        path: the final name. Folders above it are made.

    Yields:
        A path in the same folder.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        # mkstemp's files are private; this one has the permissions of any new file.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file as :func:`atomic_path` does.

    Args:
        path: the file.
        text: its whole content.
    """
    with atomic_path(path) as partial:
        partial.write_text(text, "utf-8")
