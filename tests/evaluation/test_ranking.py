"""Ranks and Kendall's tau against SciPy, and against cases that can be counted by hand."""

import itertools
import math

import numpy as np
import pytest

from lvis_tde.evaluation.ranking import (
    counted_pairs,
    highest_tau,
    kendall_tau,
    ranks,
    reversed_pairs,
)

ORDER = [["random"], ["eql"], ["rfs"], ["bags", "eqlv2"], ["seesaw"]]


def test_agreement_and_its_opposite():
    rising = {"random": 1.0, "eql": 2.0, "rfs": 3.0, "bags": 4.0, "eqlv2": 4.0, "seesaw": 5.0}
    assert kendall_tau(ORDER, rising) == pytest.approx(1)
    assert kendall_tau(ORDER, {k: -v for k, v in rising.items()}) == pytest.approx(-1)
    # What is tied in the order may be any way around; tau-b then has one pair more to divide by.
    assert kendall_tau(ORDER, {**rising, "eqlv2": 4.5}) == pytest.approx(math.sqrt(14 / 15))
    assert highest_tau(ORDER) == pytest.approx(math.sqrt(14 / 15))
    assert highest_tau([["a"], ["b"]]) == 1
    assert reversed_pairs(ORDER, {**rising, "eqlv2": 4.5}) == []


def test_a_single_pair_counted_by_hand():
    assert kendall_tau([["a"], ["b"]], {"a": 1, "b": 2, "other": 0}) == 1
    assert kendall_tau([["a"], ["b"]], {"a": 2, "b": 1}) == -1
    assert math.isnan(kendall_tau([["a"], ["b"]], {"a": 1, "b": 1}))
    # Three right of three but for one of equal values.
    tau = kendall_tau([["a"], ["b"], ["c"]], {"a": 1, "b": 1, "c": 2})
    assert tau == pytest.approx(2 / math.sqrt(3 * 2))


@pytest.mark.parametrize("seed", range(30))
def test_as_scipy_has_it(seed):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    names = [f"run{i}" for i in range(rng.integers(3, 12))]
    places = rng.integers(0, 6, len(names))
    places[:2] = 0, 5
    order = [[n for n, p in zip(names, places) if p == place] for place in range(6)]
    values = dict(zip(names, rng.integers(0, 6, len(names)).astype(float)))
    expected = stats.kendalltau(places, list(values.values())).statistic
    assert kendall_tau(order, values) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    descending = [-v for v in values.values()]
    assert list(ranks(values).values()) == stats.rankdata(descending).tolist()
    pairs = counted_pairs(order)
    apart = [1 for a, b in itertools.combinations(places, 2) if a != b]
    assert len(pairs) == len(apart)
    wrong = reversed_pairs(order, values)
    assert set(wrong) == {(a, b) for a, b in pairs if values[a] > values[b]}


def test_ranks_of_equals_are_their_mean():
    assert ranks({"a": 3.0, "b": 1.0, "c": 3.0, "d": 2.0}) == {"a": 1.5, "b": 4, "c": 1.5, "d": 3}


def test_orders_and_values_that_do_not_fit():
    values = {"a": 1.0, "b": math.nan, "c": 2.0}
    with pytest.raises(ValueError, match="no value of x, y: .*choose from a, b, c"):
        kendall_tau([["a", "x"], ["y"]], values)
    with pytest.raises(ValueError, match="value of b is not a finite number"):
        kendall_tau([["a"], ["b"]], values)
    with pytest.raises(ValueError, match="value of b is not"):
        ranks(values)
    with pytest.raises(ValueError, match="has a more than once"):
        reversed_pairs([["a"], ["c", "a"]], values)
    for order in ([], [["a"]], [["a", "c"]], [["a"], []]):
        with pytest.raises(ValueError, match="at least two names that are not tied"):
            kendall_tau(order, values)
    with pytest.raises(ValueError, match="at least two names, got a"):
        ranks({"a": 1.0})
