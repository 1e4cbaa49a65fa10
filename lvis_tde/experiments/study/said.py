"""What a config says of a training, without where and how it runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import yaml

from ...engine import load_config

__all__ = ["said"]

# What says where and how a unit runs, not what is trained; by CALIB_METRIC a checkpoint is kept
# beside the last one, which is the unit's.
_ASIDE = ("OUTPUT_DIR", "DEVICE", "CHECKPOINT_PERIOD", "CALIB_METRIC")


@functools.cache
def said(text: str) -> dict[str, Any]:
    """Keys and values of a config that say what is trained: those that are not the defaults.

    So a key that a later release adds changes nothing.
    """
    defaults = _defaults()
    return {
        key: value
        for key, value in _flat(yaml.safe_load(text)).items()
        if key.rpartition(".")[2] not in _ASIDE and (key not in defaults or defaults[key] != value)
    }


@functools.cache
def _defaults() -> dict[str, Any]:
    return _flat(yaml.safe_load(load_config().dump()))


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
