import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from experiments_util import IN_FILE, SMALL, evaluated_alone

from lvis_tde.calibration.family import COMPOSITION
from lvis_tde.calibration.methods import (
    CLASS_MEANS,
    FACTUAL,
    SIGMOID_METHODS,
    SOFTMAX_METHODS,
    TDE_JOINT,
)
from lvis_tde.experiments.study import unit as unit_module
from lvis_tde.experiments.study import workers
from lvis_tde.experiments.study.file import read_study
from lvis_tde.experiments.study.run import run_study, states, units_of
from lvis_tde.posthoc import Settings
from tools import run_study as tool

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {
    name: {"title": name, "config": f"demo_{name}.yaml"}
    for name in ("softmax", "deconfound", "sigmoid")
}
CONTENT = {
    "set": {"kind": "shapes", **SMALL},
    "recipes": RECIPES,
    "pairs": [
        ["deconfound/tde", "deconfound/factual"],
        ["deconfound/tde", "deconfound/tde_joint"],
        ["deconfound/tde", "softmax/factual"],
        ["sigmoid/factual", "softmax/factual"],
    ],
    "orders": [
        {"title": "t", "source": "s",
         "runs": [["softmax/factual"], ["deconfound/factual", "sigmoid/factual"]]},
    ],
    "opts": IN_FILE,
    "mean_batches": 6,
}  # fmt: skip


def study_of(folder, **changes):
    (folder / "study.yaml").write_text(yaml.safe_dump({**CONTENT, **changes}, sort_keys=False))
    return read_study(folder / "study.yaml", configs=CONFIGS)


