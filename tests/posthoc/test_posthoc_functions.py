"""The steps against their authors' numbers, closed forms in NumPy, and at their neutral values."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lvis_tde import CosineMultiHeadClassifier, exempt_background, posthoc, tde_logits
from lvis_tde.layers.functional import cosine_to_mean, weight_pull

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "posthoc_reference.npz")
LOGITS, COUNTS = torch.from_numpy(GOLDEN["logits"]), torch.from_numpy(GOLDEN["counts"])
NUM_CLASSES = len(COUNTS)
EXACT = dict(rtol=1e-10, atol=1e-10)


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def random(rows, classes, background=True, seed=0):
    """Logits, counts, means, deviations and dimensions."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes + background, generator=generator) * 3
    counts = torch.randint(1, 5000, (classes,), generator=generator)
    mean = torch.randn(classes, generator=generator)
    std, dimension = 0.5 + torch.rand(2, classes, generator=generator)
    return logits, counts, mean, std, dimension + 0.5


# ---- the authors' numbers


@pytest.mark.parametrize("case", range(len(GOLDEN["tau_norm/tau"])))
def test_tau_norm_is_the_authors_up_to_the_temperature(case):
    tau, weight = float(GOLDEN["tau_norm/tau"][case]), golden("tau_norm/weight")
    scale = np.mean(np.linalg.norm(weight.numpy(), axis=1) ** tau)
    logits = golden("tau_norm/features") @ weight.T
    ours = posthoc.tau_norm(logits, weight, tau, background=False)
    torch.testing.assert_close(ours, golden("tau_norm/logits")[case] * scale, **EXACT)


@pytest.mark.parametrize("case", range(len(GOLDEN["logit_adjustment/beta"])))
def test_logit_adjustment_is_the_authors(case):
    beta = float(GOLDEN["logit_adjustment/beta"][case])
    theirs = golden("logit_adjustment/logits")[case]
    # They add 1e-12 to a power of the prior.
    close = dict(rtol=0, atol=1e-6)
    ours = posthoc.logit_adjustment(LOGITS, COUNTS, beta)
    torch.testing.assert_close(ours[:, :-1], theirs, **close)
    assert torch.equal(ours[:, -1], LOGITS[:, -1])
    ours = posthoc.logit_adjustment(LOGITS[:, :-1], COUNTS, beta, background=False)
    torch.testing.assert_close(ours, theirs, **close)


@pytest.mark.parametrize("case", range(len(GOLDEN["norcal/gamma"])))
def test_norcal_is_the_authors(case):
    ours = posthoc.norcal(LOGITS, COUNTS, float(GOLDEN["norcal/gamma"][case]))
    torch.testing.assert_close(ours, golden("norcal/probs")[case], **EXACT)


def test_logn_is_the_authors_also_where_a_deviation_is_zero():
    ours = posthoc.logn(LOGITS, golden("logn/mean"), golden("logn/std"))
    assert (GOLDEN["logn/std"] == 0).any()
    torch.testing.assert_close(ours, golden("logn/logits"), **EXACT)


@pytest.mark.parametrize("variant, total", [("base10", "images"), ("base10_obj", None)])
@pytest.mark.parametrize("case", range(len(GOLDEN["fracal/strength"])))
def test_fracal_is_the_authors(case, variant, total):
    arguments = COUNTS, golden("fracal/dimension"), float(GOLDEN["fracal/strength"][case])
    total = total and float(GOLDEN[f"fracal/{total}"])
    ours = posthoc.fracal(LOGITS, *arguments, total=total)
    torch.testing.assert_close(ours, golden(f"fracal/{variant}/softmax")[case], **EXACT)
    ours = posthoc.fracal_sigmoid(LOGITS[:, :-1], *arguments, total=total)
    torch.testing.assert_close(ours, golden(f"fracal/{variant}/sigmoid")[case], **EXACT)


# ---- closed forms


