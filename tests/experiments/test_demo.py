import json
from pathlib import Path

import pytest
from experiments_util import SHORT, SMALL, evaluated_alone

from lvis_tde.calibration.family import COMPOSITION
from lvis_tde.calibration.methods import CLASS_MEANS, FACTUAL, SIGMOID_METHODS, SOFTMAX_METHODS
from lvis_tde.experiments.demo import run_demo
from lvis_tde.experiments.demo_parts import PARTS, Plan
from lvis_tde.experiments.demo_tables import format_table
from lvis_tde.experiments.recording import METRICS
from lvis_tde.posthoc import Settings

CONFIGS = Path(__file__).parents[2] / "configs"
AMOUNTS = dict(mean_batches=6, images_per_class=2)


def demo(output, *overrides, **options):
    overrides = [*SHORT, *overrides]
    return run_demo(
        output,
        kind="shapes",
        configs=CONFIGS,
        num_pictures=1,
        jobs=1,
        dataset=SMALL,
        overrides=overrides,
        **AMOUNTS,
        **options,
    )


def boxes_alone(output, part, split, row):
    """Box figures of a row on a split by Detectron2's own loop, from the checkpoint of the part."""
    plan = Plan(output, "shapes", 0, CONFIGS, 0, *AMOUNTS.values(), tuple(SHORT), part)
    cfg, names = plan.config(part), plan.names()
    found = evaluated_alone(cfg, names, split, Settings(**row["settings"]), *AMOUNTS.values())
    return {metric: round(found["bbox"][metric], 4) for metric in row["val"]}


def assert_family(results, output):
    """Each row has what was chosen on calib and what that gives on val."""
    assert list(results["posthoc"]) == ["softmax", "deconfound", "sigmoid"]
    rows = [row for some in results["posthoc"].values() for row in some]
    assert len({row["val"]["AP"] for row in rows}) > 10
    for part, rows in results["posthoc"].items():
        methods = (*(SIGMOID_METHODS if part == "sigmoid" else SOFTMAX_METHODS), CLASS_MEANS)
        found = {row["method"]: row for row in rows}
        assert list(found) == [FACTUAL, *(m.name for m in methods), COMPOSITION]
        for method in methods:
            row = found[method.name]
            assert Settings(**row["settings"]) == method.settings(row["strength"])
            assert row["strength"] in method.tried
            if len(method.tried) > 1:
                assert row["calibration"]["AP"] >= found[FACTUAL]["calibration"]["AP"]
        best = max(row["calibration"]["AP"] for row in rows[:-1])
        assert found[COMPOSITION]["calibration"]["AP"] >= best
        # The runs are two of the rows, with masks.
        off, on = PARTS[part].off, PARTS[part].on
        assert results["alphas"][on] == found["tde"]["strength"]
        for run, row in ((off, found[FACTUAL]), (on, found["tde"])):
            assert row["val"].items() <= results["runs"][run]["bbox"].items()
    checked = [("deconfound", COMPOSITION), ("sigmoid", "logit_adjustment"), ("softmax", "norcal")]
    checked.append(("sigmoid", "class_means"))
    for part, method in checked:
        (row,) = (r for r in results["posthoc"][part] if r["method"] == method)
        assert boxes_alone(output, part, "val", row) == row["val"]
        assert boxes_alone(output, part, "calib", row) == row["calibration"]


