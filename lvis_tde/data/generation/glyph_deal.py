"""Which classes are drawn in which image: exact counts, scenes that things are at home in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .records import apportion

__all__ = ["AT_HOME", "choose_classes", "deal"]

# Part of a class's images that show its own scene; the others are drawn from all.
AT_HOME = 0.8
# P(another instance of the same class, given the ones so far), and the most there can be.
ANOTHER = 0.35
MAX_INSTANCES = 6
# An image with so many objects is crowded enough.
MAX_OBJECTS = 16


def choose_classes(
    rng: np.random.Generator, families: Sequence[Sequence[int]], count: int, largest: int
) -> list[int]:
    """Members of whole families, by rank of frequency, each family spread over all ranks.

    Args:
        rng: source of randomness.
        families: the members of each family.
        count: how many to choose.
        largest: at most so many members of one family, as long as the families suffice.

    Returns:
        ``count`` members, the most frequent class first. A family of ``m`` has its members near the
        ranks ``(u + i) / m * count``, so that its rare members look like frequent ones.
    """
    chosen: list[tuple[float, int]] = []
    mixed = [rng.permutation(np.asarray(members)) for members in families]
    mixed = [mixed[i] for i in rng.permutation(len(mixed))]
    parts = [members[:largest] for members in mixed] + [members[largest:] for members in mixed]
    for members in parts:
        members = members[: count - len(chosen)]
        start = rng.random()
        chosen += [((start + i) / len(members), int(m)) for i, m in enumerate(members)]
    return [member for _, member in sorted(chosen)]


def _pick(rng: np.random.Generator, pool: np.ndarray, room: np.ndarray, count: int) -> np.ndarray:
    """``count`` different images of ``pool``, with a chance in proportion to their ``room``."""
    # The smallest of exponential variables with these rates; full images come last.
    keys = rng.exponential(size=len(pool)) / np.maximum(room[pool], 1e-6)
    return pool[np.argsort(keys, kind="stable")[:count]]


def deal(
    rng: np.random.Generator, counts: np.ndarray, homes: np.ndarray, num_images: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Deal classes to images.

    Args:
        rng: source of randomness.
        counts: (C,) number of images of each class, at most ``num_images``.
        homes: (C,) the scene of each class, in [0, S).
        num_images: how many images there are.

    Returns:
        The scene of each image, (N,), and the classes of its objects, back to front. Class ``c``
        is in exactly ``counts[c]`` images, in some of them several times.
    """
    mass = np.bincount(homes, weights=counts)
    # Fewer images than scenes show some of the scenes.
    parts = apportion(mass, max(num_images, len(mass)))
    scenes = rng.permutation(np.repeat(np.arange(len(mass)), parts))[:num_images]
    # Few images show many classes, most show few, as in LVIS; hardly any is empty.
    room = 0.4 + rng.exponential(size=num_images)
    room *= counts.sum() / room.sum()
    contents: list[list[int]] = [[] for _ in range(num_images)]
    for c in rng.permutation(len(counts)):
        home = np.flatnonzero(scenes == homes[c])
        chosen = _pick(rng, home, room, round(AT_HOME * counts[c]))
        others = np.setdiff1d(np.arange(num_images), chosen)
        chosen = np.concatenate([chosen, _pick(rng, others, room, counts[c] - len(chosen))])
        room[chosen] -= 1
        for image in chosen:
            contents[image].append(int(c))
    return scenes, [_with_instances(rng, classes) for classes in contents]


def _with_instances(rng: np.random.Generator, classes: Sequence[int]) -> np.ndarray:
    """Several instances of some classes, in random order."""
    objects = list(classes)
    for c in classes:
        more = 0
        while more + 1 < MAX_INSTANCES and len(objects) < MAX_OBJECTS and rng.random() < ANOTHER:
            objects.append(c)
            more += 1
    return rng.permutation(np.array(objects, dtype=np.int64))
