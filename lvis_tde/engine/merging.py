"""Files and overrides into a yacs config, with a message that names key, value and cure.

A key whose default is a float takes any number, ``MODEL.TDE.ALPHA 0`` and ``SOLVER.BASE_LR 1``
among them, in a file and on the command line, in quotes or not; yacs itself refuses an integer.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import difflib
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.config.compat import guess_version
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["config_errors", "imports_kept", "merge_file", "merge_overrides", "warn_of_new_key"]

logger = logging.getLogger(__name__)

# Of a LazyConfig, what is read where it is there.
_OPTIONAL = ("precise_mean", "inference_dtype", "seed", "cudnn_benchmark", "float32_precision")


@contextlib.contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Errors in a config as :class:`ValueError` that names where it is.

    Files that are not there, and messages of this package, stay as they are.
    """
    try:
        yield
    except (FileNotFoundError, _Told):
        raise
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deep, or is its own _BASE_.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is no text, so it is no config. Are --config-file and the weights swapped?"
        ) from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = "" if place is None else f", line {place.line + 1}"
        reason = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise ValueError(f"{where} is no valid YAML{line}: {reason}.") from error
    except (OmegaConfBaseException, SyntaxError, ImportError, NameError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{where}: {type(error).__name__}: {reason}") from error
    except (AssertionError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        reason = str(error.args[0]) if error.args else ""
        reason = next(iter(reason.splitlines()), "") or type(error).__name__
        raise ValueError(f"{where}: {reason[:300]}") from error


@contextlib.contextmanager
def imports_kept() -> Iterator[None]:
    """Python's import as it was, also after a LazyConfig that cannot be loaded.

    Detectron2 replaces it for the file, and puts it back only if all goes well.
    """
    before = builtins.__import__
    try:
        yield
    finally:
        builtins.__import__ = before


class _Told(ValueError):
    """Says all that there is to say."""


def merge_file(cfg: CfgNode, path: str) -> None:
    """Merges a yacs file, with the files that its ``_BASE_`` names.

    Raises:
        FileNotFoundError: it, or a base of it, does not exist.
        ValueError: it is none, or a key or value is wrong.
    """
    with config_errors(path):
        loaded = CfgNode.load_yaml_with_base(path, allow_unsafe=True)
        if not isinstance(loaded, dict):
            raise _Told(f"{path} holds no keys, so it is no config.")
        loaded = CfgNode(loaded)
        _convert(loaded, cfg, path)
        if (loaded.get("VERSION") or guess_version(loaded, path)) != cfg.VERSION:
            cfg.merge_from_file(path)  # of an older release, which Detectron2 converts
            return
        cfg.merge_from_other_cfg(loaded)


def merge_overrides(cfg: CfgNode, overrides: Sequence[Any]) -> None:
    """Merges "KEY", "VALUE" and so on.

    Raises:
        ValueError: a key is unknown, or a value is of the wrong kind.
    """
    overrides = list(overrides)
    if len(overrides) % 2:
        raise ValueError(
            f'Overrides of a yacs config are pairs "KEY VALUE", but {overrides[-1]!r} is one of '
            f"{len(overrides)} words: a value is missing, or there is one too many."
        )
    for key, value in zip(overrides[::2], overrides[1::2]):
        with config_errors(f"{key} {value}"):
            if not isinstance(key, str):
                raise _Told(f"{key!r} is no key of a config.")
            *path, last = key.split(".")
            node: Any = cfg
            for part in path:
                node = node.get(part) if isinstance(node, CfgNode) else None
            known = isinstance(node, CfgNode) and last in node
            if not known and not (cfg.key_is_deprecated(key) or cfg.key_is_renamed(key)):
                raise _Told(f"{key} is no key of the config{_nearest(key, cfg)}.")
            if known and isinstance(node[last], CfgNode):
                raise _Told(f"{key} is a group of keys: name one of {', '.join(node[last])}.")
            if known and isinstance(node[last], float):
                value = _number(key, value)
            cfg.merge_from_list([key, value])


def warn_of_new_key(cfg: DictConfig, override: str) -> None:
    """Tells of an override of a LazyConfig whose key nothing may ever read.

    What is called with its keys refuses one that it does not know, so only other groups are looked
    at.

    Args:
        cfg: before the override.
        override: "key=value".
    """
    key = override.partition("=")[0].lstrip("+")
    node: Any = cfg
    *path, last = key.split(".")
    for part in path:
        node = OmegaConf.select(node, part) if isinstance(node, DictConfig) else None
        if isinstance(node, DictConfig) and "_target_" in node:
            return
    names = list(map(str, node)) if isinstance(node, DictConfig) else []
    names += _OPTIONAL if path == ["train"] else ()
    if last not in names:
        near = difflib.get_close_matches(last, names, n=1)
        meant = f": did you mean {'.'.join([*path, near[0]])}?" if near else "."
        logger.warning("%s is no key of the config, so nothing may read it%s", key, meant)


def _convert(loaded: CfgNode, known: CfgNode, where: str, prefix: str = "") -> None:
    """Numbers of what is loaded as the defaults have them."""
    for key in loaded:
        default, value, name = known.get(key), loaded[key], f"{prefix}{key}"
        if isinstance(default, CfgNode) and isinstance(value, CfgNode):
            _convert(value, default, where, f"{name}.")
        elif isinstance(default, CfgNode):
            raise _Told(f"{where}: {name} is a group of keys, not {value!r}.")
        elif isinstance(default, float):
            loaded[key] = _number(name, value, f"{where}: ")


def _number(key: str, value: Any, where: str = "") -> float:
    found = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(value)
        if isinstance(found, str):  # such as "inf", or quotes within quotes
            with contextlib.suppress(ValueError):
                found = float(found)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or math.isnan(found):
        raise _Told(f"{where}{key} takes a number, got {value!r}.")
    try:
        return float(found)
    except OverflowError:
        raise _Told(f"{where}{key} takes a number, got one that is too large.") from None


def _nearest(key: str, cfg: CfgNode) -> str:
    near = difflib.get_close_matches(key, list(_keys(cfg)), n=1)
    return f": did you mean {near[0]}" if near else ""


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
