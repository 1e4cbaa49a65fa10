"""What is in a glyph set: which classes, which objects in which image, which annotations.

Why it is so: :mod:`lvis_tde.data.glyphs`.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..processes import end_with_parent
from .glyph_deal import choose_classes, deal
from .glyph_font import GlyphFont
from .glyph_rendering import Sprite, draw_scene, make_sprite
from .glyph_table import DISTRACTOR, SCENES, THINGS, Glyph, lvis_image_counts, read_glyphs
from .records import SPLITS, annotation_record, federate, image_record, write_annotations

__all__ = ["MAX_CLASSES", "VERSION", "Vocabulary", "choose_vocabulary", "write_set"]

# Raise it with every change of what is generated: sets of another version are not reused.
VERSION = 1
MAX_CLASSES = sum(glyph.family != DISTRACTOR for glyph in read_glyphs())
# With so many members of a family, 200 classes are of about 18 families.
LARGEST_FAMILY = 12
MAX_DISTRACTORS = 60
# Long to short side of an image, and the part that lies on the long one. COCO's images, which are
# LVIS's, have one long side, and 4:3 is the most frequent aspect ratio.
ASPECTS = (4 / 3, 4 / 3, 4 / 3, 3 / 2, 5 / 4)
LANDSCAPE = 0.7


class Vocabulary(NamedTuple):
    """The classes of a set by rank of frequency, and the glyphs that no class covers."""

    classes: list[Glyph]
    distractors: list[Glyph]


def choose_vocabulary(seed: int, num_classes: int) -> Vocabulary:
    """The classes of a set: things, and faces and signs only where things are too few.

    Args:
        seed: of the set.
        num_classes: at most :data:`MAX_CLASSES`.
    """
    glyphs = read_glyphs()
    families: dict[str, list[int]] = {}
    for index, glyph in enumerate(glyphs):
        families.setdefault(glyph.family, []).append(index)
    others = families.pop(DISTRACTOR)
    rng = np.random.default_rng([seed, len(SPLITS)])
    things = [families[family] for family in THINGS]
    if num_classes > sum(map(len, things)):
        things, largest = list(families.values()), len(glyphs)
    else:
        largest = LARGEST_FAMILY
    chosen = choose_classes(rng, things, num_classes, largest)
    # Things of families without a class are what LVIS's images are full of: things not in the list.
    taken = {glyphs[i].family for i in chosen}
    unnamed = [i for family in THINGS if family not in taken for i in families[family]]
    if len(unnamed) < MAX_DISTRACTORS:
        unnamed += others
    others = [int(i) for i in rng.permutation(unnamed)[:MAX_DISTRACTORS]]
    return Vocabulary([glyphs[i] for i in chosen], [glyphs[i] for i in others])


class _Painter:
    """Draws the images of one split and tells the polygons of their objects."""

    def __init__(self, font: str, vocabulary: Vocabulary):
        drawn = GlyphFont(font)
        self.classes = [make_sprite(drawn.draw(g.codepoint)) for g in vocabulary.classes]
        self.distractors = [make_sprite(drawn.draw(g.codepoint)) for g in vocabulary.distractors]

    def __call__(self, file: Path, seed: list[int], plan: _Plan) -> list[list[np.ndarray]]:
        sprites: list[Sprite] = [self.distractors[i] for i in plan.distractors]
        groups = [-1 - i for i in range(len(sprites))]
        # Distractors stand behind the rest, so that they hide nothing.
        sprites += [self.classes[i] for i in plan.classes]
        scene = draw_scene(seed, sprites, [*groups, *plan.classes], plan.size, plan.hue)
        Image.fromarray(scene.image).save(file, quality=92, subsampling=0)
        return scene.polygons[len(groups) :]


class _Plan(NamedTuple):
    classes: list[int]
    distractors: list[int]
    size: tuple[int, int]
    hue: float


def _plan(
    rng: np.random.Generator,
    scenes: np.ndarray,
    contents: Sequence[np.ndarray],
    num_distractors: int,
    side: int,
) -> Iterator[_Plan]:
    """Size, background and distractors of each image of a split."""
    for scene, classes in zip(scenes.tolist(), contents):
        size = round(side / ASPECTS[rng.integers(len(ASPECTS))]), side
        if rng.random() >= LANDSCAPE:
            size = size[::-1]
        # None, one or two; fewer where there are many objects already.
        count = int(rng.integers(0, 3 if len(classes) < 10 else 1))
        distractors = rng.permutation(num_distractors)[:count].tolist()
        yield _Plan(classes.tolist(), distractors, size, 360.0 * scene / len(SCENES))


_painter: _Painter | None = None  # of a process that draws for another one


def _start(font: str, vocabulary: Vocabulary) -> None:
    global _painter
    # Interrupted, the parent ends this process; killed, it cannot, and nothing else would.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    cv2.setNumThreads(1)
    _painter = _Painter(font, vocabulary)


def _paint(task: tuple[Path, list[int], _Plan]) -> list[list[np.ndarray]]:
    assert _painter is not None
    return _painter(*task)


@contextmanager
def _painting(font: GlyphFont, vocabulary: Vocabulary, jobs: int) -> Iterator[Callable]:
    """A ``map`` that draws tasks, in order, in this process or in several."""
    if jobs == 1:
        painter = _Painter(str(font.path), vocabulary)
        yield lambda tasks: (painter(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        jobs, context, initializer=_start, initargs=(str(font.path), vocabulary)
    )
    try:
        yield lambda tasks: pool.map(_paint, tasks, chunksize=32)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "The processes that draw have ended. A script that calls this has to be a file and to "
            'do so under `if __name__ == "__main__":`; or pass jobs=1 (--jobs 1)'
        ) from error
    except ValueError as error:
        # As if it came from here, for whoever shows users' mistakes without the traceback.
        raise ValueError(*error.args) from error
    finally:
        pool.shutdown(cancel_futures=True)


def write_set(folder: Path, parameters: dict[str, Any], font: GlyphFont, jobs: int) -> None:
    """Draw all images of a set and write its files.

    Args:
        folder: where; made here.
        parameters: the arguments of :func:`~lvis_tde.data.glyphs.make_glyph_lvis`, checked.
        font: to draw with.
        jobs: processes to draw in; the files do not depend on it.
    """
    seed = parameters["seed"]
    vocabulary = choose_vocabulary(seed, parameters["num_classes"])
    # Ids follow the alphabet, as in LVIS, so that they tell nothing about frequency.
    names = sorted(glyph.name for glyph in vocabulary.classes)
    category_ids = np.array([names.index(glyph.name) + 1 for glyph in vocabulary.classes])
    places = {family: i for i, families in enumerate(SCENES.values()) for family in families}
    homes = np.array([places[glyph.family] for glyph in vocabulary.classes])
    _, homes = np.unique(homes, return_inverse=True)

    contents, first_image = {}, 1
    with _painting(font, vocabulary, jobs) as paint:
        for index, split in enumerate(SPLITS):
            rng = np.random.default_rng([seed, index])
            number = parameters[f"num_{split}"]
            pairs = round(number * parameters["classes_per_image"])
            if split == "train":
                # A class cannot be in more images than there are.
                counts = np.minimum(lvis_image_counts(len(names), pairs), number)
            else:
                counts = np.full(len(names), pairs // len(names))
            dealt = deal(rng, counts, homes, number)
            side, num_distractors = parameters["image_size"], len(vocabulary.distractors)
            plans = list(_plan(rng, *dealt, num_distractors, side))
            (folder / split).mkdir(parents=True)
            tasks = [
                (folder / split / f"{first_image + i:012d}.jpg", [seed, index, i], plan)
                for i, plan in enumerate(plans)
            ]
            images = []
            annotations: list[dict[str, Any]] = []
            for image_id, (plan, polygons) in enumerate(zip(plans, paint(tasks)), first_image):
                ids = category_ids[plan.classes]
                image, labels = federate(rng, ids, parameters)
                images.append(image_record(image_id, split, plan.size, **image))
                for position in labels:
                    record = annotation_record(polygons[position], image_id, int(ids[position]))
                    annotations.append({"id": len(annotations) + 1, **record})
            contents[split] = images, annotations
            first_image += len(images)
    by_name = {glyph.name: glyph for glyph in vocabulary.classes}
    definitions = [
        f"the emoji U+{by_name[name].codepoint:X} of the family {by_name[name].family}"
        for name in names
    ]
    write_annotations(
        folder,
        list(zip(names, definitions)),
        contents,
        title=f"Long-tailed set of glyphs (font {font.sha256[:12]})",
        version=f"{VERSION}",
        parameters=parameters,
    )
