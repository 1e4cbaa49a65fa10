"""The official ``lvis`` package as a private copy that changes nothing outside itself.

``import lvis`` calls ``logging.basicConfig``, imports OpenCV and Matplotlib for its viewer, and
its release 0.5.3 uses ``np.float``, which NumPy 1.24 removed (the repaired branch on GitHub has the
same version number, so the version cannot tell them apart). Here the three modules that evaluate
are executed below a package name of our own, with their absolute imports of ``lvis.*`` redirected
to it and with a NumPy stand-in of their own. NumPy, the root logger and a ``lvis`` that the user
imports himself stay as they are.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

_PRIVATE = "lvis_tde.evaluation._lvis"
_MODULES = ("lvis", "results", "eval")
_lock = threading.RLock()
_loaded: SimpleNamespace | None = None


class _NumpyWithFloat(ModuleType):
    """NumPy's names, and the ``float`` alias that NumPy 1.24 removed."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _source_folder() -> Path:
    # find_spec of a top-level package locates it without executing it.
    spec = importlib.util.find_spec("lvis")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "engine 'lvis' needs the official package: pip install lvis==0.5.3, "
            "or use engine 'native'"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _redirected_import(name, globals=None, locals=None, fromlist=(), level=0):
    package, _, module = name.partition(".")
    if level == 0 and package == "lvis" and module in _MODULES and fromlist:
        return sys.modules[f"{_PRIVATE}.{module}"]
    return builtins.__import__(name, globals, locals, fromlist, level)


def load_official() -> SimpleNamespace:
    """Load the official evaluation code, once.

    Returns:
        Namespace with the installed package's classes ``LVIS``, ``LVISResults`` and ``LVISEval``.

    Raises:
        ImportError: the package ``lvis`` is not installed.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _load()
    return _loaded


def _load() -> SimpleNamespace:
    folder = _source_folder()
    private = {**vars(builtins), "__import__": _redirected_import}
    modules: dict[str, Any] = {}
    for name in _MODULES:
        path = folder / f"{name}.py"
        module = ModuleType(f"{_PRIVATE}.{name}")
        module.__file__ = str(path)
        module.__package__ = _PRIVATE
        module.__dict__["__builtins__"] = private
        # Registered so that objects of these classes can be copied and pickled.
        sys.modules[module.__name__] = module
        exec(compile(path.read_text("utf-8"), str(path), "exec"), module.__dict__)
        modules[name] = module
    modules["eval"].np = _NumpyWithFloat("numpy")
    return SimpleNamespace(
        LVIS=modules["lvis"].LVIS,
        LVISResults=modules["results"].LVISResults,
        LVISEval=modules["eval"].LVISEval,
    )
