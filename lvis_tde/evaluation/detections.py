"""Detections as columns: about 150 bytes each instead of a thousand in dicts.

Names: D detections. Their masks are one blob of compressed COCO counts.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.masks import type_fault
from .errors import complain
from .result_file import is_compressed, named, numbers, objects

_ROWS = 20000


@dataclass
class Detections:
    """Columns of D detections.

    Attributes:
        image_ids: (D,) int64, or object for ids that are no such integers.
        category_ids: (D,) integer or object; ids of the annotation file.
        scores: (D,) float32 or float64.
        boxes: (D, 4) float, (x, y, width, height); any value where ``has_box`` is False.
        has_box: (D,) bool.
        counts: uint8, the compressed RLE counts of all detections behind each other.
        lengths: (D,) int32, bytes of ``counts`` per detection; 0 without a compressed RLE.
        sizes: (D, 2) int32, height and width of the masks.
        others: detection to its segmentation, where that is no compressed RLE (polygons, plain
            counts).
        mask_area: what decides a detection's size in mask evaluation: True the mask, as Detectron2
            has it; False the box where there is one, as ``lvis`` has it.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    has_box: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray
    others: dict[int, Any] = field(default_factory=dict)
    mask_area: bool = False

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def has_mask(self) -> np.ndarray:
        """(D,) bool, which have a mask."""
        found = self.lengths > 0
        if self.others:
            found[list(self.others)] = True
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(v.nbytes for v in vars(self).values() if isinstance(v, np.ndarray))

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """(D,) int64, where in ``counts`` each detection begins."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    def segmentations(self, index: np.ndarray) -> list[Any]:
        """Segmentations of some detections.

        Args:
            index: (K,) which detections.

        Returns:
            K entries: compressed RLE dicts, what was given in another form, or None.
        """
        start, length = self.offsets[index], self.lengths[index]
        blob = self.counts.data
        out: list[Any] = []
        for i, a, n, size in zip(
            index.tolist(), start.tolist(), length.tolist(), self.sizes[index].tolist()
        ):
            if n:
                out.append({"size": size, "counts": bytes(blob[a : a + n])})
            else:
                out.append(self.others.get(i))
        return out

    def results(self, boxes: bool = True) -> Iterator[dict[str, Any]]:
        """The detections as result dicts in COCO's format, one at a time.

        Args:
            boxes: with their boxes.

        Yields:
            Dicts that ``json`` can write.
        """
        for start in range(0, len(self), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(self)))
            columns = (self.image_ids, self.category_ids, self.boxes, self.has_box, self.scores)
            lists = [column[rows].tolist() for column in columns]
            for image, category, box, has_box, score, mask in zip(*lists, self.segmentations(rows)):
                result = {"image_id": image, "category_id": category}
                if has_box and boxes:
                    result["bbox"] = box
                result["score"] = score
                if mask is not None:
                    if isinstance(mask, dict) and isinstance(mask["counts"], bytes):
                        mask = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
                    result["segmentation"] = mask
                yield result

    def write_json(self, file) -> None:
        """Write a result file that ``lvis`` reads, without holding it in memory.

        Args:
            file: open text file.
        """
        separator = "["
        for result in self.results():
            file.write(separator + json.dumps(result))
            separator = ", "
        file.write("]" if separator == ", " else "[]")

    @classmethod
    def concatenate(cls, parts: Sequence[Detections], *, consume: bool = False) -> Detections:
        """All parts behind each other.

        Args:
            parts: any number of parts.
            consume: the parts are not used again, so that no more than one column is there twice.

        Returns:
            A single set of columns.
        """
        parts = [part for part in parts if len(part)]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.from_results([])
        others: dict[int, Any] = {}
        start = 0
        for part in parts:
            others.update((start + i, value) for i, value in part.others.items())
            start += len(part)
        names = ["counts", "image_ids", "category_ids", "scores", "boxes"]
        names += ["has_box", "lengths", "sizes"]
        columns = {}
        for name in names:
            columns[name] = np.concatenate([getattr(part, name) for part in parts])
            for part in parts if consume else ():
                setattr(part, name, columns[name][:0])
        return cls(**columns, others=others, mask_area=parts[0].mask_area)

    @classmethod
    def from_results(cls, results: Iterable[dict[str, Any]]) -> Detections:
        """Columns of result dicts, which stay as they are.

        Args:
            results: dicts with ``image_id, category_id, score`` and ``bbox`` or ``segmentation``.

        Returns:
            The columns, in the same order.

        Raises:
            ValueError: an entry lacks a key or holds something of the wrong kind; the message says
                which.
        """
        results = results if isinstance(results, list) else list(results)
        for key in ("image_id", "category_id", "score"):
            complain([r for r in results if key not in r], f"detections without {key!r}", "add it")
        for key in ("image_id", "category_id"):
            complain(
                [r[key] for r in results if isinstance(r[key], (list, dict))],
                f"detections with a {key} that is no id",
                "it is a number or a word of the annotation file",
            )
        texts, sizes, others = [], [], {}
        for i, result in enumerate(results):
            counts, size, segmentation = b"", (0, 0), result.get("segmentation")
            if is_compressed(segmentation):
                counts, size = segmentation["counts"], segmentation["size"]
                counts = counts.encode("utf-8") if isinstance(counts, str) else counts
            elif segmentation is not None:
                others[i] = segmentation
            fault = "" if segmentation is None else type_fault(segmentation)
            if fault:
                raise ValueError(f"detection {i} {named(result)} has {fault}")
            texts.append(counts)
            sizes.append(size)
        boxes = [r.get("bbox") for r in results]
        none = (0.0, 0.0, 0.0, 0.0)
        return cls(
            image_ids=id_column([r["image_id"] for r in results]),
            category_ids=id_column([r["category_id"] for r in results]),
            scores=numbers([r["score"] for r in results], results, "score", ()),
            boxes=numbers([none if b is None else b for b in boxes], results, "bbox", (4,)),
            has_box=np.array([b is not None for b in boxes], dtype=np.bool_),
            counts=np.frombuffer(b"".join(texts), dtype=np.uint8),
            lengths=np.array([len(t) for t in texts], dtype=np.int32),
            sizes=np.array(sizes, dtype=np.int32).reshape(len(results), 2),
            others=others,
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Detections:
        """Columns of a result file, read in pieces: its dicts are never all in memory.

        Args:
            path: JSON file with a list of result dicts.

        Returns:
            The columns, in the order of the file.

        Raises:
            ValueError: the file is no JSON list of detections; the message names it.
        """
        parts, rows, done = [], [], 0
        try:
            for result in objects(path):
                rows.append(result)
                if len(rows) == _ROWS:
                    parts.append(cls.from_results(rows))
                    rows, done = [], done + _ROWS
            parts.append(cls.from_results(rows))
        except (ValueError, RecursionError) as error:
            behind = f" (counted from detection {done})" if done else ""
            raise ValueError(f"{os.fspath(path)!r}{behind}: {error}") from error
        return cls.concatenate(parts)


def id_column(ids: list[Any]) -> np.ndarray:
    """Ids as int64 where all are such integers, else as they are, in an object array."""
    if all(isinstance(i, (int, np.integer)) for i in ids):
        try:
            return np.array(ids, dtype=np.int64)
        except OverflowError:
            pass
    out = np.empty(len(ids), dtype=object)
    out[:] = ids
    return out


def index_of(ids: np.ndarray, known: Sequence[Any]) -> np.ndarray:
    """Positions of ids in a list of known ones.

    Args:
        ids: (K,) ids, see :func:`id_column`.
        known: ascending.

    Returns:
        (K,) int64, -1 for an unknown id.
    """
    table = id_column(list(known))
    if ids.dtype != object and table.dtype != object:
        if not len(table):
            return np.full(len(ids), -1, dtype=np.int64)
        found = np.minimum(np.searchsorted(table, ids), len(table) - 1)
        return np.where(table[found] == ids, found, -1)
    position = {value: i for i, value in enumerate(known)}
    return np.array([position.get(i, -1) for i in ids.tolist()], dtype=np.int64)
