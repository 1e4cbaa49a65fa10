"""Similarity to the classes' means: the formula in NumPy, region by region, is the oracle."""

import numpy as np
import pytest
import torch

from lvis_tde import posthoc
from lvis_tde.posthoc import Settings, Statistics, compose

EXACT = dict(rtol=1e-10, atol=1e-12)


def draw(rows=5, classes=4, features=6, seed=0, columns=None):
    generator = torch.Generator().manual_seed(seed)
    one = lambda *shape: torch.randn(*shape, generator=generator).double()  # noqa: E731
    logits = one(rows, classes + 1 if columns is None else columns)
    return logits, one(rows, features), one(classes, features), one(features)


def by_hand(logits, features, means, strength, center, similarity=0.0):
    z, x, m = (one.double().numpy() for one in (logits, features, means))
    known = [mean for mean in m if mean.any()]
    c = np.mean(known, axis=0) if center is None else center.double().numpy()
    out = z.copy()
    for r, row in enumerate(x):
        for i, mean in enumerate(m):
            length = np.linalg.norm(row - c) * np.linalg.norm(mean - c)
            if mean.any():
                cosine = (row - c) @ (mean - c) / length if length else 0.0
                out[r, i] += strength * (cosine - similarity)
    return torch.from_numpy(out)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("similarity", [0.0, 0.7])
def test_the_formula(background, centered, similarity):
    logits, features, means, center = draw(columns=5 if background else 4)
    center = center if centered else None
    means[2] = 0  # a class without a mean
    features[3] = means[[0, 1, 3]].mean(0) if center is None else center
    options = dict(center=center, similarity=similarity, background=background)
    found = posthoc.class_means(logits, features, means, 3.0, **options)
    expected = by_hand(logits, features, means, 3.0, center, similarity)
    torch.testing.assert_close(found, expected, **EXACT)
    assert torch.equal(found[:, 2], logits[:, 2])
    less = 3 * similarity * torch.tensor([1, 1, 0, 1, 0])[: found.shape[1]].double()
    torch.testing.assert_close(found[3], logits[3] - less, **EXACT)
    if background:
        assert torch.equal(found[:, -1], logits[:, -1])
    # A cosine is in [-1, 1].
    assert ((found - logits).abs() <= 3 * (1 + similarity) + 1e-9).all()


