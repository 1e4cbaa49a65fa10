import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from lvis_tde.evaluation import compare_resampled, evaluate_lvis
from lvis_tde.evaluation.bootstrap import BOOTSTRAPPED
from lvis_tde.experiments.study.resamples import load_resamples, save_resamples


@pytest.fixture(scope="module")
def results(tiny_set):
    """Of two made-up detectors, one of which names more objects rightly."""
    truth = json.loads(open(MetadataCatalog.get(tiny_set["val"]).json_file).read())
    rng = np.random.default_rng(0)
    found = {"good/tde": [], "bad/factual": []}
    for number, one in enumerate(truth["annotations"]):
        for run, often in (("good/tde", 0.9), ("bad/factual", 0.5)):
            right = rng.random() < often
            category = one["category_id"] if right else 1 + number % 7
            box = {"bbox": one["bbox"], "score": float(rng.random())}
            found[run].append({"image_id": one["image_id"], "category_id": category, **box})
    return {
        run: {"bbox": evaluate_lvis(truth, some, "bbox", bootstrap=200)}
        for run, some in found.items()
    }


def test_kept_resamples_compare_as_the_results_themselves(results, tmp_path):
    sides = {}
    for run, tasks in results.items():
        recipe, method = run.split("/")
        save_resamples(tmp_path / f"{recipe}.npz", {method: tasks})
        sides[recipe] = load_resamples(tmp_path / f"{recipe}.npz")[method]["bbox"]
    kept = compare_resampled(sides["bad"], sides["good"])
    whole = compare_resampled(*(results[run]["bbox"] for run in ("bad/factual", "good/tde")))
    assert kept.difference == whole.difference and whole.difference["AP"] > 1
    assert kept.wins == whole.wins
    for name in BOOTSTRAPPED:
        assert kept.intervals[name] == pytest.approx(whole.intervals[name], abs=1e-4, nan_ok=True)


def test_resamples_of_other_draws_are_not_compared(results, tmp_path):
    first, second = (tasks["bbox"] for tasks in results.values())
    save_resamples(tmp_path / "one.npz", {"tde": {"bbox": first}})
    second.resamples.seed = 1
    save_resamples(tmp_path / "other.npz", {"tde": {"bbox": second}})
    second.resamples.seed = 0
    sides = [load_resamples(tmp_path / f"{name}.npz")["tde"]["bbox"] for name in ("one", "other")]
    with pytest.raises(ValueError, match="different draws"):
        compare_resampled(*sides)
