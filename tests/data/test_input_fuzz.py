"""Annotation and result files with anything wrong: a clean run or a message that names it."""

import contextlib
import copy
import itertools
import json
import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_sets import coco, lvis, results

from lvis_tde.data.long_tailed import register_long_tailed
from lvis_tde.evaluation import Detections, GroundTruth, evaluate_lvis
from lvis_tde.evaluation.confusion import rare_confusions
from lvis_tde.evaluation.truth_file import load_truth

BASES = [coco(), coco("rle"), coco("runs"), coco("none"), lvis(), lvis("rle")]
VALUES = st.sampled_from(
    [None, True, False, 0, -1, 3, 1.5, 1e308, float("nan"), float("inf"), -float("inf"), 10**30]
    + ["", "x", "Ä", "0", [], {}, [[]], [1], [1, 2, 3], [1, 2, 3, 4], [[1, 2, 3]], [[0] * 6]]
    + [[["a"] * 6], [[float("nan")] * 8], [[1e12] * 6], {"size": [24, 32], "counts": "junk"}]
    + [{"size": [9, 9], "counts": [81]}, {"size": "ab", "counts": 3}, {"counts": "04"}, [[[1] * 6]]]
)
CASES = settings(
    max_examples=100,
    deadline=5000,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
numbers = itertools.count()


def places(value, path=()):
    """Paths to every value inside a JSON value."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@st.composite
def changed(draw, bases):
    """A file's content with one to three values replaced or dropped."""
    data = copy.deepcopy(bases[draw(st.integers(0, len(bases) - 1))])
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(data))
        if not found:
            break
        *path, key = draw(st.sampled_from(found))
        parent = data
        for step in path:
            parent = parent[step]
        if draw(st.booleans()):
            del parent[key]
        else:
            parent[key] = copy.deepcopy(draw(VALUES))
    return data


@st.composite
def flipped(draw, bases):
    """The bytes of a file, some of them others, perhaps cut off."""
    data = bytearray(json.dumps(bases[draw(st.integers(0, len(bases) - 1))]).encode())
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@contextlib.contextmanager
def named_errors(path):
    """Whatever is raised says which file, or which of its records."""
    try:
        yield
    except Exception as error:
        assert type(error) in (ValueError, FileNotFoundError), repr(error)
        words = r"(annotation|detection|image|categor)\w* "
        assert path.name in str(error) or re.search(words, str(error)), str(error)
        assert len(str(error)) < 1200


def check_annotations(folder, content):
    path = folder / "case.json"
    path.write_bytes(content)
    name = f"fuzzed_{next(numbers)}"
    with named_errors(path):
        try:
            register_long_tailed(name, path, folder, cache_dir=folder)
            assert len(DatasetCatalog.get(name)) == len(json.loads(content)["images"])
            evaluated = MetadataCatalog.get(name).json_file
            for iou_type in ("bbox", "segm"):
                with named_errors(Path(evaluated)):
                    evaluate_lvis(evaluated, Detections.from_results(results()), iou_type)
        finally:
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
            for copied in (*folder.glob("case-*"), *folder.glob(".case*")):
                copied.unlink()
    for iou_type in ("bbox", "segm", "boundary"):
        with named_errors(path):
            truth = GroundTruth.load(load_truth(path)[0])
            evaluate_lvis(truth, Detections.from_results(results()), iou_type)
    with named_errors(path):
        evaluate_lvis(path, results(), "segm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@CASES
@given(changed(BASES))
@example([])
@example({"images": {}, "annotations": [], "categories": []})
def test_annotations_with_other_values(folder, data):
    check_annotations(folder, json.dumps(data).encode())


@CASES
@given(flipped(BASES))
@example(b"")
@example(b"\xff\xfe")
@example(b"[" * 100_000)
def test_annotations_with_other_bytes(folder, content):
    check_annotations(folder, content)


TRUTH = GroundTruth.load(lvis())


def check_results(folder, content):
    path = folder / "found.json"
    path.write_bytes(content)
    for iou_type in ("bbox", "segm", "boundary"):
        with named_errors(path):
            metrics = evaluate_lvis(TRUTH, path, iou_type).metrics
            assert all(-100 <= value <= 100 + 1e-9 for value in metrics.values())
    with named_errors(path):
        rare_confusions(TRUTH, Detections.from_file(path))


@CASES
@given(
    changed(
        [results(), results()[:1], [{k: v for k, v in r.items() if k != "bbox"} for r in results()]]
    )
)
@example({})
def test_results_with_other_values(folder, data):
    check_results(folder, json.dumps(data).encode())


@CASES
@given(flipped([results(), results()[:1]]))
@example(b"")
@example(b"[" * 100_000)
def test_results_with_other_bytes(folder, content):
    check_results(folder, content)
