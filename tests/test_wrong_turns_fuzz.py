"""Configs and checkpoints changed at random: each is taken, or refused in words.

A change may leave a file as good as it was, so a clean run is right, too. What must not happen is
an error that names nothing, code that runs, or a file that changes.
"""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wrong_turns_util import RunsCode

from lvis_tde.checkpointer import load_weights, read_checkpoint
from lvis_tde.engine import YacsRecipe, load_config, load_recipe
from lvis_tde.engine.preflight import find, preflight

FAST = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FEWER = settings(FAST, max_examples=60)
FEW_AND_MANY = pytest.mark.parametrize("examples", [50, pytest.param(500, marks=pytest.mark.slow)])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-3, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Linear(6, 4)
        self.two = torch.nn.BatchNorm1d(4)


MODEL = Model()


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


WHOLE = saved({"model": MODEL.state_dict(), "iteration": 3, "scheduler": {"last_epoch": 3}})
PICKLED = pickle.dumps(
    {"model": {k: v.numpy() for k, v in MODEL.state_dict().items()}, "__author__": "x"}
)


def loads_or_says(path):
    """Whether a file was taken; if not, its name must be in the error."""
    before = path.read_bytes()
    model = Model()
    try:
        load_weights(model, str(path))
        taken = True
    except (ValueError, OSError) as error:
        assert str(path) in str(error), error
        assert len(str(error)) < 900
        taken = False
    assert path.read_bytes() == before and sorted(path.parent.iterdir()) == [path]
    return taken


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@FEW_AND_MANY
@pytest.mark.parametrize("name, whole", [("model.pth", WHOLE), ("model.pkl", PICKLED)])
def test_flipped_bytes(name, whole, examples, tmp_path):
    path = tmp_path / name

    @settings(FAST, max_examples=examples)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255)), max_size=4))
    def check(flips):
        content = bytearray(whole)
        for place, bits in flips:
            content[place] ^= bits
        path.write_bytes(content)
        assert loads_or_says(path) or flips

    check()


@pytest.mark.parametrize("name, whole", [("model.pth", WHOLE), ("model.pkl", PICKLED)])
def test_cut_and_filled(name, whole, tmp_path):
    path = tmp_path / name

    @FEWER
    @given(st.integers(0, len(whole) - 1), st.binary(max_size=30))
    def check(length, more):
        path.write_bytes(whole[:length] + more)
        loads_or_says(path)

    check()


def test_any_bytes(tmp_path):
    @FEWER
    @given(st.binary(max_size=60))
    def check(content):
        for name in ("x.pth", "x.pkl"):
            path = tmp_path / name
            path.write_bytes(content)
            assert not loads_or_says(path)
            path.unlink()

    check()


@FEW_AND_MANY
def test_entries_dropped_and_of_other_types(examples, tmp_path):
    path = tmp_path / "model.pth"
    names = list(MODEL.state_dict())

    @settings(FAST, max_examples=examples)
    @given(
        st.sets(st.sampled_from(names)),
        st.dictionaries(st.sampled_from([*names, "other"]), VALUES, max_size=2),
        st.sampled_from(["model", "", "deep"]),
    )
    def check(dropped, others, place):
        weights = {k: v for k, v in MODEL.state_dict().items() if k not in dropped} | others
        content = {"model": weights, "": weights, "deep": {"model": {"model": weights}}}[place]
        path.write_bytes(saved({"model": content} if place == "model" else content))
        taken = loads_or_says(path)
        if place != "deep" and not others and len(dropped) < len(names):
            assert taken
        if taken and not others and place != "deep":
            lacking, _ = load_weights(Model(), str(path))
            parameters = {name for name, _ in MODEL.named_parameters()}
            assert set(lacking) == dropped & parameters

    check()


def test_other_shapes_and_dtypes(tmp_path):
    path = tmp_path / "model.pth"
    parameters = [name for name, _ in MODEL.named_parameters()]

    @FEWER
    @given(st.sampled_from(parameters), st.lists(st.integers(0, 5), max_size=3), st.booleans())
    def check(name, shape, as_array):
        value = np.zeros(shape, np.float64)
        weights = MODEL.state_dict() | {name: value if as_array else torch.from_numpy(value)}
        path.write_bytes(saved({"model": weights}))
        assert loads_or_says(path)
        lacking, other = load_weights(Model(), str(path))
        fits = tuple(shape) == MODEL.get_parameter(name).shape
        assert (lacking, other) == (([], []) if fits else ([name], [name]))

    check()


