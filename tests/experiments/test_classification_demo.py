"""The demo of classification on the digits, a few iterations of a small network."""

import json

import classification_util as util
import pytest

from lvis_tde.calibration.methods import IMAGE_METHODS
from lvis_tde.experiments import classification_demo as demo

pytest.importorskip("sklearn")
SMALL = ("SOLVER.EPOCHS.TOTAL", "2", "SOLVER.EPOCHS.STEPS", "()", "MODEL.RESNETS.STEM_OUT_CHANNELS")
SMALL += ("2", "SOLVER.EPOCHS.WARMUP", "0", "MODEL.DEVICE", "cpu")


def run(output, **options):
    options = {"seeds": (0, 1), "sets": ["digits_lt"], "jobs": 1, "overrides": SMALL, **options}
    return demo.run_classification_demo(output, configs=util.CONFIGS, **options)


def test_demo(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "somewhere else")
    results = run(tmp_path)
    runs = results["digits_lt"]
    methods = ["factual", *(method.name for method in IMAGE_METHODS), "composition"]
    assert list(runs) == [f"{part}/{method}" for part in demo.PARTS for method in methods]
    assert all(len(seeds) == 2 for seeds in runs.values())
    for part in demo.PARTS:
        for seed in range(2):
            rows = {method: runs[f"{part}/{method}"][seed] for method in methods}
            # Chosen on the calibration part: there nothing is worse than the trained model.
            best = max(row["calibration"]["top1"] for row in rows.values())
            assert rows["composition"]["calibration"]["top1"] == best
            for row in rows.values():
                assert row["calibration"]["top1"] >= rows["factual"]["calibration"]["top1"]
                if row["strength"] == 0:
                    assert row["test"] == rows["factual"]["test"]
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == {"seeds": [0, 1], "results": results}
    assert all((tmp_path / name).is_file() for name in ("top1.png", "shifts.png"))
    table = demo.format_classification(results)
    assert table.count("\n") == 2 * len(methods) + 1
    assert "| softmax, TDE |" in table and " ± " in table and "digits_lt" in table
    # Seeds have their own training images, and nothing is trained twice.
    subsets = sorted((tmp_path / "datasets" / "subsets").iterdir())
    assert len(subsets) == 2 and subsets[0].read_text() != subsets[1].read_text()
    monkeypatch.setattr(demo, "Trainer", None)
    assert run(tmp_path) == results
    with pytest.raises(ValueError, match="another configuration"):
        run(tmp_path, overrides=(*SMALL, "SOLVER.BASE_LR", "1.0"))


def test_unknown_sets(tmp_path):
    with pytest.raises(ValueError, match="digits_lt, emoji_lt"):
        run(tmp_path, sets=["cifar"])