def test_tau_norm_with_bias_and_background():
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(6, 5)), rng.normal(size=(9, 5)), rng.normal(size=9)
    w[2] = 0
    lengths = np.linalg.norm(w, axis=1) ** 0.7
    expected = x @ w.T + b
    for i in range(8):
        scale = lengths[:8].mean() / (lengths[i] or 1)
        expected[:, i] = b[i] + x @ w[i] * scale
    x, w, b = map(torch.from_numpy, (x, w, b))
    ours = posthoc.tau_norm(x @ w.T + b, w, 0.7, bias=b)
    torch.testing.assert_close(ours, torch.from_numpy(expected), **EXACT)
    # All weights of one length: the same logits.
    w = torch.nn.functional.normalize(w + 1, dim=-1)
    torch.testing.assert_close(posthoc.tau_norm(x @ w.T + b, w, 0.7, bias=b), x @ w.T + b, **EXACT)


def test_balanced_counts_change_no_ranking_and_rare_classes_rise_with_the_strength():
    logits, counts = torch.zeros(1, 4), torch.tensor([1000, 100, 1])
    probs = posthoc.logit_adjustment(logits, counts, 1.0)[:, :3].softmax(-1)
    # From equal logits the probabilities are inversely proportional to the counts.
    torch.testing.assert_close(probs * counts, torch.full((1, 3), float(probs[0, 2])))
    half = posthoc.norcal(logits, counts, 0.5)[0]
    torch.testing.assert_close(half[2] / half[0], torch.tensor(1000**0.5))
    shifted = posthoc.logit_adjustment(logits, [5, 5, 5], 2.0)
    torch.testing.assert_close(shifted[:, :3], torch.full((1, 3), 2 * float(np.log(3))))


def test_logn_with_half_the_strength():
    logits, _, mean, std, _ = random(5, 7)
    z, mean, std = logits.double(), mean.double(), std.double()
    expected = (z[:, :7] - 0.5 * (mean - mean.min())) / std.sqrt()
    ours = posthoc.logn(z, mean, std, strength=0.5)
    torch.testing.assert_close(ours[:, :7], expected, **EXACT)
    assert torch.equal(ours[:, 7], z[:, 7])


@pytest.mark.parametrize("norm, num_heads", [("deconfound", 2), ("none", 1)])
def test_tde_with_equal_strengths_is_that_of_the_layers(norm, num_heads):
    torch.manual_seed(0)
    classifier = CosineMultiHeadClassifier(8, 6, num_heads=num_heads, norm=norm).double()
    x, mean = torch.randn(4, 8).double(), torch.randn(8).double()
    cosine = cosine_to_mean(x, mean, num_heads, norm)
    pull = classifier.scale * weight_pull(
        classifier.weight, mean, num_heads, norm, classifier.gamma
    )
    logits = classifier(x)
    ours = posthoc.tde(logits, cosine, pull, 1.5, 1.5)
    theirs = tde_logits(x, classifier, mean, 1.5)
    torch.testing.assert_close(ours, theirs, **EXACT)
    torch.testing.assert_close(
        posthoc.exempt(logits, ours), exempt_background(logits, theirs), rtol=0, atol=1e-9
    )
    # The two parts, by hand; the mean is that of the foreground.
    shared = cosine @ pull[:-1].mean(0)[:, None]
    ours = posthoc.tde(logits, cosine, pull, 0.5, 2.0)
    expected = logits - 0.5 * shared - 2.0 * (cosine @ pull.T - shared)
    torch.testing.assert_close(ours, expected, **EXACT)
    # The exemption is blind to the region part.
    a, b = (
        posthoc.exempt(logits, posthoc.tde(logits, cosine, pull, region, 1.0))
        for region in (0.0, 3.0)
    )
    torch.testing.assert_close(a, b, **EXACT)
    ours = posthoc.tde(logits[:, :-1], cosine, pull[:-1], 0.5, 2.0, background=False)
    torch.testing.assert_close(ours, expected[:, :-1], **EXACT)


