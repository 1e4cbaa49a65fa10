"""What is chosen, on made-up figures, and that a model is asked what it says."""

import dataclasses
import itertools
import math

import pytest
import torch

from lvis_tde.calibration.family import COMPOSITION, METRICS, search
from lvis_tde.calibration.methods import (
    CLASS_MEANS,
    FACTUAL,
    SIGMOID_METHODS,
    SOFTMAX_METHODS,
    Method,
    methods_of,
)
from lvis_tde.calibration.settings import describe
from lvis_tde.posthoc import Settings, Statistics, compose

BOTH = pytest.mark.parametrize("methods", [SOFTMAX_METHODS, SIGMOID_METHODS])


def fake(score, passes):
    """An evaluation that gives each setting its score and keeps what each pass was asked for."""

    def evaluate(settings):
        assert len(set(settings)) == len(settings)
        passes.append(list(settings))
        return {one: dict.fromkeys(METRICS, score(one)) for one in settings}

    return evaluate


def peak(**best):
    """Highest where each field has its value; the rest of the settings cost what they are."""

    def score(settings):
        values = dataclasses.asdict(settings)
        numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        return 50 - sum((v - best.get(k, 0.0)) ** 2 for k, v in numbers.items())

    return score


def test_each_method_gets_its_best_strength_and_equals_go_to_the_weaker(caplog):
    passes = []
    methods = (
        Method("peak", ("tau_norm",), (0.5, 1.0, 1.5), "weights"),
        Method("edge", ("norcal",), (0.25, 0.5), "counts"),
        Method("harm", ("fracal",), (1.0, 2.0), "counts"),
        Method("flat", ("logit_adjustment",), (1.0, 2.0), "counts"),
        Method("only", ("logn",), (1.0,), "logits"),
    )

    def score(s):
        bonus = -abs(s.tau_norm - 1) + s.norcal - s.fracal - s.logn
        return 30 + bonus + (s.logit_adjustment > 0)

    choice = search(methods, fake(score, passes))
    found = {row.method: row for row in choice.rows}
    assert list(found) == [FACTUAL, "peak", "edge", "harm", "flat", "only", COMPOSITION]
    strengths = {name: row.strength for name, row in found.items()}
    assert strengths == {
        FACTUAL: 0,
        "peak": 1.0,
        "edge": 0.5,
        "harm": 0,  # nothing is better than leaving it out
        "flat": 1.0,
        "only": 1.0,  # there is nothing to choose, though it does harm
        COMPOSITION: None,
    }
    assert found["harm"].settings == Settings() and found["only"].settings == Settings(logn=1.0)
    for row in choice.rows:
        assert row.metrics == dict.fromkeys(METRICS, score(row.settings))
    assert [row.method for row in choice.rows if row.last] == ["edge"]
    assert "best strength of edge, 0.5, is the largest that was tried" in caplog.text
    curve = choice.curve("peak")
    assert {s: v["AP"] for s, v in curve.items()} == {0.0: 29, 0.5: 29.5, 1.0: 30, 1.5: 29.5}
    # All methods share one pass, with the factual probabilities in it once.
    assert len(passes[0]) == 1 + sum(len(m.strengths) for m in methods)


@pytest.mark.parametrize(
    "best, single, composed",
    [
        ({"logit_adjustment": 1.0}, "logit_adjustment", Settings(logit_adjustment=1.0)),
        (
            {"logit_adjustment": 1.1, "region": 0.5, "class_": 0.5},
            "logit_adjustment",
            Settings(logit_adjustment=1.0, region=0.5, class_=0.5),
        ),
        (
            # One step back from the best method alone, and another one up in the second round.
            {"logit_adjustment": 0.5, "region": 0.5, "class_": 0.5, "tau_norm": 0.6},
            "tde",
            Settings(logit_adjustment=0.5, region=0.5, class_=0.5, tau_norm=0.5),
        ),
    ],
)
def test_composition_is_built_on_the_best_method(best, single, composed):
    passes = []
    choice = search(SOFTMAX_METHODS, fake(peak(**best), passes))
    alone = max(choice.rows[:-1], key=lambda row: row.metrics["AP"])
    assert alone.method == single
    assert choice.rows[-1].settings == composed
    asked = list(itertools.chain(*passes))
    assert len(passes) <= 1 + 4 and len(set(asked)) == len(asked)
    assert all(len(one) <= 10 for one in passes[1:])
    again = search(SOFTMAX_METHODS, fake(peak(**best), []))
    assert again.rows == choice.rows


def test_each_free_method_is_tried_on_top_before_a_second_strength_of_any():
    methods, passes = (*SOFTMAX_METHODS, CLASS_MEANS), []
    score = peak(class_means=48.0, logit_adjustment=0.5, region=0.5, class_=0.5)
    choice = search(methods, fake(score, passes), rounds=1, most=4)
    means = CLASS_MEANS.settings(48.0)
    flipped = dataclasses.replace(means, background="joint")
    tops = [m.on_top_of(means, m.added[0]) for m in SOFTMAX_METHODS if m.added]
    assert passes[1] == [flipped, *tops] and len(tops) == 3
    assert choice.row(COMPOSITION).settings in tops


