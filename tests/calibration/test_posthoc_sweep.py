"""The sweep over post-hoc methods: choice, files, ended runs; evaluations are the oracle."""

import datetime
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from heads_util import predictors
from torch import distributed

from lvis_tde.calibration.checkpoint import load_trained, run_estimate
from lvis_tde.calibration.family import METRICS, search
from lvis_tde.calibration.methods import Method
from lvis_tde.calibration.posthoc_checks import pick_methods
from lvis_tde.calibration.posthoc_sweep import FILES, run_posthoc_sweep
from lvis_tde.calibration.posthoc_table import format_posthoc, gain_cell
from lvis_tde.data.synthetic import register_synthetic_lvis
from lvis_tde.engine import Trainer, YacsRecipe, load_config, load_recipe
from lvis_tde.evaluation import LVISEvaluator, compare_lvis, evaluate_lvis
from lvis_tde.modeling.intercept import intercepted
from lvis_tde.posthoc import Settings
from tools import estimate_feature_mean, sweep_posthoc, train_net

KINDS = {
    "softmax": [],
    # Release 0.6 has no sigmoids of its own.
    "sigmoid": [
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "MODEL.ROI_HEADS.NAME", "TDEROIHeads",
        "MODEL.TDE.NORM", "none", "MODEL.TDE.NUM_HEADS", 1, "MODEL.TDE.ALPHA", 0.0,
    ],
    "cascade": [
        "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True,
    ],
}  # fmt: skip
# Detections an image: of 20 proposals, each as all of 7 classes, some are right, whatever a few
# steps have taught on one machine or another.
EVERY = 140
# As the README has it; otherwise on a set of its own.
WHERE = {"softmax": ["--calibrate", "0.3"], "sigmoid": ["--calibrate", "0.3"]}
FEW = {"methods": ["tde", "logit_adjustment"], "rounds": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_set):
    """``trained(kind)``: the config of a detector after some steps, with upstream's heads."""
    from conftest import ROOT, TINY

    done = {}

    def config(kind):
        if kind == "sigmoid":  # with the softmax detector's weights
            cfg = load_config(config("softmax"), KINDS[kind])
            path = tmp_path_factory.mktemp(kind) / "mine.yaml"
            path.write_text(cfg.dump())
            return str(path)
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            options = [*TINY, "OUTPUT_DIR", str(folder), "SEED", 1, "SOLVER.MAX_ITER", 60]
            options += ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, *KINDS[kind]]
            options += ["DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", ()]
            options += ["TEST.DETECTIONS_PER_IMAGE", EVERY]
            cfg = load_config(str(ROOT / "configs" / "demo_softmax.yaml"), options)
            seed_all_rng(1)
            Trainer(cfg).train()
            cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
            cfg.DATASETS.TEST = (tiny_set["val"],)
            (folder / "mine.yaml").write_text(cfg.dump())
            done[kind] = folder / "mine.yaml"
        return str(done[kind])

    return config


@pytest.fixture(scope="module")
def with_mean(trained, tmp_path_factory):
    """The config of the softmax detector with its mean and statistics."""
    folder = tmp_path_factory.mktemp("mean")
    recipe = YacsRecipe(load_config(trained("softmax"), ["OUTPUT_DIR", str(folder)]))
    run_estimate(recipe, max_batches=4)
    return str(folder / "config_tde.yaml")


@pytest.fixture
def recipe(with_mean, tiny_set, tmp_path):
    recipe = YacsRecipe(load_config(with_mean, ["OUTPUT_DIR", str(tmp_path / "out")]))
    recipe.calibration_sets = (tiny_set["calib"],)
    return recipe


def timeless(report):
    return {key: value for key, value in report.items() if key != "seconds"}


