"""Arithmetic of the benchmark on sigmoids against closed forms, its tables on made-up results."""

import argparse
import math

import numpy as np
import pytest
import torch

from benchmarks import sigmoid_parts_measures as measures
from benchmarks.sigmoid_parts import add_arguments, markdown, with_numbers
from benchmarks.sigmoid_parts_figure import rare_scores, score_figure
from benchmarks.sigmoid_parts_regions import Regions
from benchmarks.sigmoid_parts_runs import Run
from benchmarks.sigmoid_parts_statistics import (
    auc,
    auc_pooled,
    auc_within,
    best,
    fit_logistic,
    interpolated,
    plateau,
    principal_component,
    transfer_loss,
    variation,
)
from benchmarks.sigmoid_parts_tables import tables
from lvis_tde.posthoc import Settings, keep_sum, logit_adjustment, tde


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_auc_of_two_normals_is_the_closed_form():
    positive, negative = _random(20_000) + 1.0, _random(30_000, seed=1)
    assert auc(positive, negative) == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=5e-3)


def test_auc_counts_ties_half_and_is_unknown_without_pairs():
    assert auc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0, 3.0])) == pytest.approx(3.5 / 6)
    assert auc(torch.tensor([]), torch.tensor([1.0])) is None
    assert auc(torch.tensor([1.0]), torch.tensor([])) is None


def test_a_constant_per_class_moves_the_pooled_auc_alone():
    scores, labels = _random(400, 3), torch.randint(0, 4, (400,))
    everything = torch.ones(400, dtype=torch.bool)
    moved = scores + torch.tensor([0.0, 3.0, -5.0])
    within = auc_within(scores, labels, [0, 1, 2], everything)
    assert auc_within(moved, labels, [0, 1, 2], everything) == within
    assert auc_pooled(moved, labels, [0, 1, 2], everything) != pytest.approx(
        auc_pooled(scores, labels, [0, 1, 2], everything), abs=1e-3
    )


def test_auc_within_is_the_mean_over_classes_with_both_kinds():
    scores = torch.tensor([[2.0, 0.0, 9.0], [1.0, 1.0, 9.0], [0.0, 2.0, 9.0]])
    labels = torch.tensor([0, 1, 3])
    # Class 0 ranks its region first (1), class 1 its own second of three (1/2), 2 has none.
    assert auc_within(scores, labels, [0, 1, 2], torch.ones(3, dtype=torch.bool)) == 0.75
    only = torch.tensor([False, False, True])
    assert auc_within(scores, labels, [1], only) == 0.0


def test_principal_component_is_the_axis_of_greatest_variance():
    x = _random(2000, 4) * torch.tensor([1.0, 5.0, 1.0, 0.5]) + 30.0
    found = principal_component(x)
    assert found.norm() == pytest.approx(1.0) and abs(found[1]) > 0.99


def test_logistic_fit_finds_what_the_logit_lacks():
    x, offset = _random(20_000, 3) * torch.tensor([1.0, 4.0, 0.5]), _random(20_000, seed=1)
    truth = torch.tensor([0.8, -0.2, 0.0])
    chance = (0.5 * (offset + x @ truth) - 0.3).sigmoid()
    labels = torch.rand(20_000, generator=torch.Generator().manual_seed(2)) < chance
    assert torch.allclose(fit_logistic(x, offset, labels), truth, atol=0.1)


def test_optimum_width_and_interpolation():
    curve = {0.0: 10.0, 1.0: 12.0, 2.0: 11.0, 4.0: 5.0}
    assert best(curve) == 1.0 and best({0.0: 3.0, 1.0: 3.0}) == 0.0
    assert plateau(curve, 1.0) == (0.5, 2.0)
    assert plateau(curve, 0.5) == (0.75, 1.5)
    assert plateau({0.0: 5.0, 1.0: 4.0}, 0.5) == (0.0, 0.5)
    assert interpolated(curve, 3.0) == 8.0 and interpolated(curve, 9.0) == 5.0


def test_a_unit_that_explains_the_optima_transfers_without_loss():
    def curve(peak):
        return {s: 20 - abs(s - peak) for s in (0.0, 1.0, 2.0, 4.0)}

    curves, units = [curve(1.0), curve(2.0), curve(4.0)], [4.0, 2.0, 1.0]
    assert transfer_loss(curves, units) == pytest.approx(0.0)
    # Others' means: 3, 2.5 and 1.5.
    assert transfer_loss(curves, [1.0] * 3) == pytest.approx((2 + 0.5 + 2.5) / 3)
    assert transfer_loss(curves[:1], [1.0]) is None
    assert variation([1.0, 3.0]) == pytest.approx(math.sqrt(2) / 2)
    assert variation([0.0, 0.0]) is None and variation([1.0]) is None


