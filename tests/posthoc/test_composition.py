"""All steps together: each alone is its function, all together are the documented order."""

import dataclasses

import numpy as np
import pytest
import torch

from lvis_tde import posthoc
from lvis_tde.calibration.settings import describe
from lvis_tde.posthoc import Settings, Statistics, compose

ROWS, CLASSES, HEADS = 5, 12, 2
EXACT = dict(rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def known():
    """Features, a linear classifier with background, TDE's terms and statistics, in float64."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator).double()  # noqa: E731
    x, weight, bias = draw(ROWS, 8), draw(CLASSES + 1, 8), draw(CLASSES + 1)
    statistics = Statistics(
        counts=torch.randint(0, 900, (CLASSES,), generator=generator),
        dimension=1 + torch.rand(CLASSES, generator=generator).double(),
        mean=draw(CLASSES),
        std=0.5 + draw(CLASSES).abs(),
        weight_norms=weight[:-1].norm(dim=-1),
        bias=bias[:-1],
    )
    return dict(
        logits=x @ weight.T + bias,
        weight=weight,
        bias=bias,
        terms=(draw(ROWS, HEADS), draw(CLASSES + 1, HEADS)),
        statistics=statistics,
    )


def step_alone(name, z, known, strength, background=True):
    """The function of one setting, on logits."""
    s = known["statistics"]
    rows = slice(None) if background else slice(-1)
    if name == "tau_norm":
        weight, bias = known["weight"][rows], known["bias"][rows]
        return posthoc.tau_norm(z, weight, strength, bias=bias, background=background)
    if name == "logn":
        return posthoc.logn(z, s.mean, s.std, strength=strength, background=background)
    if name == "logit_adjustment":
        return posthoc.logit_adjustment(z, s.counts, strength, background=background)
    cosine, pull = known["terms"]
    region, class_ = (strength, 0) if name == "region" else (0, strength)
    return posthoc.tde(z, cosine, pull[rows], region, class_, background=background)


LINEAR = ["tau_norm", "logn", "logit_adjustment", "region", "class_"]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("grad", [True, False])
def test_softmax_with_one_step(known, name, grad):
    z = known["logits"]
    adjusted = step_alone(name, z, known, 0.7)
    with torch.set_grad_enabled(grad):
        for background, expected in (
            ("joint", adjusted.softmax(-1)),
            ("exempt", posthoc.exempt(z, adjusted)),
        ):
            settings = Settings(**{name: 0.7}, background=background)
            composition = compose(settings, known["statistics"])
            before = z.clone()
            probs = composition(z, *known["terms"])
            torch.testing.assert_close(probs, expected, **EXACT)
            assert torch.equal(z, before)
            torch.testing.assert_close(
                composition.adjust(z, *known["terms"]), adjusted, rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("name", LINEAR)
def test_sigmoid_with_one_step(known, name):
    """Without background, and with the column that Detectron2's sigmoid heads have and not use."""
    whole, (cosine, pull) = known["logits"], known["terms"]
    z = whole[:, :-1]
    adjusted = step_alone(name, z, known, 0.7, background=False)
    tde = name in ("region", "class_")
    for keep_sum, expected in (
        ("", adjusted),
        ("factual", posthoc.keep_sum(adjusted, z)),
        ("tde", adjusted if tde else posthoc.keep_sum(adjusted, z)),
    ):
        settings = Settings(**{name: 0.7}, keep_sum=keep_sum)
        alone = compose(settings, known["statistics"], sigmoid=True, background=False)
        before = whole.clone()
        probs = alone(z, cosine, pull[:-1])
        torch.testing.assert_close(probs, expected.sigmoid(), **EXACT)
        column = compose(settings, known["statistics"], sigmoid=True)(whole, cosine, pull)
        torch.testing.assert_close(column[:, :-1], probs, **EXACT)
        assert torch.equal(column[:, -1], whole[:, -1].sigmoid())
        assert torch.equal(whole, before)


def test_norcal_and_fracal_are_their_functions_with_the_background_joint(known):
    z, s = known["logits"], known["statistics"]
    joint = compose(Settings(norcal=0.6, background="joint"), s)
    torch.testing.assert_close(joint(z), posthoc.norcal(z, s.counts, 0.6), **EXACT)
    for images in (None, 5000.0):
        statistics = dataclasses.replace(s, num_images=images)
        joint = compose(Settings(fracal=2, background="joint"), statistics)
        expected = posthoc.fracal(z, s.counts, s.dimension, 2, total=images)
        torch.testing.assert_close(joint(z), expected, **EXACT)
        sigmoid = compose(Settings(fracal=2), statistics, sigmoid=True)
        expected = posthoc.fracal_sigmoid(z[:, :-1], s.counts, s.dimension, 2, total=images)
        torch.testing.assert_close(sigmoid(z)[:, :-1], expected, **EXACT)
        assert torch.equal(sigmoid(z)[:, -1], z[:, -1].sigmoid())
    # With the exemption NorCal is logit adjustment, and FRACAL leaves the background.
    exempt = compose(Settings(norcal=0.6), s)(z)
    torch.testing.assert_close(exempt, compose(Settings(logit_adjustment=0.6), s)(z), **EXACT)
    exempt = compose(Settings(fracal=2), s)(z)
    assert torch.equal(exempt[:, -1], z.softmax(-1)[:, -1])
    joint = posthoc.fracal(z, s.counts, s.dimension, 2)
    expected = joint[:, :-1] / joint[:, :-1].sum(-1, keepdim=True)
    torch.testing.assert_close(
        exempt[:, :-1] / exempt[:, :-1].sum(-1, keepdim=True), expected, **EXACT
    )


ALL = dict(
    tau_norm=0.5, region=0.4, class_=0.9, logn=0.6, logit_adjustment=0.3, norcal=0.2, fracal=1.5
)


def by_hand(known):
    """Steps 1 to 3 in their order, one class at a time, and FRACAL's division; background last."""
    s, bias = known["statistics"], known["bias"].numpy()
    z = known["logits"].numpy().copy()
    cosine, pull = (t.numpy() for t in known["terms"])
    counts = np.maximum(s.counts.numpy(), 1)
    mean, std, dimension = s.mean.numpy(), s.std.numpy(), s.dimension.numpy()
    lengths = s.weight_norms.numpy() ** ALL["tau_norm"]
    shared = pull[:-1].mean(0)
    removed = ALL["region"] * shared + ALL["class_"] * (pull - shared)
    tde_only = z - cosine @ removed.T
    for i in range(CLASSES):
        factor = lengths.mean() / lengths[i]
        z[:, i] = bias[i] + factor * (z[:, i] - bias[i])  # weights
        z[:, i] -= factor * cosine @ removed[i]  # logits: TDE with those weights, then LogN
        z[:, i] = (z[:, i] - ALL["logn"] * (mean[i] - mean.min())) / std[i] ** ALL["logn"]
        z[:, i] -= ALL["logit_adjustment"] * np.log(counts[i] / counts.sum())  # margins
        z[:, i] -= ALL["norcal"] * np.log(counts[i])
    z[:, -1] -= cosine @ removed[-1]
    frequency = np.log10(CLASSES * counts / counts.sum())
    return z, tde_only, frequency, dimension ** ALL["fracal"]


def test_all_steps_of_a_softmax_in_their_order(known):
    z, _, frequency, divisor = by_hand(known)
    z[:, :-1] -= frequency
    e = np.exp(z) / np.append(divisor, 1)
    joint = torch.from_numpy(e / e.sum(-1, keepdims=True))
    settings = Settings(**ALL, background="joint")
    probs = compose(settings, known["statistics"])(known["logits"], *known["terms"])
    torch.testing.assert_close(probs, joint, **EXACT)
    p = known["logits"].softmax(-1)
    expected = (1 - p[:, -1:]) * joint[:, :-1] / joint[:, :-1].sum(-1, keepdim=True)
    probs = compose(Settings(**ALL), known["statistics"])(known["logits"], *known["terms"])
    torch.testing.assert_close(probs, torch.cat([expected, p[:, -1:]], -1), **EXACT)


@pytest.mark.parametrize("keep_sum", ["", "tde", "factual"])
def test_all_steps_of_a_sigmoid_in_their_order(known, keep_sum):
    z, tde_only, frequency, divisor = by_hand(known)
    z = torch.from_numpy(z[:, :-1])
    if keep_sum:
        reference = {"tde": torch.from_numpy(tde_only), "factual": known["logits"]}[keep_sum]
        z = posthoc.keep_sum(z, reference[:, :-1])
    margin = -frequency - np.log10(CLASSES * divisor / divisor.sum())
    settings = Settings(**ALL, keep_sum=keep_sum)
    probs = compose(settings, known["statistics"], sigmoid=True)(known["logits"], *known["terms"])
    expected = z.sigmoid() * (z + torch.from_numpy(margin)).sigmoid()
    torch.testing.assert_close(probs[:, :-1], expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("background", [True, False])
def test_neutral_settings_give_the_factual_probabilities_bit_for_bit(dtype, background):
    wide = torch.promote_types(dtype, torch.float32)
    ones = torch.ones(1203)
    unremarkable = Statistics(mean=ones * 2, std=ones, weight_norms=ones * 3, bias=ones)
    for rows in (0, 1, 4):
        logits = (torch.randn(rows, 1203 + background) * 5).to(dtype)
        for settings in (
            Settings(),
            Settings(background="joint", keep_sum="factual"),
            Settings(keep_sum=""),
            Settings(logn=1, tau_norm=0.7),
        ):
            probs = compose(settings, unremarkable, background=background)(logits)
            assert torch.equal(probs, logits.to(wide).softmax(-1)) and probs.dtype == wide
            neutral = compose(settings, unremarkable, sigmoid=True, background=background)
            assert neutral.neutral
            assert torch.equal(neutral(logits), logits.to(wide).sigmoid())


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("rows, classes", [(0, 3), (1, 1), (2, 1203), (1, 13204)])
def test_sizes_types_and_a_mean_of_zero(sigmoid, background, rows, classes):
    ones = torch.ones(classes)
    statistics = Statistics(ones * 0, ones + 0.5, ones, ones, ones, ones)
    logits = (torch.randn(rows, classes + background) * 4).half()
    terms = torch.zeros(rows, 2).half(), torch.zeros(classes + background, 2).half()
    composition = compose(Settings(**ALL), statistics, sigmoid=sigmoid, background=background)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            probs = composition(logits, *terms)
        assert probs.shape == logits.shape and probs.dtype == torch.float32
        assert ((probs >= 0) & (probs <= 1)).all()
        if not sigmoid:
            torch.testing.assert_close(probs.sum(-1), torch.ones(rows))


def test_a_softmax_without_background_has_nothing_to_exempt(known):
    z, s = known["logits"][:, :-1], known["statistics"]
    probs = compose(Settings(logit_adjustment=1), s, background=False)(z)
    adjusted = posthoc.logit_adjustment(z, s.counts, 1, background=False)
    torch.testing.assert_close(probs, adjusted.softmax(-1), **EXACT)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("settings", [Settings(**ALL), Settings(region=1, class_=1)])
def test_gradients_flow_to_the_logits(known, sigmoid, settings):
    logits = known["logits"].clone().requires_grad_()
    compose(settings, known["statistics"], sigmoid=sigmoid)(logits, *known["terms"])[
        0, 0
    ].backward()
    assert logits.grad.isfinite().all() and logits.grad[0].any() and not logits.grad[1:].any()


def test_traced_for_other_inputs(known):
    for sigmoid in (False, True):
        composition = compose(Settings(**ALL), known["statistics"], sigmoid=sigmoid)
        traced = torch.jit.trace(composition.__call__, (known["logits"], *known["terms"]))
        other = known["logits"].flip(0)[:3], known["terms"][0][:3], known["terms"][1]
        torch.testing.assert_close(traced(*other), composition(*other), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Settings)][:7])
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_strengths_are_checked_by_name(name, bad):
    with pytest.raises(ValueError, match=f"{name}={bad}"):
        Settings(**{name: bad})