@pytest.mark.parametrize("kind", KINDS)
def test_three_commands_for_a_trained_detector(kind, trained, tiny_set, tmp_path, capsys):
    out = tmp_path / "tde"
    config, tde = ["--config-file", trained(kind)], ["--config-file", str(out / "config_tde.yaml")]
    means = ["--class-means"] if kind == "sigmoid" else []
    estimate_feature_mean.main([*config, "--output", str(out), "--max-batches", "4", *means])
    # fmt: off
    sweep_posthoc.main([
        *tde, *WHERE.get(kind, ["--choose-on", tiny_set["calib"]]), "--metric", "AP50",
        "--bootstrap", "20", "--rounds", "1", "OUTPUT_DIR", str(out),
    ])
    # fmt: on
    printed = capsys.readouterr().out
    assert all(str(out / name) in printed for name in FILES)
    report = json.loads((out / "posthoc.json").read_text())
    assert printed.count(format_posthoc(report)) == 1
    assert (report["rows"][-2]["method"] == "class_means") == bool(means)
    last = report["rows"][-1]
    assert last["method"] == "composition" and last["settings"] == report["chosen"]
    for row in report["rows"]:
        assert row["calibration"]["AP50"] <= last["calibration"]["AP50"]
        assert set(row["metrics"]) == {"bbox", "segm"}
        low, high = row["intervals"]["segm"]["AP"]
        assert low <= high and (high > 0) == (row["metrics"]["segm"]["AP"] > 0)
        gain = row["gains"]["segm"]["AP50"]
        difference = row["metrics"]["segm"]["AP50"] - report["rows"][0]["metrics"]["segm"]["AP50"]
        assert gain["difference"] == pytest.approx(difference, abs=1e-4)
        assert gain["interval"][0] <= gain["interval"][1] and 0 <= gain["wins"] <= 1
    assert len({row["metrics"]["bbox"]["AP50"] for row in report["rows"]}) > 1
    # The third command: the written config gives the last row.
    results = train_net.main(
        ["--config-file", str(out / "config_posthoc.yaml"), "--eval-only"]
        + ["OUTPUT_DIR", str(tmp_path / "evaluated")]
    )
    for task, metrics in last["metrics"].items():
        assert metrics["AP50"] > 0
        assert results[task]["AP50"] == pytest.approx(metrics["AP50"], rel=1e-9)
    # So does each row a separate evaluation, on both sets.
    recipe = load_recipe(str(out / "config_tde.yaml"))
    model = load_trained(recipe)
    for row in report["rows"][1:4]:
        settings = Settings(**{k: v for k, v in row["settings"].items() if k != "words"})
        for predictor in predictors(model):
            predictor.posthoc = settings
        for dataset, expected in (
            (report["chosen_on"], row["calibration"]),
            (tiny_set["val"], row["metrics"]["bbox"]),
        ):
            evaluator = recipe.evaluator(dataset, save=False)
            found = inference_on_dataset(model, recipe.test_loader(dataset), evaluator)["bbox"]
            assert found["AP50"] == pytest.approx(expected["AP50"], rel=1e-9)
    truth = MetadataCatalog.get(tiny_set["val"]).json_file
    result = evaluate_lvis(truth, evaluator.detections(), "bbox", EVERY, bootstrap=20)
    assert row["intervals"]["bbox"]["AP"] == pytest.approx(result.intervals["AP"], rel=1e-9)
    # The gain is that of a comparison on the same draws.
    for predictor in predictors(model):
        predictor.posthoc = Settings()
    plain = recipe.evaluator(tiny_set["val"], save=False)
    inference_on_dataset(model, recipe.test_loader(tiny_set["val"]), plain)
    sides = plain.detections(), evaluator.detections()
    expected = compare_lvis(truth, *sides, "bbox", EVERY, bootstrap=20)
    for name, gain in row["gains"]["bbox"].items():
        found = [gain["difference"], *gain["interval"], gain["wins"]]
        all_of = expected.difference[name], *expected.intervals[name], expected.wins[name]
        assert [one for one in found if one is not None] == pytest.approx(
            [one for one in all_of if one == one], abs=1e-4
        )
    assert f" {gain_cell(row['gains']['bbox']['AP'])} " in printed
    assert "gain over as trained" in printed and "resamples of the images" in printed


