"""Top-1 evaluation inside Detectron2: batches, processes, result files."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from test_top1 import COUNTS, problem

from lvis_tde.evaluation import ClassificationEvaluator, Predictions, evaluate_top1
from lvis_tde.evaluation.build import build_evaluator
from lvis_tde.evaluation.shifts import SHIFTS

NAME = "classification_evaluator_test"


@pytest.fixture
def dataset():
    MetadataCatalog.get(NAME).set(
        evaluator_type="classification",
        thing_classes=list("abcdef"),
        class_image_count=[{"id": i, "image_count": n} for i, n in reversed([*enumerate(COUNTS)])],
    )
    yield MetadataCatalog.get(NAME)
    MetadataCatalog.pop(NAME)


def batches(probabilities, labels, ids, size=7):
    for i in range(0, len(labels), size):
        part = slice(i, i + size)
        inputs = {"image_id": torch.from_numpy(ids[part]), "class": torch.from_numpy(labels[part])}
        yield inputs, {"probabilities": torch.from_numpy(probabilities[part])}


def feed(evaluator, *arrays, **options):
    evaluator.reset()
    for inputs, outputs in batches(*arrays, **options):
        evaluator.process(inputs, outputs)
    return evaluator


@pytest.fixture
def arrays():
    probabilities, labels = problem(40)
    return probabilities.astype(np.float32), labels, np.arange(40)[::-1].copy()


def test_equals_the_pure_function(dataset, arrays):
    probabilities, labels, ids = arrays
    evaluator = feed(ClassificationEvaluator(NAME), *arrays)
    expected = evaluate_top1(probabilities, labels, COUNTS)
    assert evaluator.evaluate() == {"classification": {**expected.metrics, **expected.shifted}}
    assert set(SHIFTS) <= set(expected.shifted)
    assert evaluator.result.per_class[0]["name"] == "a"
    assert evaluator.result.image_ids.tolist() == sorted(ids)
    without = feed(ClassificationEvaluator(NAME, shifted=False), *arrays)
    assert without.evaluate() == {"classification": expected.metrics}


def test_lists_of_dicts_are_taken_too(dataset, arrays):
    probabilities, labels, ids = arrays
    evaluator = ClassificationEvaluator(NAME)
    rows = zip(ids.tolist(), labels.tolist(), torch.from_numpy(probabilities).to(torch.bfloat16))
    inputs, outputs = [], []
    for image_id, label, row in rows:
        inputs.append({"image_id": image_id, "class": label, "image": None})
        outputs.append({"probabilities": row})
    evaluator.process(inputs, outputs)
    rounded = torch.from_numpy(probabilities).to(torch.bfloat16).float().numpy()
    expected = evaluate_top1(rounded, labels, COUNTS).metrics
    assert evaluator.evaluate()["classification"]["top1"] == expected["top1"]
    with pytest.raises(ValueError, match="without 'class'"):
        evaluator.process([{"image_id": 1}], outputs[:1])


def test_processes_share_the_work_and_padding_counts_once(dataset, arrays, monkeypatch):
    probabilities, labels, ids = arrays
    expected = feed(ClassificationEvaluator(NAME), *arrays).evaluate()
    # The second process gets the first image again, so that both have equally many.
    parts = [np.arange(0, 40, 2), np.append(np.arange(1, 40, 2), 0)]
    ranks = [feed(ClassificationEvaluator(NAME), *(a[p] for a in arrays)) for p in parts]
    sent = []
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    monkeypatch.setattr(comm, "gather", lambda data, dst: sent.append(data) or list(sent))
    monkeypatch.setattr(comm, "is_main_process", lambda: len(sent) == 2)
    assert ranks[1].evaluate() is None
    assert ranks[0].evaluate() == expected
    assert ranks[0].result.image_ids.tolist() == sorted(ids)


def test_images_of_one_id_and_two_classes_are_an_error(dataset, arrays):
    probabilities, labels, ids = arrays
    ids[:2] = 3
    labels[:2] = 0, 1
    with pytest.raises(ValueError, match="share their id"):
        feed(ClassificationEvaluator(NAME), probabilities, labels, ids).evaluate()


def test_what_was_not_a_number_is_named(dataset, arrays):
    probabilities, labels, ids = arrays
    probabilities[4:7, 1] = np.nan
    evaluator = feed(ClassificationEvaluator(NAME), probabilities, labels, ids)
    with pytest.raises(ValueError, match="3 images with NaN probabilities, the first is 33"):
        evaluator.evaluate()


def test_nothing_processed(dataset):
    assert ClassificationEvaluator(NAME).evaluate() == {}


def test_a_model_of_another_class_list_is_refused(dataset, arrays):
    probabilities, labels, ids = arrays
    evaluator = feed(ClassificationEvaluator(NAME), probabilities[:, :5], labels, ids)
    with pytest.raises(ValueError, match="6 classes"):
        evaluator.evaluate()


def test_metadata_that_lack_the_counts_are_refused(dataset):
    MetadataCatalog.pop(NAME)
    MetadataCatalog.get(NAME).thing_classes = ["a"]
    with pytest.raises(ValueError, match="class_image_count"):
        ClassificationEvaluator(NAME)


def test_fresh_copies_are_independent(dataset, arrays):
    evaluator = feed(ClassificationEvaluator(NAME), *arrays)
    expected = evaluator.evaluate()
    other = evaluator.fresh_copy()
    assert other.result is None and other.evaluate() == {}
    probabilities, labels, ids = arrays
    feed(other, np.eye(6, dtype=np.float32)[labels], labels, ids)
    assert other.evaluate()["classification"]["top1"] == 100
    assert evaluator.evaluate() == expected


def test_result_file_says_the_same(dataset, arrays, tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    dataset.bounds = (10, 200)
    evaluator = feed(build_evaluator(cfg, NAME), *arrays)
    found = evaluator.evaluate()["classification"]
    (path,) = tmp_path.rglob("*.npz")
    assert path.parent == tmp_path / "inference" / NAME
    again = Predictions.load(path)
    assert again.bounds == (10, 200) and again.classes == list("abcdef")
    result = again.evaluate()
    assert {**result.metrics, **result.shifted} == found
    assert isinstance(build_evaluator(cfg, NAME, save=False), ClassificationEvaluator)


def test_half_precision_changes_no_metric(monkeypatch, tmp_path):
    monkeypatch.setattr("lvis_tde.evaluation.predictions._MOST_SINGLE", 10)
    probabilities, labels = problem(30)
    probabilities[:, 1] = probabilities[:, 0] + 1e-7  # the same number in half precision
    whole = Predictions(np.arange(30), labels, probabilities, np.array(COUNTS), list("abcdef"))
    whole.save(tmp_path / "a.npz")
    half = Predictions.load(tmp_path / "a.npz")
    assert half.probabilities.dtype == np.float16
    assert half.evaluate().metrics == whole.evaluate().metrics


def test_files_of_others_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", image_ids=np.arange(3), labels=np.arange(3))
    with pytest.raises(ValueError, match="3 arrays are missing.*'probabilities'"):
        Predictions.load(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError):
        Predictions.load(tmp_path / "none.npz")


def few_predictions(**more):
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    labels, counts = np.array([0, 1, 1]), np.array([30, 10])
    return Predictions(np.arange(3), labels, probabilities, counts, ["a", "b"], **more)


@pytest.mark.parametrize("damage", ["empty", "words", "cut", "bit", "array", "pickled", "shape"])
def test_a_damaged_file_is_named(damage, tmp_path):
    path = tmp_path / "a.npz"
    few_predictions().save(path)
    whole = path.read_bytes()
    if damage == "array":
        np.save(tmp_path / "b.npy", np.zeros(3))
        (tmp_path / "b.npy").replace(path)
    elif damage == "pickled":
        np.savez(path, **dict.fromkeys(few_predictions().__dict__, np.array([{}], dtype=object)))
    elif damage == "shape":
        np.savez(path, **{**few_predictions().__dict__, "labels": np.arange(2)})
    else:
        at = whole.index(b"NUMPY") + 130  # of an array's numbers
        flipped = whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
        found = {"empty": b"", "words": b"no archive", "cut": whole[: len(whole) // 2]}
        path.write_bytes(found.get(damage, flipped))
    with pytest.raises(ValueError, match=f"'{path}'"):
        Predictions.load(path).evaluate()


def test_predictions_without_their_confidence():
    given, plain = np.array([1, 1, 0]), few_predictions()
    one = few_predictions(predictions=given)
    np.testing.assert_array_equal(one.predictions, given)
    np.testing.assert_array_equal(one.confidence, [0.1, 0.8, 0.6])
    assert one.evaluate().metrics["top1"] == pytest.approx(100 / 3)
    # The confidence of no prediction is no confidence.
    other = few_predictions(confidence=np.zeros(3))
    np.testing.assert_array_equal(other.confidence, plain.confidence)
    np.testing.assert_equal(other.evaluate().metrics, plain.evaluate().metrics)
    with pytest.raises(ValueError, match="predictions that are none of the 2 classes.* is 2"):
        few_predictions(predictions=np.array([0, 1, 2]))


def test_a_batch_of_nothing_is_nothing(dataset, arrays):
    evaluator = ClassificationEvaluator(NAME)
    evaluator.process([], [])
    assert evaluator.evaluate() == {}
