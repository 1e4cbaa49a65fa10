"""Names of a study's runs, RECIPE/METHOD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...calibration.family import COMPOSITION
from ...calibration.methods import (
    CLASS_MEANS,
    FACTUAL,
    SIGMOID_METHODS,
    SOFTMAX_METHODS,
    TDE_JOINT,
)

__all__ = ["METHODS", "RunNames"]

# All names that a run may end with.
METHODS = tuple(
    dict.fromkeys(
        [
            FACTUAL,
            *(method.name for method in (*SOFTMAX_METHODS, TDE_JOINT, *SIGMOID_METHODS)),
            CLASS_MEANS.name,
            COMPOSITION,
        ]
    )
)


@dataclass(frozen=True)
class RunNames:
    """Names of runs, checked.

    Attributes:
        where: the file.
        known: recipes of the file and its bases.
        chosen: those of them that are trained.
        methods: that are evaluated.
        masks: those whose masks are evaluated.
    """

    where: str
    known: frozenset[str]
    chosen: frozenset[str]
    methods: tuple[str, ...]
    masks: tuple[str, ...]

    def has(self, run: Any, task: str = "bbox") -> bool:
        """Whether its recipe is trained.

        Raises:
            ValueError: if there is no such run, or its method is not evaluated.
        """
        recipe, _, method = run.partition("/") if isinstance(run, str) else ("", "", "")
        if recipe not in self.known or method not in METHODS:
            raise ValueError(
                f"{self.where}: {run!r} is no RECIPE/METHOD of the recipes {sorted(self.known)} "
                f"and the methods {', '.join(METHODS)}"
            )
        if method not in self.methods:
            raise ValueError(f"{self.where}: {run!r} is asked for, but not among methods:")
        if task == "segm" and method not in self.masks:
            raise ValueError(f"{self.where}: masks of {run!r} are asked for, but not in masks:")
        return recipe in self.chosen

    def pair(self, pair: Any) -> tuple[str, str] | None:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{self.where}: a pair is [RUN, OVER], got {pair!r}")
        return (pair[0], pair[1]) if all([self.has(run) for run in pair]) else None