def test_the_choice_is_remembered(recipe, tmp_path, tiny_set):
    report = run_posthoc_sweep(recipe, metric="AP50", report=False, **FEW)
    saved = torch.load(tmp_path / "out" / "model_posthoc.pth", weights_only=False)
    assert saved["posthoc"]["metric"] == "AP50" and saved["posthoc"]["chosen"] == report["chosen"]
    assert saved["posthoc"]["chosen_on"] == tiny_set["calib"]
    written = load_recipe(str(tmp_path / "out" / "config_posthoc.yaml"))
    (predictor,) = predictors(load_trained(written))
    expected = {k: v for k, v in report["chosen"].items() if k != "words"}
    assert predictor.posthoc == Settings(**expected)
    assert predictor.calibrated_alpha == predictor.alpha
    assert predictor.chosen.endswith(f"by bbox/AP50 on {tiny_set['calib']}")
    assert report["reported_on"] is None and "metrics" not in report["rows"][0]
    table = (tmp_path / "out" / "posthoc.md").read_text()
    assert f"box on {tiny_set['calib']}" in table and "gap" not in table


def test_an_ended_run_goes_on_where_it_was(recipe, tmp_path, monkeypatch):
    whole = recipe.clone()
    whole.output_dir = str(tmp_path / "whole")
    expected = run_posthoc_sweep(whole, metric="AP50", bootstrap=10, **FEW)
    evaluate, calls = LVISEvaluator.evaluate, []

    def interrupted(self):
        calls.append(self)
        if len(calls) in (4, 7, 13):
            raise KeyboardInterrupt
        return evaluate(self)

    monkeypatch.setattr(LVISEvaluator, "evaluate", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_posthoc_sweep(recipe, metric="AP50", bootstrap=10, **FEW)
        assert not (tmp_path / "out" / "posthoc.json").exists()
    found = run_posthoc_sweep(recipe, metric="AP50", bootstrap=10, **FEW)
    assert timeless(found) == timeless(expected)
    settings = {json.dumps(row["settings"]) for row in found["rows"]}
    assert len(calls) == 3 + found["tried"] + len(settings)  # each once, but the interrupted

    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr("lvis_tde.calibration.posthoc_sweep.sweep_alpha", never)
    assert timeless(run_posthoc_sweep(recipe, metric="AP50", bootstrap=10, **FEW)) == timeless(
        found
    )
    # With another checkpoint it is all measured anew.
    other = recipe.clone()
    state = torch.load(recipe.weights, weights_only=False)
    state["model"]["roi_heads.box_predictor.cls_score.weight"] *= 1.1
    other.weights = str(tmp_path / "other.pth")
    torch.save(state, other.weights)
    with pytest.raises(AssertionError):
        run_posthoc_sweep(other, metric="AP50", **FEW)


def test_little_memory_takes_more_passes_and_gives_the_same(recipe, tmp_path):
    model = load_trained(recipe)
    seen = []
    recipe.build_model, build = (lambda: model), recipe.build_model
    count = lambda forward, x: seen.append(1) or forward(x)  # noqa: E731
    with intercepted(model.backbone, "forward", count):
        much = run_posthoc_sweep(recipe, metric="AP50", report=False, **FEW)
        images = len(seen)
        assert images == 4  # the network has seen each image once
        shutil.rmtree(tmp_path / "out")
        little = run_posthoc_sweep(recipe, metric="AP50", report=False, memory=1e-6, **FEW)
    assert len(seen) > 3 * images and timeless(little) == timeless(much)
    recipe.build_model = build


def test_a_file_that_cannot_be_read_is_no_end(recipe, tmp_path, caplog):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "posthoc_tried.json").write_text('{"key": ')
    run_posthoc_sweep(recipe, metric="AP50", report=False, methods=["tde"], rounds=0)
    assert "measuring anew" in caplog.text
    assert json.loads((tmp_path / "out" / "posthoc_tried.json").read_text())["tried"]


def test_no_more_may_be_lost_than_is_allowed():
    """The best of rare classes costs frequent ones; each bound has its own best."""
    method = Method("norcal", ("norcal",), (0.25, 0.5, 1.0), "counts")

    def evaluate(settings):
        gains = {s: {"AP": 20.0, "APr": 10 + 8 * s.norcal, "APf": 30 - s.norcal} for s in settings}
        return {s: {**dict.fromkeys(METRICS, 0.0), **one} for s, one in gains.items()}

    for most, best in ((0.0, 0.0), (0.3, 0.25), (0.5, 0.5), (2.0, 1.0)):
        choice = search([method], evaluate, metric="APr", max_loss={"APf": most})
        assert choice.row("norcal").strength == best
        assert choice.row("composition").settings == Settings(norcal=best)
    bounds = {"APf": 2.0, "AP": 0.0}
    assert search([method], evaluate, metric="APr", max_loss=bounds).row("norcal").strength == 1


