"""What checkpoints remember of strengths and classes, of this release and of earlier ones."""

import dataclasses

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from predictor_util import C, make_predictor

from lvis_tde.modeling.words import WORD, pack, pack_words, unpack, unpack_words
from lvis_tde.posthoc import Settings

NAMES = ["wren", "grey heron", "Ä-owl", "鷹", "x" * 40]
COUNTS = torch.arange(1, C + 1)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def chosen_predictor(**options):
    predictor = make_predictor(**options)
    predictor.statistics.set_annotations(
        images=COUNTS, instances=COUNTS, dimension=COUNTS.float(), num_images=9, names=NAMES
    )
    region = 0.2 if options.get("use_sigmoid_ce") else 2.0
    predictor.posthoc = Settings(region=region, class_=2.0, tau_norm=0.5, logit_adjustment=0.25)
    predictor.chosen, predictor.calibrated_alpha = "alpha 2 by bbox/AP on birds", 2.0
    return predictor


@pytest.mark.parametrize("sigmoid", [False, True])
def test_all_strengths_go_through_a_checkpoint(sigmoid, tmp_path, caplog):
    first = chosen_predictor(use_sigmoid_ce=sigmoid)
    DetectionCheckpointer(first, str(tmp_path)).save("model")
    second = chosen_predictor(use_sigmoid_ce=sigmoid)
    second.chosen = ""
    DetectionCheckpointer(second).load(str(tmp_path / "model.pth"))
    assert second.chosen == first.chosen and not warnings_of(caplog)
    state = unpack(torch.load(tmp_path / "model.pth", weights_only=True)["model"]["strengths"])
    assert Settings(**state["settings"]) == first.posthoc and state["sigmoid"] is sigmoid
    assert state["chosen"] == first.chosen


@pytest.mark.parametrize("letter", ["a", "é", "中", "\N{GRINNING FACE}", "\x01"])
def test_strengths_stay_however_long_the_words_beside_them_are(letter):
    predictor = chosen_predictor()
    predictor.chosen = letter * 400
    state = unpack(predictor.state_dict()["strengths"])
    assert Settings(**state["settings"]) == predictor.posthoc
    assert len(state["chosen"]) > 100 and set(state["chosen"]) == {letter}


def test_other_settings_than_the_chosen_ones_are_told(caplog):
    state = chosen_predictor().state_dict()
    second = make_predictor(alpha=2.0)
    second.load_state_dict(state)
    (message,) = warnings_of(caplog)
    assert "tau_norm 0.0 in place of 0.5" in message and "alpha 2 by bbox/AP on birds" in message
    assert "logit_adjustment 0.0 in place of 0.25" in message and "class_" not in message
    # Nobody chose these, so there is nothing to tell.
    caplog.clear()
    make_predictor(alpha=2.0).load_state_dict(make_predictor(alpha=0.5).state_dict())
    assert not warnings_of(caplog)


def test_sigmoids_in_place_of_a_softmax_are_told(caplog):
    state = make_predictor(use_sigmoid_ce=True, norm="none").state_dict()
    make_predictor(norm="none").load_state_dict(state)
    assert "has sigmoids, and this model a softmax" in warnings_of(caplog)[0]
    assert "USE_SIGMOID_CE (use_sigmoid_ce) to True" in warnings_of(caplog)[0]


@pytest.mark.parametrize("size", [0, 7])
def test_checkpoints_of_earlier_releases_and_damaged_entries(size, caplog):
    """They have no such entries, or somebody wrote something else there."""
    state = chosen_predictor().state_dict()
    for name in ("strengths", "statistics.names", "statistics.groups"):
        del state[name]
    if size:
        state["strengths"] = torch.full((size,), 200, dtype=torch.uint8)
    second = chosen_predictor()
    second.load_state_dict(state)  # strictly
    assert second.chosen == "" and second.calibrated_alpha == 2.0
    assert second.statistics.class_names is None and second.statistics.class_groups is None
    assert torch.equal(second.statistics.images, COUNTS) and second.statistics.classes.any()


def test_a_later_releases_settings_are_passed_over(caplog):
    state = chosen_predictor().state_dict()
    content = unpack(state["strengths"])
    content["settings"]["not_yet_invented"] = 3.0
    state["strengths"] = pack(content, len(state["strengths"]))
    chosen_predictor().load_state_dict(state)
    assert not warnings_of(caplog)


def test_names_and_groups(tmp_path):
    predictor = make_predictor()
    assert predictor.statistics.class_names is None
    predictor.statistics.set_classes(NAMES, "rrcff")
    DetectionCheckpointer(predictor, str(tmp_path)).save("model")
    other = make_predictor()
    DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
    assert other.statistics.class_names == NAMES
    assert other.statistics.class_groups == list("rrcff")
    other.half().float()
    assert other.statistics.class_names == NAMES
    other.statistics.set_classes(NAMES)
    assert other.statistics.class_groups is None
    with pytest.raises(ValueError, match=f"3 values for {C} classes"):
        other.statistics.set_classes(NAMES, "rcf")
    other.statistics.forget()
    assert other.statistics.class_names is None


def test_words():
    long = "ü" * WORD
    assert unpack_words(pack_words(["", "a b", long])) == ["", "a b", long[: WORD // 2]]
    assert pack_words([]).shape == (0, WORD)
    content = {"a": [1, None], "b": "ü"}
    assert unpack(pack(content, 100)) == content and pack(content, 100).shape == (100,)
    assert unpack(pack("x" * 200, 100)) is None  # no room
    assert unpack(torch.zeros(3)) is None


def test_a_copy_for_other_settings_keeps_what_was_chosen():
    predictor = chosen_predictor()
    predictor.posthoc = dataclasses.replace(predictor.posthoc, tau_norm=0.0)
    assert predictor.chosen and unpack(predictor.state_dict()["strengths"])["settings"] == (
        dataclasses.asdict(predictor.posthoc)
    )