def test_whole_numbers_are_strengths_like_others():
    settings = Settings(1, 1, logit_adjustment=1)
    assert settings == Settings(1.0, 1.0, logit_adjustment=1.0)
    assert describe(settings) == "alpha 1, logit_adjustment 1"


def test_mistakes_are_quoted(known):
    with pytest.raises(ValueError, match="background='keep' must be one of 'exempt', 'joint'"):
        Settings(background="keep")
    with pytest.raises(ValueError, match="keep_sum=True must be one of"):
        Settings(keep_sum=True)
    s, z = known["statistics"], known["logits"]
    for name, missing in (
        ("tau_norm", "weight_norms"),
        ("logn", "std"),
        ("logit_adjustment", "counts"),
        ("norcal", "counts"),
        ("fracal", "dimension"),
    ):
        without = dataclasses.replace(s, **{missing: None})
        with pytest.raises(ValueError, match=rf"{name}=0.5 needs {missing}.*Statistics\({missing}"):
            compose(Settings(**{name: 0.5}), without)
        with pytest.raises(ValueError, match=f"{name}=0.5 needs"):
            compose(Settings(**{name: 0.5}))
    shorter = dataclasses.replace(s, dimension=s.dimension[1:])
    with pytest.raises(ValueError, match="'counts': 12, 'dimension': 11"):
        compose(Settings(fracal=1), shorter)
    with pytest.raises(ValueError, match=r"region=0.5 and class_=0.0 need cosine and pull"):
        compose(Settings(region=0.5))(z)
    with pytest.raises(ValueError, match=r"expected \(R, 12\)"):
        compose(Settings(logit_adjustment=1), s, background=False)(z)
