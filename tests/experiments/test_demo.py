import json
from pathlib import Path

import pytest
from conftest import TINY

from lvis_tde.experiments.demo import run_demo
from lvis_tde.experiments.demo_tables import format_table, summarize_seeds
from lvis_tde.experiments.recording import METRICS

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = dict(num_train=16, num_calib=4, num_val=4, num_classes=7, image_size=64)
SHORT = [*TINY, "SOLVER.MAX_ITER", 2, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64]


def demo(output, *overrides):
    overrides = [*SHORT, *overrides]
    return run_demo(
        output,
        kind="shapes",
        configs=CONFIGS,
        num_pictures=1,
        jobs=1,
        dataset=SMALL,
        overrides=overrides,
    )


def test_demo(tmp_path, caplog):
    results = demo(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["seed"] == 0 and results["alpha"] == results["alphas"]["tde"]
    for run in ("softmax", "softmax_tde", "deconfound", "tde"):
        assert set(results["runs"][run]) == {"bbox", "segm"}
        assert set(results["runs"][run]["segm"]) == set(METRICS)
    for run, alpha in results["alphas"].items():
        calibration = results["calibrations"][run]
        best = max(values["segm"]["AP"] for values in calibration.values())
        assert calibration[f"{alpha:g}"]["segm"]["AP"] == best
    assert results["feature_mean"]["softmax_tde"]["batches"] > 0
    assert len(results["feature_mean"]["tde"]["degrees_to_tracked"]) == 2
    pictures = {path.name for path in tmp_path.glob("*.png")}
    charts = {"group_ap.png", "ap_over_alpha.png", "ap_over_alpha_softmax.png"}
    assert charts | {"ap_over_images.png", "classes.png", "opening.png"} < pictures
    assert len(pictures) == 7
    for run, values in results["per_class"].items():
        assert values.keys() == results["image_count"].keys() and len(values) == 7
        known = [value for value in values.values() if value is not None]
        mean = sum(known) / len(known)
        assert mean == pytest.approx(results["runs"][run]["segm"]["AP"], abs=0.01)
    table = format_table(results)
    assert all(f" {metric} " in table for metric in METRICS)

    (row,) = [
        line for line in summarize_seeds(tmp_path).splitlines() if line.startswith("| softmax |")
    ]
    assert (tmp_path / "ap_over_images_seeds.png").is_file()
    assert f"{results['runs']['softmax']['segm']['AP']:.1f} ± 0.0" in row

    # Again: nothing is trained, and the figures are the same.
    caplog.clear()
    assert demo(tmp_path) == results
    assert "iter: " not in caplog.text

    # Another configuration must not be mixed with the finished run, nor its pictures be replaced.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    with pytest.raises(ValueError, match="softmax holds a run with another configuration"):
        demo(tmp_path, "SOLVER.BASE_LR", 0.01)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")} == before

    # Nor another set with it in one table, whether it says which it is or is older than that.
    other = {**results, "seed": 1, "set": {**results["set"], "seed": 1}}
    file = tmp_path / "seed1" / "results.json"
    file.parent.mkdir()
    file.write_text(json.dumps(other))
    assert "| mask AP, 2 seeds |" in summarize_seeds(tmp_path)
    for made in ({"set": {**other["set"], "kind": "glyphs"}}, {"set": {}}):
        file.write_text(json.dumps({**other, **made}))
        with pytest.raises(ValueError, match="seed0 and .*seed1 are results on different sets"):
            summarize_seeds(tmp_path)
