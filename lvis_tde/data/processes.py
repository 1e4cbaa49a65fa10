"""Worker processes that do not outlive the process they work for."""

from __future__ import annotations

import multiprocessing
import os
import threading

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Ends this process of :mod:`multiprocessing` when its parent is gone, however that was killed.

    A worker that goes on would get in the way of the run that resumes its work.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a child process"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
