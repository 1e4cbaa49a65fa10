"""The one way in which this package steps into a call of somebody else's module."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["intercepted"]

_lock = threading.Lock()


@contextlib.contextmanager
def intercepted(module: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """While it is open, calls of ``module.name(...)`` become ``function(original, ...)``.

    The module is as before afterwards, also after an error, and interceptions nest. Calls from
    other threads are not intercepted: each may predict with the same model.

    Args:
        module: any object with attributes of its own, such as an ``nn.Module``. Only this instance
            is affected.
        name: of the method.
        function: gets the bound original method first, then the arguments of the call.

    Yields:
        Nothing.

    Raises:
        AttributeError: the module has no such method.
    """
    thread = threading.get_ident()
    with _lock:
        own = vars(module).get(name)
        calls = own if isinstance(own, _Calls) else _Calls(getattr(module, name), own)
        calls.of_thread.setdefault(thread, []).append(function)
        setattr(module, name, calls)
    try:
        yield
    finally:
        with _lock:
            calls.of_thread[thread].pop()
            if not calls.of_thread[thread]:
                del calls.of_thread[thread]
            alone = not calls.of_thread
            if alone and calls.before is None:
                delattr(module, name)
            elif alone:
                setattr(module, name, calls.before)


class _Calls:
    """What stands in the place of a method: each thread's functions, the last opened first."""

    def __init__(self, original: Callable[..., Any], before: Any):
        self.original, self.before = original, before
        self.of_thread: dict[int, list[Callable[..., Any]]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.original
        for function in self.of_thread.get(threading.get_ident(), ()):
            call = functools.partial(function, call)
        return call(*args, **kwargs)