@pytest.fixture
def regions():
    """40 regions of 2 images, 4 classes, 6 features."""
    weight, features = _random(5, 6), _random(40, 6, seed=1).abs()
    mean = features.mean(0)
    direction = mean / mean.norm()
    run = Run(None, "glyphs", 0, {}, True)
    made = Regions(
        run=run,
        split="val",
        logits=features @ weight.T - 3,
        features=features,
        boxes=torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(40, 1) + torch.arange(40.0)[:, None] * 20,
        cosine=(features @ direction)[:, None],
        pull=(weight @ direction)[:, None],
        mean=mean,
        means=_random(4, 6, seed=2),
        center=_random(6, seed=3),
        similarity=0.5,
        weight=weight,
        bias=torch.full((5,), -3.0),
        images=[
            {"image_id": i, "number": 20, "size": (999, 999), "height": 999, "width": 999}
            for i in (1, 2)
        ],
        nms=0.5,
        threshold=1e-4,
        limit=10,
    )
    made.counts = torch.tensor([1.0, 5.0, 50.0, 500.0])
    made.groups = np.array(["r", "r", "c", "f"])
    return made


def test_lift_and_shift_are_what_the_steps_add_to_every_logit(regions):
    after = tde(regions.logits, regions.cosine, regions.pull, 0.7, 0.0)[:, :-1]
    expected = (after - regions.logits[:, :-1]) / 0.7
    assert torch.allclose(measures.lift(regions)[:, None].expand(-1, 4), expected, atol=1e-5)
    factual = regions.logits[:, :-1]
    adjusted = logit_adjustment(factual, regions.counts, 1.0, background=False)
    moved = adjusted + measures.shift_of_the_sum(regions)[:, None]
    assert torch.allclose(moved, keep_sum(adjusted, factual), atol=1e-5)


def test_similarity_ranks_by_the_cosine_to_the_mean_of_the_class(regions):
    regions.labels = torch.arange(40) % 5
    found = measures.ranking(regions, 0.35)
    cosine = torch.cosine_similarity(
        (regions.features - regions.center)[:, None], (regions.means - regions.center)[None], dim=2
    )
    some = torch.arange(40) % measures.STRIDE == 0
    for name, scores in (
        ("similarity", cosine),
        ("logit + 12 similarity", regions.logits[:, :-1] + 12 * cosine),
    ):
        expected = auc_within(scores, regions.labels, [0, 1], some)
        assert found["r"][name]["all"] == pytest.approx(expected)
    probabilities = regions.probabilities(measures.CURVES["class means"][1](12.0))
    expected = (regions.logits[:, :-1] + 12 * (cosine - 0.5)).sigmoid()
    assert torch.allclose(probabilities[:, :-1], expected, atol=1e-6)


def test_candidates_are_the_best_detections_whatever_their_score(regions):
    rows, classes = measures.candidates(regions, 7)
    assert len(rows) == 14 and int((rows < 20).sum()) == 7
    first = regions.logits[:20, :-1].flatten().topk(7).values
    assert torch.allclose(regions.logits[rows[:7], classes[:7]], first)


def test_a_subset_keeps_whole_images(regions):
    odd = regions.subset(slice(1, None, 2))
    assert [image["image_id"] for image in odd.images] == [2]
    assert torch.equal(odd.logits, regions.logits[20:]) and len(odd.cosine) == 20


def test_power_one_is_the_exempted_softmax(regions):
    softmax = Regions(**{**vars_of(regions), "run": Run(None, "glyphs", 0, {}, False)})
    softmax.counts = regions.counts
    exempt = softmax.probabilities(Settings(region=1.0, class_=1.0))
    assert torch.allclose(measures.powered(softmax, 1.0, 1.0), exempt)
    squared = measures.powered(softmax, 1.0, 2.0)
    foreground = 1 - exempt[:, -1:]
    assert torch.allclose(squared[:, :-1], exempt[:, :-1] * foreground, atol=1e-6)