def test_exemption_keeps_the_background_and_deals_the_rest():
    p = softmax(GOLDEN["logits"])
    q = softmax(GOLDEN["norcal/probs"][2] * 5)
    expected = np.c_[(1 - p[:, -1:]) * q[:, :-1] / (1 - q[:, -1:]), p[:, -1]]
    adjusted = golden("norcal/probs")[2] * 5
    before = adjusted.clone()
    ours = posthoc.exempt(LOGITS, adjusted)
    torch.testing.assert_close(ours, torch.from_numpy(expected), **EXACT)
    assert torch.equal(ours[:, -1], LOGITS.softmax(-1)[:, -1])
    assert torch.equal(adjusted, before)
    with torch.no_grad():
        torch.testing.assert_close(posthoc.exempt(LOGITS, adjusted), ours, **EXACT)
    # Certain background, and an adjustment that would move all to background.
    logits = torch.tensor([[-500.0, -400.0, 500.0], [0.0, 1.0, 0.0]])
    probs = posthoc.exempt(logits, torch.tensor([[0.0, 0.0, 900.0], [-900.0, -900.0, 900.0]]))
    torch.testing.assert_close(probs.sum(-1), torch.ones(2))
    torch.testing.assert_close(probs[1, 0], probs[1, 1])


# ---- neutral values, sizes, types


def neutral(logits, classes):
    ones = torch.ones(classes)
    weight = torch.randn(classes + 1, 3)
    yield posthoc.tau_norm(logits, weight, 0, bias=torch.randn(classes + 1)).softmax(-1)
    yield posthoc.logit_adjustment(logits, ones * 7, 0).softmax(-1)
    yield posthoc.norcal(logits, ones * 7, 0)
    yield posthoc.logn(logits, ones * 3, ones).softmax(-1)
    yield posthoc.logn(logits, torch.randn(classes), ones * 2, strength=0).softmax(-1)
    yield posthoc.fracal(logits, ones * 7, ones + 0.5, 0)
    yield posthoc.tde(logits, torch.randn(len(logits), 2), weight[:, :2], 0, 0).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 7, 1203])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_neutral_values_give_the_factual_probabilities_bit_for_bit(rows, classes, dtype):
    logits = random(rows, classes)[0].to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for probs in neutral(logits, classes):
        assert probs.dtype == wide
        assert torch.equal(probs, logits.to(wide).softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype):
    logits, counts, mean, std, dimension = random(3, 40)
    weight, half = torch.randn(41, 4), logits.to(dtype)
    cosine, pull = torch.randn(3, 2), torch.randn(41, 2)
    steps = [
        lambda z: posthoc.tau_norm(z, weight, 0.7),
        lambda z: posthoc.logit_adjustment(z, counts, 1.0),
        lambda z: posthoc.norcal(z, counts, 0.6),
        lambda z: posthoc.logn(z, mean, std),
        lambda z: posthoc.fracal(z, counts, dimension, 2.0),
        lambda z: posthoc.fracal_sigmoid(z[:, 1:], counts, dimension, 2.0),
        lambda z: posthoc.tde(z, cosine, pull, 0.5, 1.0),
        lambda z: posthoc.exempt(z, z * 2),
        lambda z: posthoc.keep_sum(z * 2, z),
    ]
    for step in steps[:7]:
        torch.testing.assert_close(step(half), step(half.float()), rtol=1e-6, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = [step(logits) for step in steps]
    for step, result in zip(steps, under):
        assert result.dtype == torch.float32
        assert torch.equal(result, step(logits))
    assert posthoc.exempt(half, half).dtype == posthoc.keep_sum(half, half).dtype == torch.float32


@pytest.mark.parametrize("classes", [1, 1203, 13204])
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_any_number_of_classes_and_rows(rows, classes):
    logits, counts, mean, std, dimension = random(rows, classes)
    counts[0] = 0
    for probs in (
        posthoc.norcal(logits, counts, 0.6),
        posthoc.fracal(logits, counts, dimension, 2.0),
        posthoc.exempt(logits, posthoc.logit_adjustment(logits, counts, 1.5)),
        posthoc.logn(logits, mean, std).softmax(-1),
        posthoc.tau_norm(logits, torch.randn(classes + 1, 2), 1.0).softmax(-1),
    ):
        assert probs.shape == logits.shape and probs.dtype == torch.float32
        assert probs.isfinite().all() and (probs >= 0).all()
        torch.testing.assert_close(probs.sum(-1), torch.ones(rows))


def test_a_class_that_was_never_seen_counts_once():
    logits, counts, _, _, dimension = random(4, 6)
    counts[2] = 0
    once = counts.clone()
    once[2] = 1
    for step in (
        lambda n: posthoc.logit_adjustment(logits, n, 1.3),
        lambda n: posthoc.norcal(logits, n, 0.7),
        lambda n: posthoc.fracal(logits, n, dimension, 2.0),
        lambda n: posthoc.fracal_sigmoid(logits[:, 1:], n, dimension, 2.0),
    ):
        assert torch.equal(step(counts), step(once))
        assert torch.equal(step(counts.tolist()), step(counts.numpy()))
    nobody = posthoc.logit_adjustment(logits, torch.zeros(6), 1.0)
    torch.testing.assert_close(nobody, posthoc.logit_adjustment(logits, torch.ones(6), 1.0))


# ---- mistakes


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_strengths_are_finite_and_not_negative(bad):
    z, n, mean, std, dimension = random(2, 4)
    for step in (
        lambda: posthoc.tau_norm(z, torch.ones(5, 2), bad),
        lambda: posthoc.logit_adjustment(z, n, bad),
        lambda: posthoc.norcal(z, n, bad),
        lambda: posthoc.logn(z, mean, std, strength=bad),
        lambda: posthoc.fracal(z, n, dimension, bad),
        lambda: posthoc.fracal_sigmoid(z[:, 1:], n, dimension, bad),
        lambda: posthoc.tde(z, z[:, :2], torch.ones(5, 2), bad, 1.0),
        lambda: posthoc.tde(z, z[:, :2], torch.ones(5, 2), 1.0, bad),
    ):
        with pytest.raises(ValueError, match=f"={bad}"):
            step()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(counts=[1.0, 2.0], dimension=[1, 1]),
            r"logits have shape \(2, 5\), expected \(R, 3\)",
        ),
        (dict(counts=[[1.0, 2.0, 3.0, 4.0]]), r"counts has shape \(1, 4\)"),
        (dict(counts=[1.0, -2.0, 3.0, 4.0]), r"counts\[1\]=-2"),
        (dict(counts=[1.0, float("nan"), 3.0, 4.0]), r"counts\[1\]=nan"),
        (dict(counts=[0.1, 0.2, 0.3, 0.4]), r"counts\[0\]=0.1 is a fraction"),
        (dict(dimension=[1.5, 0.9, 1.0, 2.0]), r"dimension\[1\]=0.9 must be finite and at least 1"),
        (dict(dimension=[1.5, 1.9]), r"dimension has shape \(2,\), expected \(4,\)"),
        (dict(total=0), "total=0"),
        (dict(logits=torch.zeros(5)), r"logits have shape \(5,\)"),
    ],
)
def test_mistakes_in_fracal_are_quoted(change, message):
    arguments = dict(logits=torch.zeros(2, 5), counts=[1, 2, 3, 4], dimension=[1, 1, 2, 1])
    with pytest.raises(ValueError, match=message):
        posthoc.fracal(**{**arguments, "strength": 1.0, **change})