def test_zero_changes_nothing_and_one_class_or_no_row_is_no_special_case():
    logits, features, means, center = draw(classes=1)
    assert torch.equal(posthoc.class_means(logits, features, means, 0.0), logits)
    # Its mean is the mean of all, so without a background it has no direction.
    assert torch.equal(posthoc.class_means(logits, features, means, 2.0), logits)
    found = posthoc.class_means(logits, features, means, 2.0, center=center)
    torch.testing.assert_close(found, by_hand(logits, features, means, 2.0, center), **EXACT)
    assert posthoc.class_means(logits[:0], features[:0], means, 2.0).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    logits, features, means, center = draw(rows=50, classes=30, features=64)
    halves = logits.to(dtype), features.to(dtype)
    exact = by_hand(*halves, means, 8.0, center)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = posthoc.class_means(*halves, means, 8.0, center=center)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(means=torch.zeros(3, 6)), "expected .R, 4."),
        (dict(means=torch.zeros(4)), r"expected \(C, D\)"),
        (dict(features=torch.zeros(5, 7)), r"expected \(5, 6\)"),
        (dict(features=torch.zeros(4, 6)), r"expected \(5, 6\)"),
        (dict(center=torch.zeros(5)), "center has shape"),
        (dict(means=torch.full((4, 6), torch.nan)), "not finite: gather them anew"),
        (dict(center=torch.full((6,), torch.inf)), "not finite"),
        (dict(strength=-1.0), "class_means=-1.0 must be finite"),
        (dict(strength=torch.inf), "class_means=inf must be finite"),
        (dict(similarity=1.5), "similarity=1.5 must be from -1 to 1"),
        (dict(similarity=float("nan")), "similarity=nan must be"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    logits, features, means, center = draw()
    given = dict(features=features, means=means, strength=1.0, center=center)
    with pytest.raises(ValueError, match=message):
        posthoc.class_means(logits, **{**given, **change})


# The second has more rows than are worked on together.
@pytest.mark.parametrize("rows, classes", [(5, 4), (300, 1203), (3, 13_204)])
def test_composed_it_is_the_function_before_the_margins(rows, classes):
    logits, features, means, center = draw(rows, classes)
    counts = torch.arange(classes) + 1
    known = Statistics(counts=counts, class_means=means, center=center, similarity=0.6)
    seen = posthoc.class_means(logits, features, means, 4.0, center=center, similarity=0.6)
    adjusted = posthoc.logit_adjustment(seen, counts, 0.5)
    settings = Settings(class_means=4.0, logit_adjustment=0.5)
    with torch.no_grad():
        found = compose(settings, known)(logits, features=features)
    torch.testing.assert_close(found, posthoc.exempt(logits, adjusted), rtol=1e-9, atol=1e-12)
    # Sigmoids keep the sum that they have after the means.
    kept = posthoc.keep_sum(adjusted[:, :-1], seen[:, :-1]).sigmoid()
    steps = compose(settings, known, sigmoid=True)
    with torch.no_grad():
        torch.testing.assert_close(
            steps(logits, features=features)[:, :-1], kept, rtol=1e-6, atol=1e-12
        )
    alone = compose(Settings(class_means=4.0), known, sigmoid=True)(logits, features=features)
    torch.testing.assert_close(alone[:, :-1], seen[:, :-1].sigmoid(), **EXACT)


def test_with_tde_and_other_sums():
    logits, features, means, center = draw()
    cosine, pull = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    known = Statistics(counts=[9, 7, 2, 1], class_means=means, center=center)
    direct = posthoc.tde(logits, cosine, pull, 0.3, 0.3)
    seen = posthoc.class_means(direct, features, means, 2.0, center=center)
    options = dict(region=0.3, class_=0.3, class_means=2.0, logit_adjustment=1.0)
    adjusted = posthoc.logit_adjustment(seen, [9, 7, 2, 1], 1.0)[:, :-1]
    for keep, reference in (("tde", seen), ("factual", logits)):
        steps = compose(Settings(**options, keep_sum=keep), known, sigmoid=True)
        expected = posthoc.keep_sum(adjusted, reference[:, :-1]).sigmoid()
        found = steps(logits, cosine, pull, features)[:, :-1]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_it_needs_the_means_and_the_features():
    logits, features, means, _ = draw()
    with pytest.raises(ValueError, match="class_means=2.0 needs class_means of the classes"):
        compose(Settings(class_means=2.0))
    steps = compose(Settings(class_means=2.0), Statistics(class_means=means))
    assert steps.uses_features and not steps.neutral and not steps.uses_tde
    with pytest.raises(ValueError, match="class_means=2.0 needs the features"):
        steps(logits)
    off = compose(Settings(), Statistics(class_means=means))
    assert off.neutral and torch.equal(off(logits, features=features), logits.softmax(-1))


def test_with_the_usual_similarity_sigmoids_keep_their_scale_and_their_order():
    _, _, means, center = (one.float() for one in draw(classes=20, features=64))
    noise = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    features, logits = means + 0.7 * noise, torch.zeros(20, 21)
    usual = torch.cosine_similarity(features - center, means - center).mean()
    own = torch.arange(20)
    known = dict(class_means=means, center=center)
    scores = [
        compose(Settings(class_means=48.0), Statistics(**known, similarity=one), sigmoid=True)(
            logits, features=features
        )[own, own]
        for one in (0.0, float(usual))
    ]
    assert (scores[0] == 1).all()  # which tells nothing from anything
    assert len(scores[1].unique()) == 20 and (scores[1].logit().mean()).abs() < 0.1
    exact = posthoc.class_means(logits.double(), features.double(), means, 48.0, center=center)
    assert torch.equal(scores[1].argsort(), exact[own, own].argsort())
