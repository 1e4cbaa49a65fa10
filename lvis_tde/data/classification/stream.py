"""Which images a batch of an endless stream has: a function of the seed and its number alone."""

from __future__ import annotations

import functools

import numpy as np

__all__ = ["Stream", "random_of"]


def random_of(*numbers: int) -> np.random.Generator:
    """A generator for what these numbers, >= 0, name."""
    return np.random.default_rng(numbers)


@functools.lru_cache(maxsize=4)
def _shuffled(seed: int, number: int, size: int) -> np.ndarray:
    return random_of(seed, 0, number).permutation(size)


class Stream:
    """Batches of indices, over all processes: ``stream[k]`` is batch k, (B,) int64 in [0, N)."""

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int, *, balanced: bool = False):
        """
        Args:
            labels: (N,) int64, N >= 1.
            batch_size: B.
            seed: >= 0.
            balanced: draw a class, each with equal chance, and one of its images (class-balanced
                sampling); otherwise one shuffled pass over the set follows the other.
        """
        self._size, self._batch_size, self._seed = len(labels), batch_size, seed
        self._balanced = balanced
        self._by_class = np.argsort(labels, kind="stable")
        counts = np.bincount(labels)
        self._present = np.flatnonzero(counts)
        self._counts = counts[self._present]
        self._first = np.cumsum(self._counts) - self._counts

    def __getitem__(self, number: int) -> np.ndarray:
        if self._balanced:
            random = random_of(self._seed, 1, number)
            drawn = random.integers(len(self._present), size=self._batch_size)
            return self._by_class[self._first[drawn] + random.integers(self._counts[drawn])]
        begin, end = number * self._batch_size, (number + 1) * self._batch_size
        passes = range(begin // self._size, (end - 1) // self._size + 1)
        stream = np.concatenate([_shuffled(self._seed, one, self._size) for one in passes])
        return stream[begin - passes[0] * self._size :][: self._batch_size]