def test_a_far_composition_is_reached_step_by_step():
    score = peak(class_means=24.0, tau_norm=1.0, region=2.0, class_=2.0)
    choice = search((*SOFTMAX_METHODS, CLASS_MEANS), fake(score, []))
    assert choice.row("class_means").strength == 24.0
    found = choice.row(COMPOSITION).settings
    assert (found.class_means, found.tau_norm, found.region) == (24.0, 1.0, 2.0)


def test_nothing_is_better_than_the_trained_model():
    choice = search(SIGMOID_METHODS, fake(peak(), []), sigmoid=True)
    assert choice.rows[-1].settings == Settings()
    assert {r.strength for r in choice.rows if r.method not in (COMPOSITION, "logn")} == {0}


def test_other_background_is_tried_for_a_softmax_alone():
    def score(s):
        return 10 + s.norcal - (s.norcal > 0.6) + 5 * (s.norcal > 0 and s.background == "exempt")

    softmax = search(SOFTMAX_METHODS, fake(score, []))
    assert softmax.row("norcal").settings == Settings(norcal=0.6, background="joint")
    assert softmax.row(COMPOSITION).settings == Settings(norcal=0.6, background="exempt")
    sigmoid = search(SIGMOID_METHODS, fake(peak(tau_norm=1.0), []), sigmoid=True)
    assert {one.background for one in sigmoid.tried} == {"exempt"}


def test_other_metric_and_none_that_is_defined():
    def evaluate(settings):
        return {
            s: {"AP": -s.tau_norm, "APr": 10 * s.tau_norm, "APc": 0, "APf": 0} for s in settings
        }

    methods = [Method("tau_norm", ("tau_norm",), (0.5, 1.0), "weights")]
    assert search(methods, evaluate, metric="APr").row("tau_norm").strength == 1.0
    with pytest.raises(ValueError, match="AP is undefined for all settings"):
        search(methods, fake(lambda s: math.nan, []))
    with pytest.raises(ValueError, match="AP is undefined for all settings"):
        search(methods, fake(lambda s: -100.0, []))


@BOTH
def test_every_strength_is_one_that_can_be_composed(methods):
    names = [method.name for method in methods]
    assert len(set(names)) == len(names)
    sigmoid = methods is SIGMOID_METHODS
    generator = torch.Generator().manual_seed(0)
    logits, cosine = torch.randn(6, 5, generator=generator), torch.rand(6, 1, generator=generator)
    pull = torch.randn(5, 1, generator=generator)
    four = torch.tensor([1.0, 10.0, 30.0, 100.0])
    known = Statistics(
        counts=four, dimension=1 + four / 100, mean=four / 10, std=four, weight_norms=four
    )
    factual = compose(Settings(), sigmoid=sigmoid)(logits)
    for method in methods:
        assert list(method.strengths) == sorted(set(method.strengths)) and method.strengths[0] > 0
        assert method.settings(0) == Settings()
        for strength in (*method.strengths, *method.added):
            composition = compose(method.settings(strength), known, sigmoid=sigmoid)
            terms = (cosine, pull) if composition.uses_tde else ()
            probs = composition(logits, *terms)
            assert not torch.allclose(probs[:, :-1], factual[:, :-1], atol=1e-6), method
    total = sum(len(method.strengths) for method in methods)
    assert total <= 45


def test_methods_are_those_of_the_classifier(tiny_model):
    assert methods_of(tiny_model("deconfound")) is SOFTMAX_METHODS
    assert methods_of(tiny_model("sigmoid")) is SIGMOID_METHODS
    model = tiny_model("sigmoid")
    model.roi_heads.box_predictor.statistics.class_means[0, 0] = 1.0
    assert methods_of(model) == (*SIGMOID_METHODS, CLASS_MEANS)
    with pytest.raises(ValueError, match="no TDE predictor"):
        methods_of(tiny_model("softmax"))


@pytest.mark.parametrize(
    "words, settings",
    [
        ("", Settings()),
        ("", Settings(keep_sum="factual")),
        ("alpha 1.5", Settings(region=1.5, class_=1.5)),
        ("region 0.35", Settings(region=0.35)),
        ("class 2", Settings(class_=2.0)),
        ("norcal 0.8, joint", Settings(norcal=0.8, background="joint")),
        ("alpha 0.2, sum factual", Settings(region=0.2, class_=0.2, keep_sum="factual")),
        (
            "alpha 0.1, tau_norm 0.5, logit_adjustment 1, sum free",
            Settings(region=0.1, class_=0.1, tau_norm=0.5, logit_adjustment=1.0, keep_sum=""),
        ),
    ],
)
def test_settings_in_words(words, settings):
    assert describe(settings) == words
