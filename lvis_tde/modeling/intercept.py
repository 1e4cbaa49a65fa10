"""The one way in which this package steps into a call of somebody else's module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["intercepted"]


@contextlib.contextmanager
def intercepted(module: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """While it is open, calls of ``module.name(...)`` become ``function(original, ...)``.

    The module is as before afterwards, also after an error, and interceptions nest.

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
    original = getattr(module, name)
    before = vars(module).get(name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(original, *args, **kwargs)

    setattr(module, name, call)
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)
