"""The native engine against the official package on small problems full of ties."""

import copy

import pytest
from lvis_cases import official_metrics, problem

from lvis_tde.evaluation import evaluate_lvis


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("with_boxes", [True, False])
@pytest.mark.parametrize(
    "block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in range(1, 10))]
)
def test_native_equals_official(iou_type, with_boxes, block):
    compared = 0
    for seed in range(block * 30, block * 30 + 30):
        annotations, results = problem(seed, with_boxes)
        if not results:
            continue
        before = copy.deepcopy((annotations, results))
        for max_dets in (300, 5, -1):
            expected = official_metrics(annotations, results, iou_type, max_dets)
            got = evaluate_lvis(annotations, results, iou_type, max_dets).metrics
            assert list(got) == list(expected)
            for name in expected:
                assert abs(got[name] - expected[name]) <= 1e-12, (seed, max_dets, name)
        assert (annotations, results) == before
        compared += expected["AP"] > 0
    assert compared > 10
