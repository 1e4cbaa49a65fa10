"""Orders of methods: ranks, and how far a published order agrees with measured values.

Kendall's tau-b counts pairs. Of the pairs that an order tells apart it is the share that the values
have the same way around minus the share that they have the other way, corrected for ties.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["counted_pairs", "highest_tau", "kendall_tau", "ranks", "reversed_pairs"]

Order = Sequence[Sequence[str]]


def counted_pairs(order: Order) -> list[tuple[str, str]]:
    """The pairs that an order tells apart, each as (worse, better).

    Args:
        order: lists of names, worst first; names of one inner list are tied.

    Raises:
        ValueError: a name comes twice, or nothing is told apart.
    """
    names = [name for tied in order for name in tied]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"an order has {', '.join(sorted(twice))} more than once")
    pairs = [
        (worse, better)
        for low, high in itertools.combinations(order, 2)
        for worse in low
        for better in high
    ]
    if not pairs:
        raise ValueError(
            f"an order needs at least two names that are not tied, got {[list(t) for t in order]}"
        )
    return pairs


def _differences(order: Order, values: Mapping[str, float]) -> dict[tuple[str, str], float]:
    pairs = counted_pairs(order)
    names = [name for tied in order for name in tied]
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(
            f"there is no value of {', '.join(missing)}: leave them out of the order, or choose "
            f"from {', '.join(values)}"
        )
    undefined = [name for name in names if not math.isfinite(values[name])]
    if undefined:
        raise ValueError(f"the value of {', '.join(undefined)} is not a finite number")
    return {(worse, better): values[better] - values[worse] for worse, better in pairs}


def kendall_tau(order: Order, values: Mapping[str, float]) -> float:
    """Kendall's tau-b between an order and values.

    Args:
        order: lists of names, worst first; pairs within an inner list, which are tied, do not
            count.
        values: of each name, more is better; others than those of the order are not looked at.

    Returns:
        1 if the values have the order, its ties included, -1 if they have the opposite, NaN if all
        of them are equal. For the values that differ where the order has ties see
        :func:`highest_tau`.

    Raises:
        ValueError: a name comes twice or has no finite value, or nothing is told apart.
    """
    found = _differences(order, values)
    agreement = sum(np.sign(difference) for difference in found.values())
    names = [name for tied in order for name in tied]
    apart = sum(values[a] != values[b] for a, b in itertools.combinations(names, 2))
    return float(agreement / math.sqrt(len(found) * apart)) if apart else math.nan


def highest_tau(order: Order) -> float:
    """The most that :func:`kendall_tau` can be for values of which no two are equal.

    Args:
        order: see :func:`kendall_tau`.

    Returns:
        1 for an order without ties.

    Raises:
        ValueError: a name comes twice, or nothing is told apart.
    """
    names = sum(len(tied) for tied in order)
    return math.sqrt(len(counted_pairs(order)) / math.comb(names, 2))


def reversed_pairs(order: Order, values: Mapping[str, float]) -> list[tuple[str, str]]:
    """The pairs (worse, better) of an order that the values have the other way around.

    Args:
        order, values: see :func:`kendall_tau`. Pairs of equal values are not reversed.

    Raises:
        ValueError: see :func:`kendall_tau`.
    """
    return [pair for pair, gain in _differences(order, values).items() if gain < 0]


def ranks(values: Mapping[str, float]) -> dict[str, float]:
    """The rank of each name, 1 for the most; of equal values each has the mean of their ranks.

    Args:
        values: of one metric, for at least two names.

    Raises:
        ValueError: there are fewer than two, or one is not finite.
    """
    if len(values) < 2:
        raise ValueError(f"ranks need at least two names, got {', '.join(values) or 'none'}")
    array = np.array(list(values.values()), dtype=float)
    if not np.isfinite(array).all():
        undefined = [name for name, value in values.items() if not math.isfinite(value)]
        raise ValueError(f"the value of {', '.join(undefined)} is not a finite number")
    above = (array[None, :] > array[:, None]).sum(1)
    equal = (array[None, :] == array[:, None]).sum(1)
    return dict(zip(values, (above + (equal + 1) / 2).tolist()))