def test_code_is_never_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "files").mkdir()
    weights = MODEL.state_dict()

    @FEWER
    @given(st.sampled_from([*weights, "model", "iteration", "new"]), st.sampled_from([2, 3, 4]))
    def check(place, protocol):
        code = RunsCode(marker)
        content = {"model": dict(weights), "iteration": 1}
        (content["model"] if place in weights else content)[place] = code
        path = tmp_path / "files" / "x.pth"
        torch.save(content, path, pickle_protocol=protocol)
        assert not loads_or_says(path)
        path.unlink()
        path = tmp_path / "files" / "x.pkl"
        path.write_bytes(pickle.dumps({place: code, "model": {}}, protocol=protocol))
        assert not loads_or_says(path)
        path.unlink()
        assert not marker.exists()

    check()


# Configs.


@pytest.fixture(scope="module")
def config(playground):
    return yaml.safe_load((playground / "deconfound.yaml").read_text())


def places(node, prefix=()):
    for key, value in node.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from places(value, (*prefix, key))


def config_or_words(path):
    try:
        return load_recipe(str(path))
    except (ValueError, OSError) as error:
        assert str(path) in str(error), error
        assert len(str(error)) < 900 and len(str(error).splitlines()) <= 3
    return None


@FEW_AND_MANY
def test_configs_of_other_values_and_keys(config, examples, tmp_path):
    path = tmp_path / "c.yaml"
    keys = list(places(config))

    @settings(FAST, max_examples=examples)
    @given(st.sampled_from(keys), VALUES, st.booleans())
    def check(place, value, dropped):
        changed = copy.deepcopy(config)
        node = changed
        for key in place[:-1]:
            node = node[key]
        del node[place[-1]]
        if not dropped:
            node[place[-1]] = value
        path.write_text(yaml.safe_dump(changed))
        recipe = config_or_words(path)
        assert recipe is not None or not dropped

    check()


def test_configs_of_flipped_bytes(playground, tmp_path):
    path = tmp_path / "c.yaml"
    whole = (playground / "deconfound.yaml").read_bytes()

    @FEWER
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255)), max_size=4))
    def check(flips):
        content = bytearray(whole)
        for place, bits in flips:
            content[place] ^= bits
        path.write_bytes(content)
        config_or_words(path)

    check()


def test_overrides(config):
    keys = [".".join(place) for place in places(config)]

    @FEWER
    @given(
        st.lists(st.one_of(st.sampled_from(keys), st.text(max_size=6), VALUES), max_size=4),
        st.sampled_from(keys),
        st.one_of(VALUES, st.text(max_size=6)),
    )
    def check(more, key, value):
        for overrides in ([key, value], [key, str(value)], more):
            try:
                load_config("", overrides)
            except ValueError as error:
                assert len(str(error)) < 900
                assert key in str(error) or overrides is more, error

    check()


def test_what_loads_builds_a_model_or_says_why_not(playground, tiny_cfg):
    """Any one value of the method, the solver or the input, through the checks of a start."""
    keys = ["MODEL.TDE", "MODEL.POSTHOC", "SOLVER", "INPUT", "MODEL.ROI_BOX_HEAD", "MODEL.FPN"]
    cfg = tiny_cfg()
    names = [
        f"{group}.{key}"
        for group in keys
        for key, value in node_of(cfg, group).items()
        if not hasattr(value, "items")
    ]

    @settings(FAST, max_examples=40)
    @given(st.sampled_from(names), st.sampled_from(["-1", "0", "3", "0.5", "'x'", "(1, 2)", "''"]))
    def check(name, value):
        try:
            found = load_config("", ["MODEL.DEVICE", "cpu", name, value])
        except ValueError as error:
            assert name in str(error)
            return
        found.merge_from_other_cfg(with_only(cfg, found, name, value))
        for one in preflight(YacsRecipe(found), training=True, testing=False):
            if not one.what.startswith("data"):
                find(one)  # raises nothing but what it is made for

    check()


def node_of(cfg, path):
    for key in path.split("."):
        cfg = cfg[key]
    return cfg


def with_only(cfg, found, name, value):
    """The tiny config with one key of another, so that no large model is built."""
    changed = cfg.clone()
    changed.defrost()
    *path, last = name.split(".")
    node_of(changed, ".".join(path))[last] = node_of(found, ".".join(path))[last]
    changed.MODEL.DEVICE = "cpu"
    changed.MODEL.WEIGHTS = ""
    return changed


def test_the_whole_file_is_taken(tmp_path):
    """What the others change is good to begin with."""
    for name, whole in (("a.pth", WHOLE), ("b.pkl", PICKLED)):
        path = tmp_path / name
        path.write_bytes(whole)
        found = read_checkpoint(path)
        assert set(found["model"]) == set(MODEL.state_dict())
        assert loads_or_says(path)
        path.unlink()