def test_methods_by_name_and_by_what_is_known(recipe, caplog):
    model = load_trained(recipe)
    every = pick_methods(model)
    assert {m.name for m in every} >= {"tde", "tau_norm", "logit_adjustment", "logn", "fracal"}
    (one,) = pick_methods(model, ["tde"], {"tde": [2.0, 0.0, 1.0]})
    assert one.strengths == (1.0, 2.0)
    for names, grid in ((["bags"], None), (None, {"bags": [1.0]})):
        with pytest.raises(ValueError, match="'bags' is no method for this model: tde, tau_norm"):
            pick_methods(model, names, grid)
    with pytest.raises(ValueError, match="class_means=4 .*estimate_feature_mean.py --class-means"):
        pick_methods(model, ["class_means"])
    with pytest.raises(ValueError, match="tde=-1"):
        pick_methods(model, grid={"tde": [-1.0]})
    with pytest.raises(ValueError, match="none above 0"):
        pick_methods(model, grid={"tde": [0.0]})
    predictors(model)[0].feature_mean.mean.zero_()
    for buffer in predictors(model)[0].statistics.buffers():
        buffer.zero_()
    left = pick_methods(model)
    assert {m.name for m in left} == {"tau_norm"}
    assert "tde is left out: tde needs the mean" in caplog.text
    with pytest.raises(ValueError, match="logit_adjustment=0.5 .*counts"):
        pick_methods(model, ["logit_adjustment"])


def test_mistakes(recipe, tiny_set):
    def fails(match, **options):
        with pytest.raises(ValueError, match=match):
            run_posthoc_sweep(recipe, **options)

    fails("metric='bbox/APx'", metric="APx")
    fails("metric='bbox/many'", max_loss={"many": 1.0})
    fails("APf=-1", max_loss={"APf": -1.0})
    fails("memory=0", memory=0)
    fails("calibrate=1.5", calibrate=1.5)
    recipe.test_sets = (tiny_set["calib"],)
    fails("to choose on and to report on")
    recipe.calibration_sets = ()
    fails("--calibrate")


def sweep_in_two(rank, folder, sets, config):
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    names = register_synthetic_lvis(sets, seed=0, prefix="tiny")
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    assert comm.get_world_size() == 2
    recipe = YacsRecipe(load_config(config, ["OUTPUT_DIR", f"{folder}/both"]))
    recipe.calibration_sets = (names["train"],)
    # What is tried first is then read by the main process alone.
    run_posthoc_sweep(recipe, metric="AP50", bootstrap=5, methods=["tde"], rounds=0)
    report = run_posthoc_sweep(recipe, metric="AP50", bootstrap=5, **FEW)
    Path(folder, f"{rank}.json").write_text(json.dumps(report))


def test_two_processes_are_as_one(recipe, with_mean, tiny_set, tmp_path):
    file = Path(MetadataCatalog.get(tiny_set["train"]).json_file)
    sets = next(parent for parent in file.parents if parent.name.startswith("datasets"))
    torch.multiprocessing.start_processes(
        sweep_in_two,
        args=(str(tmp_path), str(sets), with_mean),
        nprocs=2,
        start_method="forkserver",
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    recipe.calibration_sets = (tiny_set["train"],)
    expected = run_posthoc_sweep(recipe, metric="AP50", bootstrap=5, **FEW)
    assert second == {} and first["tried"] == expected["tried"] > 8
    assert first["chosen"] == expected["chosen"]
    assert len({row["calibration"]["AP50"] for row in expected["rows"]}) > 1
    for ours, theirs in zip(first["rows"], expected["rows"]):
        assert ours["calibration"] == pytest.approx(theirs["calibration"], abs=1e-6)
        for task in theirs["metrics"]:
            assert ours["metrics"][task] == pytest.approx(theirs["metrics"][task], abs=1e-6)
