from pathlib import Path

import pytest
import yaml

from lvis_tde.experiments.study.file import read_study

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(CONFIGS.glob("studies/*.yaml"))
GOOD = {
    "set": {"kind": "shapes"},
    "recipes": {"softmax": {"config": "demo_softmax.yaml"}, "own": {"config": "own.yaml"}},
    "pairs": [["softmax/tde", "softmax/factual"], ["own/tde", "softmax/tde"]],
    "orders": [{"title": "t", "runs": [["softmax/factual", "own/factual"], ["own/tde"]]}],
    "opts": ["VERSION", 1],
    "quick": {"recipes": ["softmax"], "set": {"num_train": 20}, "opts": ["VERSION", 2]},
}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "own.yaml").write_text("SEED: 1\n")

    def write(name="study.yaml", **changes):
        content = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
        (tmp_path / name).write_text(yaml.safe_dump(content, sort_keys=False))
        return tmp_path / name

    return write


def test_configs_are_those_of_the_project_or_beside_the_file(write):
    study = read_study(write(), configs=CONFIGS)
    assert study.title == "study" and study.seeds == (0,) and study.methods is None
    assert study.recipes["softmax"].config == str(CONFIGS / "demo_softmax.yaml")
    assert study.recipes["own"].config == str(write().parent / "own.yaml")
    # As in a copy of the project's folder of configs.
    (write().parent / "studies").mkdir()
    below = write("studies/study.yaml")
    assert Path(read_study(below, configs=CONFIGS).recipes["own"].config).samefile(
        write().parent / "own.yaml"
    )
    assert study.orders[0].runs == (("softmax/factual", "own/factual"), ("own/tde",))
    assert study.orders[0].metric == "AP" and study.orders[0].task == "bbox"


def test_quick_leaves_recipes_out_and_what_is_about_them(write):
    study = read_study(write(), configs=CONFIGS, quick=True)
    assert list(study.recipes) == ["softmax"] and study.pairs == (
        ("softmax/tde", "softmax/factual"),
    )
    assert study.orders == () and dict(study.data.options) == {"num_train": 20}
    assert study.opts == ("VERSION", 1, "VERSION", 2)
    with pytest.raises(ValueError, match="has no `quick:`"):
        read_study(write(quick=None), configs=CONFIGS, quick=True)


def test_a_file_says_what_differs_from_its_base(write):
    base = write("base.yaml")
    more = {"third": {"config": "own.yaml", "title": "third"}}
    path = base.parent / "more.yaml"
    path.write_text(
        yaml.safe_dump({"base": "base.yaml", "recipes": more, "seeds": [3, 4]}, sort_keys=False)
    )
    study = read_study(path, configs=CONFIGS)
    assert list(study.recipes) == ["softmax", "own", "third"] and study.seeds == (3, 4)
    assert study.pairs == read_study(base, configs=CONFIGS).pairs
    assert list(read_study(path, configs=CONFIGS, quick=True).recipes) == ["softmax"]
    path.write_text(yaml.safe_dump({"base": "base.yaml", "recipes": ["own"]}, sort_keys=False))
    study = read_study(path, configs=CONFIGS)
    assert list(study.recipes) == ["own"] and study.pairs == ()
    path.write_text("base: more.yaml\n")
    with pytest.raises(ValueError, match="base names the file itself"):
        read_study(path, configs=CONFIGS)
    path.write_text("base: again.yaml\n")
    (base.parent / "again.yaml").write_text("base: more.yaml\n")
    with pytest.raises(ValueError, match="base names the file itself, or one that is based on it"):
        read_study(path, configs=CONFIGS)


def test_what_is_left_out_of_an_order_is_told(write):
    runs = [["softmax/factual"], ["softmax/tde", "own/tde"]]
    path = write(orders=[{"title": "t", "runs": runs}], masks=None)
    assert read_study(path, configs=CONFIGS).orders[0].without == ()
    (order,) = read_study(path, configs=CONFIGS, quick=True).orders
    assert order.runs == (("softmax/factual",), ("softmax/tde",)) and order.without == ("own/tde",)