def test_rare_scores_are_those_of_rare_classes_without_a_limit(regions):
    regions.labels = torch.arange(40) % 5
    found = rare_scores(regions, Settings())
    # Boxes do not overlap: every pair of a region and a rare class is one, above 1e-6.
    pairs = regions.logits[:, :2].sigmoid()
    shows = regions.labels[:, None] == torch.arange(2)
    kept = pairs > 1e-6
    assert sorted(found.true) == pytest.approx(sorted(pairs[shows & kept].tolist()))
    assert len(found.false) == int((~shows & kept).sum())
    best = regions.logits[:, :-1].reshape(2, -1).sigmoid()
    limit = best.topk(10).values[:, -1]
    assert found.cut == pytest.approx(float(limit.mean()))
    passed = pairs.reshape(2, -1) >= limit[:, None]
    assert sum(found.passed) == int(passed.sum())


def test_the_figure_has_a_panel_for_each_set_and_step(regions):
    regions.labels = torch.arange(40) % 5
    steps = {"trained model": Settings(), "region part 0.35": Settings(region=0.35)}
    figure = score_figure({"glyphs": [(regions, steps)], "shapes": [(regions, steps)]})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"{s}: {step}" for s in ("glyphs", "shapes") for step in steps]


def vars_of(regions):
    return {name: getattr(regions, name) for name in Regions.__dataclass_fields__}


def _metrics(ap):
    return {"AP": ap, "APr": ap / 2, "APc": ap, "APf": ap + 1}


def _result(seed):
    curve = {0.0: _metrics(20.0), 0.5: _metrics(22.0 + seed), 1.0: _metrics(18.0)}
    ranks = {s: {k: 0.5 for k in ("pooled", "all")} for s in ("x . d", "logit")}
    found = {
        "projections": {
            "quantiles": {
                k: [0.5, 1.0, 1.5]
                for k in ("true rare", "false rare", "true frequent", "background")
            },
            "unit, logits": 3.0,
            "d . w negative, %": 90.0,
            "correlation of d . w with log n": 0.3,
            "correlation of x . d with the shift": 0.1,
            "spread of the region part": 1.0,
            "spread of logits": 2.0,
        },
        "ranking": {g: ranks for g in "rcf"},
        "curves": {
            name: {"calib": curve, "val": curve}
            for name in ("region part", "TDE, both parts", "logit adjustment + shift")
        },
    }
    return {
        "kind": "glyphs",
        "seed": seed,
        "name": "sigmoid",
        "sigmoid": True,
        **found,
        "chosen": {name: 0.5 for name in found["curves"]},
        "directions": {"random": {"strength": -0.1, **_metrics(21.0)}},
        "limits": {"trained model": {n: _metrics(20.0) for n in (100.0, 300.0, -1.0)}},
        **({"earlier": {"model_0000499": found}} if seed == 0 else {}),
    }


def _softmax():
    powers = {split: {1.0: _metrics(10.0), 2.0: _metrics(12.0)} for split in ("calib", "val")}
    about = {"kind": "glyphs", "seed": 0, "name": "softmax", "sigmoid": False}
    return {**about, "powers": {"alpha": 2.0, "without TDE": powers, "with TDE": powers}}


def test_tables_hold_means_over_seeds():
    made = tables([_result(1), _result(0), _softmax()])
    parts = next(rows for title, rows in made.items() if title.startswith("Parts"))
    assert parts[2][:5] == ["glyphs", "sigmoid", "region part", "0.5, 0.5", "22.5 ± 0.7"]
    powers = next(rows for title, rows in made.items() if title.startswith("Softmax"))
    assert powers[1] == ["glyphs", "softmax", "0", "10.0 / 5.0", "2", "12.0 / 6.0", "2.0 / 1.0"]
    assert all(len(row) == len(rows[0]) for rows in made.values() for row in rows)
    assert len(made) == 9
    training = next(rows for title, rows in made.items() if title.startswith("The region"))
    assert [row[2:4] for row in training[1:]] == [["0", "0000499"], ["0", "final"], ["1", "final"]]
    text = markdown(made)
    assert text.count("| --- |") >= 9 and "**Softmax" in text
    assert len(tables([_softmax()])) == 1  # what no run tells is left out


def test_numbers_as_keys_survive_json():
    assert with_numbers({"0.5": {"AP": 1.0}, "-1": 2}) == {0.5: {"AP": 1.0}, -1.0: 2}


def test_options():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--runs", "a", "b"])
    assert args.runs == ["a", "b"] and args.images == 400 and args.picture == ""