def test_mistakes_in_shapes_are_quoted():
    z = torch.zeros(2, 5)
    cases = {
        r"mean has shape \(2, 2\)": lambda: posthoc.logn(z, torch.ones(2, 2), torch.ones(4)),
        r"std has shape \(3,\), expected \(4,\)": lambda: posthoc.logn(
            z, torch.ones(4), torch.ones(3)
        ),
        r"std\[0\]=-1": lambda: posthoc.logn(z, torch.ones(4), -torch.ones(4)),
        r"weight has shape \(4, 2\)": lambda: posthoc.tau_norm(z, torch.ones(4, 2), 1.0),
        r"bias has shape \(4,\)": lambda: posthoc.tau_norm(
            z, torch.ones(5, 2), 1.0, bias=torch.ones(4)
        ),
        r"cosine \(3, 2\)": lambda: posthoc.tde(z, torch.ones(3, 2), torch.ones(5, 2), 1.0, 1.0),
        r"one shape \(R, C \+ 1\)": lambda: posthoc.exempt(z, z[:, 1:]),
        r"\(2, 1\), expected": lambda: posthoc.exempt(z[:, :1], z[:, :1]),
        r"one shape \(R, C\)": lambda: posthoc.keep_sum(z, z[:, 1:]),
        r"\(2, 0\), expected": lambda: posthoc.keep_sum(z[:, :0], z[:, :0]),
    }
    for message, step in cases.items():
        with pytest.raises(ValueError, match=message):
            step()
