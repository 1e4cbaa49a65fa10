"""The vocabulary of the glyph sets and the counts of LVIS, against LVIS's published figures."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvis_tde.data.generation.glyph_files import MAX_CLASSES
from lvis_tde.data.generation.glyph_table import (
    DISTRACTOR,
    SCENES,
    THINGS,
    lvis_image_counts,
    read_glyphs,
)

EVERYTHING = 10**7


def test_counts_of_all_classes_are_those_of_lvis_v1():
    counts = lvis_image_counts(1203, EVERYTHING)
    assert len(counts) == 1203 and counts.dtype == np.int64
    # Gupta et al. and LVIS's site: 337 rare, 461 common, 405 frequent classes.
    assert [(counts <= 10).sum(), (counts <= 100).sum(), (counts > 100).sum()] == [337, 798, 405]
    assert (counts.max(), counts.min()) == (1977, 1)


def test_200_classes_have_the_shares_of_lvis():
    for total in (12_900, EVERYTHING):  # of the size "small", and of LVIS itself
        counts = lvis_image_counts(200, total)
        rare, frequent = (counts <= 10).mean(), (counts > 100).mean()
        assert (rare, frequent) == pytest.approx((337 / 1203, 405 / 1203), abs=0.005)


@settings(deadline=None, max_examples=30)
@given(num_classes=st.integers(1, 1300), more=st.integers(0, 100_000))
def test_counts_decrease_and_fit(num_classes, more):
    total = num_classes + more
    counts = lvis_image_counts(num_classes, total)
    assert counts.shape == (num_classes,)
    assert counts.min() >= 1 and counts.sum() <= total
    assert (np.diff(counts) <= 0).all()
    # No more than LVIS has, and what is below the bend is LVIS's own.
    lvis = lvis_image_counts(num_classes, EVERYTHING)
    assert (counts <= lvis).all()
    bend = next(b for b in (100, 10, 1) if np.minimum(lvis, b).sum() <= total)
    np.testing.assert_array_equal(counts[lvis <= bend], lvis[lvis <= bend])
    assert (counts[lvis > bend] >= bend).all()


def test_too_few_pairs():
    with pytest.raises(ValueError, match="11 pairs .* 12 classes: ask for more images"):
        lvis_image_counts(12, 11)
    assert lvis_image_counts(12, 12).tolist() == [1] * 12


def test_vocabulary():
    glyphs = read_glyphs()
    assert len({g.codepoint for g in glyphs}) == len({g.name for g in glyphs}) == len(glyphs)
    assert sum(g.family != DISTRACTOR for g in glyphs) == MAX_CLASSES == 1232
    for glyph in glyphs:
        assert glyph.name == glyph.name.lower() and " " not in glyph.name


def test_every_family_is_at_home_in_one_scene():
    homes = collections.Counter(family for group in SCENES.values() for family in group)
    assert set(homes) == {g.family for g in read_glyphs()} - {DISTRACTOR}
    assert set(homes.values()) == {1}
    assert set(THINGS) < set(homes) and not any(f.startswith("face") for f in THINGS)
