"""Annotations in LVIS format as columns, checked.

Names: I images, C categories, G ground truths that enter, in the order in which ``lvis`` visits
them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils

from ..data.annotation_file import EXHAUSTIVE, check_types
from ..data.masks import segmentation_fault, with_integers
from .detections import id_column, index_of
from .errors import complain
from .result import FREQUENCIES


@dataclass
class GroundTruth:
    """Columns of an annotation file.

    Attributes:
        image_ids: I ids, ascending.
        image_sizes: (I, 2) int64, height and width; 0 where the file does not say.
        categories: C category dicts, by ascending id.
        category_ids: C ids, ascending.
        negatives: (K,) int64, ``image * C + category`` of the pairs verified to be absent,
            ascending; empty in an exhaustive set.
        not_exhaustive: (K,) int64, likewise, of the pairs that are not annotated exhaustively.
        annotation_ids: (G,) ids.
        images: (G,) int64, positions in ``image_ids``.
        labels: (G,) int64, positions in ``category_ids``.
        areas: (G,) float64, > 0.
        ignore: (G,) bool.
        boxes: G boxes, (x, y, width, height), or None where an annotation has none.
        segmentations: G segmentations as in the file, or None.
        undecided: (K,) int64, likewise, in a set that is marked as exhaustive: the pairs without a
            ground truth that are no negatives either. None in a federated set.
    """

    image_ids: list[Any]
    image_sizes: np.ndarray
    categories: list[dict[str, Any]]
    category_ids: list[Any]
    negatives: np.ndarray
    not_exhaustive: np.ndarray
    annotation_ids: list[Any]
    images: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    ignore: np.ndarray
    boxes: list[Any]
    segmentations: list[Any]
    undecided: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def judged(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which detections are right or wrong: where their category is annotated or known absent.

        Args:
            images: (K,) int64, positions in ``image_ids``.
            labels: (K,) int64, positions in ``category_ids``.

        Returns:
            (K,) bool.
        """
        pairs = images * len(self.category_ids) + labels
        if self.undecided is not None:
            return ~np.isin(pairs, self.undecided)
        positives = self.images * len(self.category_ids) + self.labels
        return np.isin(pairs, np.union1d(positives, self.negatives))

    @classmethod
    def load(cls, annotations: str | os.PathLike[str] | dict[str, Any]) -> GroundTruth:
        """Read and check annotations, which stay as they are.

        Args:
            annotations: see :func:`read_annotations`.

        Returns:
            The columns.

        Raises:
            ValueError: something is missing or unknown, or an annotation has the id 0; the message
                names the first offender and how many there are.
        """
        annotations = read_annotations(annotations)
        for key in ("images", "annotations", "categories"):
            if key not in annotations:
                raise ValueError(f"the annotations have no {key!r}, only {sorted(annotations)}")
        exhaustive = annotations.get(EXHAUSTIVE) is True
        # Of several entries with one id the last one counts.
        images = {image["id"]: image for image in annotations["images"]}
        categories = {category["id"]: category for category in annotations["categories"]}
        entries = annotations["annotations"]
        _check(images, categories, entries, exhaustive)

        image_ids, category_ids = sorted(images), sorted(categories)
        num_cats = len(category_ids)

        def positions(entries: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
            return (
                index_of(id_column([a["image_id"] for a in entries]), image_ids),
                index_of(id_column([a["category_id"] for a in entries]), category_ids),
            )

        def listed(key: str) -> np.ndarray:
            lists = [images[i][key] for i in image_ids]
            flat = index_of(id_column([c for ids in lists for c in ids]), category_ids)
            owner = np.repeat(np.arange(len(lists)), [len(ids) for ids in lists])
            return np.unique((owner * num_cats + flat)[flat >= 0])

        image, label = positions(entries)
        mentioned = image * num_cats + label
        area = np.array([a["area"] for a in entries], dtype=np.float64)
        order = np.argsort(image, kind="stable")
        # lvis looks annotations up by id after it has selected them.
        last = {a["id"]: a for a in entries}
        chosen = order[(area[order] > 0) & (area[order] < np.inf)]
        entries = [last[entries[i]["id"]] for i in chosen.tolist()]
        image, label = positions(entries)
        negatives, undecided = np.zeros(0, dtype=np.int64), None
        not_exhaustive = listed("not_exhaustive_category_ids")
        if exhaustive:
            known = np.union1d(mentioned, not_exhaustive)
            undecided = np.setdiff1d(known, image * num_cats + label)
        else:
            negatives = listed("neg_category_ids")
        return cls(
            image_ids=image_ids,
            image_sizes=np.array(
                [(images[i].get("height", 0), images[i].get("width", 0)) for i in image_ids],
                dtype=np.int64,
            ).reshape(-1, 2),
            categories=[categories[i] for i in category_ids],
            category_ids=category_ids,
            negatives=negatives,
            not_exhaustive=not_exhaustive,
            annotation_ids=[a["id"] for a in entries],
            images=image,
            labels=label,
            areas=np.array([a["area"] for a in entries], dtype=np.float64),
            ignore=np.array([bool(a.get("ignore", 0)) for a in entries], dtype=np.bool_),
            boxes=[a.get("bbox") for a in entries],
            segmentations=[a.get("segmentation") for a in entries],
            undecided=undecided,
        )


def read_annotations(annotations: str | os.PathLike[str] | dict[str, Any]) -> dict[str, Any]:
    """Content of an annotation file.

    Args:
        annotations: path or content of a file in LVIS format, or the name of a data set that is
            registered with Detectron2.

    Returns:
        The content; the same object if it was given.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: it is no file of that format.
    """
    if isinstance(annotations, dict):
        return annotations
    if isinstance(annotations, str) and not os.path.exists(annotations):
        annotations = _file_of_registered(annotations)
    where = repr(os.fspath(annotations))
    if os.path.isdir(annotations):
        raise ValueError(f"{where} is a folder: name the annotation file")
    with open(annotations, encoding="utf-8-sig") as file:
        try:
            content = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is no JSON file: {error}") from error
    check_types(content, where)
    return content


def _file_of_registered(name: str) -> str:
    try:
        # Result files can be evaluated where Detectron2 is not installed.
        from detectron2.data import MetadataCatalog
    except ImportError:
        return name
    return (
        MetadataCatalog.get(name).get("json_file", name) if name in MetadataCatalog.list() else name
    )


def with_negatives(annotations: dict[str, Any]) -> dict[str, Any]:
    """Annotations with ``neg_category_ids`` in every image, for programs that know no other way.

    Args:
        annotations: content of a file in LVIS format, perhaps marked as exhaustive: with
            ``"exhaustive": true`` beside "images", and no lists of negatives.

    Returns:
        The same object if it is not marked; else a copy without the mark, in which the negatives of
        an image are the categories neither annotated in it nor listed as not exhaustive.
    """
    if annotations.get(EXHAUSTIVE) is not True:
        return annotations
    known = {i["id"]: set(i["not_exhaustive_category_ids"]) for i in annotations["images"]}
    for entry in annotations["annotations"]:
        known[entry["image_id"]].add(entry["category_id"])
    ids = [category["id"] for category in annotations["categories"]]
    images = [
        {**image, "neg_category_ids": [i for i in ids if i not in known[image["id"]]]}
        for image in annotations["images"]
    ]
    rest = {key: value for key, value in annotations.items() if key != EXHAUSTIVE}
    return {**rest, "images": images}


def _check(images: dict, categories: dict, entries: list[dict[str, Any]], exhaustive: bool) -> None:
    for key in ("neg_category_ids", "not_exhaustive_category_ids")[exhaustive:]:
        complain(
            [i for i, image in images.items() if key not in image],
            f"images without {key!r}",
            "LVIS is annotated category by category, and this list says which absences are certain",
        )
    complain(
        [i for i, c in categories.items() if c.get("frequency") not in FREQUENCIES],
        "categories without a 'frequency' out of 'r', 'c', 'f'",
        "APr, APc and APf need it; 'r' is for 1 to 10 training images, 'c' up to 100, 'f' for more",
    )
    for key in ("id", "image_id", "category_id", "area"):
        complain(
            [a.get("id", i) for i, a in enumerate(entries) if a.get(key) is None],
            f"annotations without {key!r}",
            "add it",
        )
    complain(
        [a for a in entries if a["id"] == 0],
        "annotations with id 0",
        "lvis takes a match with id 0 for no match; number annotations from 1",
    )
    for key, known in (("image_id", images), ("category_id", categories)):
        complain(
            [a[key] for a in entries if a[key] not in known],
            f"annotations with an unknown {key!r}",
            "the file must list every image and category it annotates",
        )


def to_rle(segmentation: Any, height: int, width: int, owner: str) -> dict[str, Any]:
    """Compressed RLE of a segmentation, by the rules of ``LVIS.ann_to_rle``.

    Args:
        segmentation: polygons, uncompressed or compressed RLE.
        height: of the image, for polygons.
        width: of the image, for polygons.
        owner: whose it is, for the error.

    Returns:
        ``{"size": [height, width], "counts": str or bytes}``.

    Raises:
        ValueError: it is none of these, or an RLE of another size than the image.
    """
    # Run lengths that are empty are an empty mask.
    fault = "" if _is_empty(segmentation) else segmentation_fault(segmentation, height, width)
    if fault:
        raise ValueError(f"{owner} has {fault}")
    try:
        segmentation = with_integers(segmentation)
        if isinstance(segmentation, list):
            return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
        if isinstance(segmentation["counts"], list):
            return mask_utils.frPyObjects(segmentation, height, width)
        return {"size": segmentation["size"], "counts": segmentation["counts"]}
    except Exception as error:
        raise ValueError(
            f"{owner} has a segmentation that is neither polygons nor an RLE: "
            f"{str(segmentation)[:80]!r} ({error})"
        ) from error


def _is_empty(segmentation: Any) -> bool:
    return isinstance(segmentation, dict) and segmentation.get("counts") in ("", b"")