def test_what_is_null_is_as_if_it_were_not_there(write):
    path = write(recipes={"softmax": {"config": "own.yaml", "title": None}}, pairs=[], orders=[])
    path.write_text(path.read_text() + "masks: null\ntitle: null\n")
    study = read_study(path, configs=CONFIGS)
    assert study.recipes["softmax"].title == "softmax" and study.title == "study"
    assert study.masks == ()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"recpies": {}}, "'recpies' is unknown: did you mean recipes"),
        ({"methods": ["tde", "norcall"]}, "methods: 'norcall' is unknown: did you mean norcal"),
        ({"masks": ["factuel"]}, "masks: 'factuel' is unknown: did you mean factual"),
        (
            {"seeds": []},
            r"seeds must be a list of different integers from 0 to 2147483647, got \[\]",
        ),
        ({"seeds": [1, 1]}, r"seeds .* got \[1, 1\]"),
        ({"seeds": [-1]}, r"seeds .* got \[-1\]"),
        ({"seeds": [2**31]}, r"seeds .* to 2147483647, got \[2147483648\]"),
        ({"recipes": {}}, "recipes must map names to configs, got {}"),
        ({"recipes": {"a/b": {"config": "own.yaml"}}}, "'a/b' needs a name of letters"),
        ({"recipes": {"a": {"config": "none.yaml"}}}, "its config none.yaml is not in"),
        ({"recipes": {"a": {"config": "own.yaml", "opt": 1}}}, "'opt' is unknown.*opts"),
        ({"recipes": {"a": {"title": "b"}}}, "recipe 'a' must be"),
        ({"set": {"kind": "shape"}}, "kind must be one of glyphs, shapes, got 'shape'"),
        ({"set": {"kind": "shapes", "num_trains": 3}}, "'num_trains' is unknown.*num_train"),
        ({"set": {"train": "a", "val": "b"}}, "set needs three different train, calib, val"),
        ({"set": {"train": "a", "val": "b", "calib": "b"}}, "set needs three different"),
        ({"set": {"train": "a", "val": "b", "calib": ["c"]}}, "takes a name or"),
        ({"set": None}, "set must be"),
        ({"pairs": [["softmax/tde"]]}, r"a pair is \[RUN, OVER\]"),
        ({"pairs": [["softmax/tde", "softmax/none"]]}, "'softmax/none' is no RECIPE/METHOD"),
        ({"pairs": [["softmax/tde", "other/tde"]]}, "'other/tde' is no RECIPE/METHOD"),
        ({"orders": [{"runs": [["other/tde"]]}]}, "'other/tde' is no RECIPE/METHOD"),
        ({"orders": [{"runs": [["own/tde"], ["own/tde"]]}]}, "own/tde more than once"),
        ({"orders": [{"runs": [["own/tde"], ["own/factual"]], "metric": "mAP"}]}, "'mAP'"),
        ({"mean_batches": 1}, "mean_batches=1 must be at least 2"),
        ({"curve": {"every": 10}}, "curve must be .every: ITERATIONS, alpha: ALPHA"),
        ({"curve": {"every": 0, "alpha": 1}}, "curve needs every >= 1"),
        ({"curve": {"every": 10, "alpha": True}}, "a number alpha"),
        ({"opts": "VERSION 1"}, "opts must be a list"),
        ({"opts": ["VERSION"]}, r"opts are KEY, VALUE and so on, got \['VERSION'\]"),
        ({"opts": [["VERSION", 1], ["SEED", 2]]}, "opts are KEY, VALUE and so on"),
        ({"methods": ["composition"]}, "is made of the methods beside it"),
        ({"orders": [{"metric": "AP75", "runs": [["own/tde"]]}]}, "metric: 'AP75' is unknown"),
        ({"set": {"train": [1, 2], "calib": "b", "val": "c"}}, r"a name or \[JSON, IMAGES\]"),
        ({"opts": ["SEED", 1]}, "SEED 1 cannot be given: seeds: says it"),
        (
            {"opts": ["VERSION", 1, "OUTPUT_DIR", "x"]},
            "OUTPUT_DIR 'x' cannot be given: .* --output",
        ),
        (
            {"recipes": {"a": {"config": "own.yaml", "opts": ["DATASETS.TRAIN", ["b"]]}}},
            "recipe 'a': DATASETS.TRAIN .* cannot be given: set: says it",
        ),
        (
            {"recipes": {n: {"config": "own.yaml", "title": "t"} for n in ("softmax", "own")}},
            "two recipes have the title 't'",
        ),
        ({"set": {"kind": ["shapes"]}}, r"kind must be one of glyphs, shapes, got \['shapes'\]"),
        ({"methods": 5}, "methods must be a list of names, got 5"),
        ({"masks": 5}, "masks must be a list of names, got 5"),
        ({"methods": ["norcal"]}, "'softmax/tde' is asked for, but not among methods:"),
        ({"orders": [{"runs": [5, ["own/tde"]]}]}, "5 is no RECIPE/METHOD"),
        (
            {"orders": [{"runs": ["own/factual", "own/norcal"], "task": "segm"}]},
            "masks of 'own/norcal' are asked for, but not in masks:",
        ),
    ],
)
def test_a_mistake_is_named(write, changes, message):
    with pytest.raises(ValueError, match=message):
        read_study(write(**changes), configs=CONFIGS)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_study(tmp_path / "none.yaml")
    for text, message in (("a: [", "no valid YAML"), ("5", "holds no keys")):
        (tmp_path / "study.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_study(tmp_path / "study.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_are_whole(path):
    study = read_study(path, configs=CONFIGS)
    assert study.title and all(recipe.title for recipe in study.recipes.values())
    # What a file says of a run is of one that there is; of a base's recipes it may leave some out.
    if "base:" not in path.read_text():
        assert len(study.pairs) == len(study.content["pairs"])
        assert len(study.orders) == len(study.content["orders"])
    assert len(study.pairs) > 1
    for order in study.orders:
        assert order.source and order.title
    if "quick:" in path.read_text():
        quick = read_study(path, configs=CONFIGS, quick=True)
        assert quick.recipes.keys() <= study.recipes.keys() and len(quick.pairs) > 1
