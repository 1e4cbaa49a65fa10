"""What the steps need to know of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of the foreground classes, (C,) each unless said otherwise; None is unknown.

    Attributes:
        counts: training images (or instances) of each class.
        dimension: fractal dimensions, see :func:`fractal_dimension`.
        mean, std: of the logits of each class over the training regions.
        weight_norms: Euclidean norms of the weights as they enter the logits.
        bias: of a linear classifier; None for none.
        num_images: what FRACAL divides counts by; their sum if None.
        class_means: (C, D) mean features of each class, see :func:`class_means`.
        center: (D,) of the background; None where there is none.
        similarity: of a region to the mean of its class, as a rule, see :func:`class_means`.
    """

    counts: Tensor | Sequence[float] | None = None
    dimension: Tensor | Sequence[float] | None = None
    mean: Tensor | Sequence[float] | None = None
    std: Tensor | Sequence[float] | None = None
    weight_norms: Tensor | Sequence[float] | None = None
    bias: Tensor | Sequence[float] | None = None
    num_images: float | None = None
    class_means: Tensor | None = None
    center: Tensor | None = None
    similarity: float = 0.0


class Known:
    """Looks statistics up for settings that need them."""

    def __init__(self, settings: Any, statistics: Statistics) -> None:
        self.settings, self.statistics = settings, statistics
        self.lengths: dict[str, int] = {}

    def __call__(self, setting: str, name: str) -> Any:
        """
        Raises:
            ValueError: if the statistic is missing, or not of as many classes as the others.
        """
        values = getattr(self.statistics, name)
        if values is None:
            raise ValueError(
                f"{setting}={getattr(self.settings, setting)} needs {name} of the classes: pass "
                f"Statistics({name}=...) or set it to 0."
            )
        self.lengths[name] = len(values)
        if len({*self.lengths.values()}) > 1:
            raise ValueError(f"Statistics of different numbers of classes: {self.lengths}.")
        return values