def test_demo(tmp_path, telling):
    results = demo(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["seed"] == 0 and results["alpha"] == results["alphas"]["tde"]
    assert list(results["runs"]) == [
        *("softmax", "softmax_tde", "deconfound", "tde", "sigmoid", "sigmoid_tde")
    ]
    for tasks in results["runs"].values():
        assert set(tasks) == {"bbox", "segm"} and set(tasks["segm"]) == set(METRICS)
    assert set(results["alphas"]) == {"softmax_tde", "tde", "sigmoid_tde"}
    for run, alpha in results["alphas"].items():
        calibration = results["calibrations"][run]
        best = max(values["bbox"]["AP"] for values in calibration.values())
        assert calibration[f"{alpha:g}"]["bbox"]["AP"] == best
    assert_family(results, tmp_path)
    assert {one["batches"] for one in results["feature_mean"].values()} == {6}
    assert {one["classes_without_mean"] for one in results["feature_mean"].values()} == {0}
    assert "degrees_to_tracked" not in results["feature_mean"]["softmax_tde"]
    assert len(results["feature_mean"]["tde"]["degrees_to_tracked"]) == 2
    assert len(results["feature_mean"]["sigmoid_tde"]["degrees_to_tracked"]) == 1
    pictures = {path.name for path in tmp_path.glob("*.png")}
    charts = {"group_ap.png", "posthoc.png", "ap_over_images.png", "classes.png", "opening.png"}
    charts |= {f"ap_over_alpha{which}.png" for which in ("", "_softmax", "_sigmoid")}
    assert charts < pictures and len(pictures) == len(charts) + 1
    for run, values in results["per_class"].items():
        assert values.keys() == results["image_count"].keys() and len(values) == 7
        known = [value for value in values.values() if value is not None]
        mean = sum(known) / len(known)
        assert mean == pytest.approx(results["runs"][run]["segm"]["AP"], abs=0.01)
    # Intervals, and differences from the same resamples.
    assert [(one["run"], one["over"]) for one in results["gains"]] == [
        ("tde", "deconfound"), ("deconfound", "softmax"), ("tde", "softmax"),
        ("softmax_tde", "softmax"), ("sigmoid_tde", "sigmoid"),
    ]  # fmt: skip
    for one in results["gains"]:
        for task in ("bbox", "segm"):
            after, before = (results["runs"][one[key]][task]["AP"] for key in ("run", "over"))
            gain = one[task]["AP"]
            assert gain["difference"] == pytest.approx(after - before, abs=2e-4)
            assert gain["interval"][0] <= gain["interval"][1]
            assert set(results["intervals"][one["run"]][task]) > {"AP", "AP50", "APr", "APf"}
    for rows in results["posthoc"].values():
        ends = [value["interval"] for value in rows[0]["gains"].values()]
        # Undefined where no image shows a class of the group.
        assert [0, 0] in ends and all(pair in ([0, 0], [None, None]) for pair in ends)
        for row in rows:
            found = row["gains"]["AP"]["difference"]
            assert found == pytest.approx(row["val"]["AP"] - rows[0]["val"]["AP"], abs=2e-4)
            assert len(row["intervals"]["AP"]) == 2
    table = format_table(results)
    assert all(f" {metric} " in table for metric in METRICS)

    # Again: nothing is trained, and the figures are the same. So they are after an interruption.
    files = {part: tmp_path / "seed0" / part / "model_final.pth" for part in results["posthoc"]}
    written = {part: file.stat().st_mtime_ns for part, file in files.items()}
    files["sigmoid"].unlink()
    (tmp_path / "seed0" / "sigmoid" / "last_checkpoint").unlink()
    again = demo(tmp_path, parts=["sigmoid", "softmax"])
    trained = [part for part, file in files.items() if file.stat().st_mtime_ns != written[part]]
    assert trained == ["sigmoid"]
    assert again["alpha"] is None and list(again["posthoc"]) == ["softmax", "sigmoid"]
    for key in ("runs", "alphas", "calibrations", "feature_mean", "posthoc", "per_class"):
        assert again[key].items() <= results[key].items()

    # Another configuration must not be mixed with the finished run, nor its pictures be replaced.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    with pytest.raises(ValueError, match="softmax holds a run with another configuration"):
        demo(tmp_path, "SOLVER.BASE_LR", 0.01)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")} == before


@pytest.mark.parametrize("parts, what", [(["softmax", "tde"], "softmax, tde"), ([], "none")])
def test_unknown_part(tmp_path, parts, what):
    with pytest.raises(ValueError, match=f"parts must be some of softmax, deconf.*got {what}"):
        demo(tmp_path, parts=parts)
    assert not list(tmp_path.iterdir())
