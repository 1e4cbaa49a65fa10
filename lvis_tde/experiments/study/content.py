"""The content of a study file: its keys, and what a file that changes another one means."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["check_opts", "check_words", "listed", "load_content"]

DEFAULTS: dict[str, Any] = {
    "title": "",
    "set": None,
    "seeds": [0],
    "recipes": None,
    "methods": None,
    "masks": ["factual", "tde", "tde_joint", "composition"],
    "pairs": [],
    "orders": [],
    "opts": [],
    "mean_batches": None,
    "curve": None,
}
_FILE_KEYS = (*DEFAULTS, "base", "quick")
# What each unit has its own of, and what says it.
_OWN = {
    "OUTPUT_DIR": "the folder of a unit is below --output",
    "SEED": "seeds: says it",
    "MODEL.ROI_HEADS.NUM_CLASSES": "it is that of the set",
    **{f"DATASETS.{one}": "set: says it" for one in ("TRAIN", "CALIB", "TEST")},
}


def load_content(
    path: Path, quick: bool, above: Sequence[Path] = ()
) -> tuple[dict[str, Any], frozenset[str]]:
    """Reads a study file.

    Args:
        path: of it.
        quick: make the changes under ``quick``.
        above: files that this one is a base of.

    Returns:
        All keys of :data:`DEFAULTS`, those of its bases included, and the names of all recipes,
        chosen or not.

    Raises:
        FileNotFoundError, ValueError: see :func:`~.file.read_study`.
    """
    content = _read(path)
    changes = content.pop("quick", None)
    base, known = dict(DEFAULTS), frozenset[str]()
    if "base" in content:
        other = path.parent / str(content.pop("base"))
        above = (*above, path.resolve())
        if other.resolve() in above:
            raise ValueError(f"{path}: base names the file itself, or one that is based on it")
        base, known = load_content(other, False, above)
        # What makes the other quick may make this one so, too.
        changes = _read(other).get("quick") if changes is None else changes
    known |= frozenset(content["recipes"]) if isinstance(content.get("recipes"), dict) else set()
    content = _changed(base, content, known, str(path))
    if quick:
        if not isinstance(changes, dict):
            raise ValueError(f"{path} has no `quick:`, which says what a quick study is")
        check_words(changes, tuple(DEFAULTS), f"{path}: quick")
        content = _changed(content, changes, known, f"{path}: quick")
    return content, known


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"Study file {path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {str(error).splitlines()[-1]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no keys, so it is no study file.")
    check_words(content, _FILE_KEYS, str(path))
    return content


def _changed(
    base: Mapping[str, Any], changes: Mapping[str, Any], known: frozenset[str], where: str
) -> dict[str, Any]:
    content = copy.deepcopy(dict(base))
    for key, value in changes.items():
        before = content[key]
        if key == "recipes" and isinstance(value, list):
            check_words(value, tuple(before or known), f"{where}: recipes")
            value = {name: recipe for name, recipe in (before or {}).items() if name in value}
        elif key == "recipes" and isinstance(value, dict):
            value = {**(before or {}), **value}
        elif key == "set" and isinstance(value, dict) and isinstance(before, dict):
            value = value if {"kind", "train"} & value.keys() else {**before, **value}
        elif key == "opts":
            value = [*before, *listed(value, "opts", where)]
        content[key] = value
    return content


def check_opts(opts: Sequence[Any], where: str) -> None:
    """
    Raises:
        ValueError: options are no pairs, or have a key that each unit has its own value of.
    """
    if len(opts) % 2 or not all(isinstance(key, str) for key in opts[::2]):
        raise ValueError(f"{where}: opts are KEY, VALUE and so on, got {list(opts)!r}")
    for key, value in zip(opts[::2], opts[1::2]):
        if key in _OWN:
            raise ValueError(f"{where}: {key} {value!r} cannot be given: {_OWN[key]}")


def check_words(words: Any, allowed: Sequence[str], where: str) -> None:
    """
    Raises:
        ValueError: naming the first word that is not allowed, and the nearest that is.
    """
    several = isinstance(words, Iterable) and not isinstance(words, str)
    if not several or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{where} must be a list of names, got {words!r}")
    for word in words:
        if word not in allowed:
            near = difflib.get_close_matches(word, allowed, n=1)
            hint = f": did you mean {near[0]}?" if near else f"; there is {', '.join(allowed)}."
            raise ValueError(f"{where}: {word!r} is unknown{hint}")


def listed(value: Any, key: str, where: str) -> list[Any]:
    """
    Raises:
        ValueError: it is no list.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key} must be a list, got {value!r}")
    return value