def forget():
    """Names of generated sets do not tell folders apart."""
    for name in [name for name in DatasetCatalog.list() if name.startswith("synthetic_lvis_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(autouse=True)
def forgotten(request):
    if "finished" not in request.fixturenames:
        forget()
    yield
    forget()


def written(output):
    """When each checkpoint and each result was written."""
    paths = [*output.glob("seed*/*/model_final.pth"), *output.glob("seed*/*/unit.json")]
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and outcome of a finished study; no test changes it."""
    forget()  # those of other tests
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        from conftest import tell_boxes

        tell_boxes(patch)
        study = study_of(folder)
        outcome = run_study(study, folder / "out", jobs=0)
    assert not outcome.failed
    return folder / "out", study, outcome


@pytest.fixture
def copied(finished, tmp_path):
    """Its folder, to be changed."""
    return Path(shutil.copytree(finished[0], tmp_path / "out"))


def test_rows_are_chosen_on_calib_and_evaluated_on_val(finished, telling):
    output, study, outcome = finished
    assert json.loads((output / "study.json").read_text()) == outcome.study
    runs = outcome.study["runs"]
    for recipe in RECIPES:
        softmax = recipe != "sigmoid"
        methods = [*SOFTMAX_METHODS, TDE_JOINT] if softmax else [*SIGMOID_METHODS]
        methods.append(CLASS_MEANS)
        found = {
            run.split("/")[1]: s["0"] for run, s in runs.items() if run.startswith(recipe + "/")
        }
        assert set(found) == {FACTUAL, COMPOSITION, *(method.name for method in methods)}
        for method in methods:
            row = found[method.name]
            assert Settings(**row["settings"]) == method.settings(row["strength"])
            if len(method.tried) > 1:
                assert row["calibration"]["AP"] >= found[FACTUAL]["calibration"]["AP"]
        for name, row in found.items():
            masks = name in (FACTUAL, "tde", "tde_joint", COMPOSITION)
            assert set(row["val"]) == set(row["intervals"]) == {"bbox", *["segm"] * masks}
            assert set(row["val"]["bbox"]) == {"AP", "AP50", "APr", "APc", "APf"}
    units = {unit.recipe.name: unit for unit in units_of(study, output)}
    checked = [("deconfound", "tde_joint"), ("sigmoid", "logit_adjustment"), ("softmax", FACTUAL)]
    for recipe, method in checked:
        row = runs[f"{recipe}/{method}"]["0"]
        for split, values in (("calib", row["calibration"]), ("val", row["val"]["bbox"])):
            unit = units[recipe]
            settings = Settings(**row["settings"])
            alone = evaluated_alone(unit.config(), unit.names(), split, settings, 6)
            assert {k: round(alone["bbox"][k], 4) for k in values} == values


def test_differences_are_those_of_the_runs(finished):
    *_, outcome = finished
    runs = outcome.study["runs"]
    assert [[one["run"], one["over"]] for one in outcome.study["pairs"]] == CONTENT["pairs"]
    for one in outcome.study["pairs"]:
        for task, metrics in one["seeds"]["0"].items():
            after, before = (runs[one[key]]["0"]["val"][task]["AP"] for key in ("run", "over"))
            gain = metrics["AP"]
            assert gain["difference"] == pytest.approx(after - before, abs=2e-4)
            assert gain["interval"][0] <= gain["interval"][1] and 0 <= gain["wins"] <= 1
    assert set(outcome.study["pairs"][0]["seeds"]["0"]) == {"bbox", "segm"}
    (order,) = outcome.study["orders"]
    ap = {run: runs[run]["0"]["val"]["bbox"]["AP"] for run in sum(order["runs"], [])}
    signs = [
        (ap[run] > ap["softmax/factual"]) - (ap[run] < ap["softmax/factual"])
        for run in ("deconfound/factual", "sigmoid/factual")
    ]
    assert order["pairs"] == 2 and order["tau"] == order["seeds"]["0"]
    assert order["tau"] == pytest.approx(sum(signs) / 6**0.5, abs=1e-4)  # three values that differ


def test_nothing_is_done_twice(finished, copied):
    before = written(copied)
    study = finished[1]
    assert set(states(units_of(study, copied)).values()) == {"done"}
    again = run_study(study, copied, jobs=0).study
    assert written(copied) == before
    times = ("date", "seconds")
    same = {key: value for key, value in again.items() if key not in times}
    assert same == {k: v for k, v in finished[2].study.items() if k not in times}


def test_outputs_of_what_is_finished_need_no_set_of_what_is_not(finished, copied, tmp_path):
    more = study_of(tmp_path, seeds=[0, 5])
    found = run_study(more, copied, only_outputs=True).study
    assert found["seeds"] == [0] and found["runs"] == finished[2].study["runs"]


def test_what_is_added_is_all_that_is_done(copied, tmp_path, telling):
    before = written(copied)
    study = study_of(
        tmp_path, seeds=[0, 1], recipes={"softmax": RECIPES["softmax"]}, pairs=[], orders=[]
    )
    assert states(units_of(study, copied)) == {"seed0/softmax": "done", "seed1/softmax": "to do"}
    found = run_study(study, copied, jobs=0).study
    after = written(copied)
    assert before.items() < after.items() and len(after) == len(before) + 2
    assert list(found["runs"]["softmax/tde"]) == ["0", "1"] and found["seeds"] == [0, 1]

    # Other methods are another choice for trained models.
    recipes = {name: RECIPES[name] for name in ("softmax", "sigmoid")}
    study = study_of(tmp_path, methods=["tde", "norcal"], recipes=recipes, pairs=[], orders=[])
    assert set(states(units_of(study, copied)).values()) == {"evaluating"}
    found = run_study(study, copied, jobs=0).study
    last = written(copied)
    assert set(found["runs"]) == {
        *("softmax/factual", "softmax/tde", "softmax/norcal", "sigmoid/factual", "sigmoid/tde")
    }
    changed = {path for path in last if last[path] != after[path]}
    assert changed == {f"seed0/{recipe}/unit.json" for recipe in recipes}


def test_another_config_is_refused_before_anything_is_done(finished, copied, tmp_path):
    shutil.rmtree(copied / "seed0" / "deconfound")
    before = written(copied)
    with pytest.raises(
        ValueError, match="seed0/s.* another configuration: SOLVER.BASE_LR was 0.025"
    ):
        run_study(finished[1], copied, jobs=0, overrides=["SOLVER.BASE_LR", 0.01])
    assert written(copied) == before and not (copied / "seed0" / "deconfound").exists()
    found = states(units_of(finished[1], copied, ["SOLVER.BASE_LR", 0.01]))
    assert found.pop("seed0/deconfound") == "to do"
    assert all(state.startswith("refused: ") for state in found.values())


def test_what_each_unit_has_of_its_own_is_not_to_be_given(finished):
    for key, value in (("OUTPUT_DIR", "x"), ("SEED", 3), ("DATASETS.TRAIN", ("x",))):
        with pytest.raises(ValueError, match=f"{key} .* cannot be given"):
            run_study(finished[1], finished[0], jobs=0, overrides=[key, value])


def test_a_curve_cannot_be_drawn_without_checkpoints(copied, tmp_path):
    study = study_of(tmp_path, curve={"every": 1, "alpha": 1.0})
    (state,) = set(re.sub(".*is finished", "", s) for s in states(units_of(study, copied)).values())
    assert state.startswith(" with curve=None, and curve=[1, 1.0] needs checkpoints")


def test_results_and_resamples_are_of_one_evaluation(copied, tmp_path, monkeypatch, telling):
    """Killed between the two files, it has no result that other resamples stand beside."""

    def killed(*arguments):
        raise KeyboardInterrupt

    changes = dict(recipes={"softmax": RECIPES["softmax"]}, pairs=[], orders=[])
    study = study_of(tmp_path, methods=["tde"], **changes)
    monkeypatch.setattr(unit_module, "save_resamples", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, copied, jobs=0)
    before = study_of(tmp_path, **changes)
    assert states(units_of(before, copied)) == {"seed0/softmax": "evaluating"}


def test_a_unit_that_another_process_works_on(finished, copied, tmp_path):
    shutil.rmtree(copied / "seed0" / "softmax")
    study = study_of(tmp_path, recipes={"softmax": RECIPES["softmax"]}, pairs=[], orders=[])
    (unit,) = units_of(study, copied)
    me = {"pid": os.getppid(), "host": socket.gethostname(), "start": None}
    unit.folder.mkdir()
    (unit.folder / "training.lock").write_text(json.dumps(me))
    outcome = run_study(study, copied, jobs=0)
    assert f"Process {os.getppid()} " in outcome.failed[unit.name]
    assert [path.name for path in unit.folder.iterdir()] == ["training.lock"]


def test_a_cascade(tmp_path, telling):
    options = [
        "MODEL.ROI_HEADS.NAME",
        "TDECascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        True,
    ]
    recipe = {"config": "demo_deconfound.yaml", "opts": [*options, "MODEL.MASK_ON", False]}
    both = [["cascade/factual"], ["cascade/tde"]]
    orders = [{"title": task, "task": task, "runs": both} for task in ("segm", "bbox")]
    study = study_of(
        tmp_path, recipes={"cascade": recipe}, methods=["tde"], masks=["tde", "factual"], pairs=[],
        orders=orders,
    )  # fmt: skip
    outcome = run_study(study, tmp_path / "out", jobs=0)
    assert not outcome.failed and set(outcome.study["runs"]) == {"cascade/factual", "cascade/tde"}
    # Of masks, which it has not, there is no order.
    assert [one["title"] for one in outcome.study["orders"]] == ["bbox"]
    (curve,) = outcome.study["curves"]["cascade"].values()
    assert {"fg_cosine_to_mean", "weight_norm_c"} <= curve[-1].keys()


def test_a_unit_that_fails_does_not_keep_the_others(tmp_path, capsys, forked_workers):
    broken = {"config": "demo_softmax.yaml", "opts": ["MODEL.WEIGHTS", "none.pth"]}
    study_of(
        tmp_path, recipes={"broken": broken, "softmax": RECIPES["softmax"]}, pairs=[], orders=[]
    )
    arguments = ["--config", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out")]
    assert tool.main([*arguments, "--jobs", "2"]) == 1
    printed = capsys.readouterr().out
    assert "failed: seed0/broken: " in printed and "none.pth" in printed
    assert "study      [####################] 2/2" in printed
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert {run.split("/")[0] for run in found["runs"]} == {"softmax"}
    assert tool.main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 units are done" in printed and "training 0/2" in printed


def test_units_that_did_not_begin_are_to_do_and_may_change(tmp_path, monkeypatch):
    def killed(unit, *_, **__):
        unit.claim()
        raise KeyboardInterrupt

    study = study_of(tmp_path, pairs=[], orders=[])
    monkeypatch.setattr(workers, "run_unit", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "out", jobs=0)
    found = states(units_of(study, tmp_path / "out", ["SOLVER.BASE_LR", 0.01]))
    assert sorted(state[:7] for state in found.values()) == ["refused", "to do", "to do"]


def test_given_sets_are_names_or_files(tmp_path, tiny_set):
    files = {split: MetadataCatalog.get(name) for split, name in tiny_set.items()}
    pairs = {split: [one.json_file, one.image_root] for split, one in files.items()}
    for given in (tiny_set, {**tiny_set, "calib": pairs["calib"]}, pairs):
        study = study_of(tmp_path, set=given, pairs=[], orders=[])
        unit, *_ = units_of(study, tmp_path / "out")
        cfg, names = unit.config(), unit.names()
        assert cfg.DATASETS.TRAIN == (names["train"],) and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7
        for split, name in names.items():
            assert MetadataCatalog.get(name).json_file == pairs[split][0]
    for wrong, message in (("none", "no registered"), (["none.json", "."], "none.json")):
        study = study_of(tmp_path, set={**tiny_set, "val": wrong}, pairs=[], orders=[])
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run_study(study, tmp_path / "out", jobs=0)
    assert not (tmp_path / "out").exists()
