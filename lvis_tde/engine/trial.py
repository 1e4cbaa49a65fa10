"""A model that is built to see whether it can be, without memory for its numbers."""

from __future__ import annotations

import contextlib
import functools
import logging
import traceback
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from .recipes import Recipe

__all__ = ["TrialModel", "building", "is_ours", "quiet"]


class TrialModel:
    """The model of a recipe without numbers, built once."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe

    @functools.cached_property
    def built(self) -> nn.Module:
        """
        Raises:
            ValueError: the config builds none.
        """
        with quiet():
            with contextlib.suppress(Exception):  # some constructors compute, which needs numbers
                return self._on("meta")
            with building("model"):
                return self._on("cpu")
        raise AssertionError

    def _on(self, device: str) -> nn.Module:
        recipe = self._recipe.clone()
        recipe.device = device
        state = torch.get_rng_state()
        with torch.device(device):
            model = recipe.build_model()
        torch.set_rng_state(state)
        return model


@contextlib.contextmanager
def building(what: str) -> Iterator[None]:
    """Errors of others as one that says what the config does not give."""
    try:
        yield
    except Exception as error:
        if is_ours(error):
            raise
        reason = next(iter(str(error.args[0] if error.args else error).splitlines()), "")
        raise ValueError(
            f"the config gives no {what} ({type(error).__name__}: {reason[:300]})"
        ) from error


def is_ours(error: Exception) -> bool:
    """Whether it is a message of this package, which says all."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    ours = frame.f_globals.get("__name__", "").startswith("lvis_tde.")
    return ours and isinstance(error, ValueError)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What a check finds is told in its own words."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
