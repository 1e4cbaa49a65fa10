"""AP_fixed and Boundary AP against the official accumulation."""

from collections import defaultdict

import cv2
import numpy as np
import pycocotools.mask as mask_utils
import pytest
from lvis_cases import official_metrics, problem

from lvis_tde.evaluation import evaluate_lvis
from lvis_tde.evaluation.boundary import boundary_rles
from lvis_tde.evaluation.official import load_official


@pytest.mark.parametrize("engine", ["native", "lvis"])
def test_ap_fixed_takes_the_best_of_each_category_before_the_federated_rule(engine):
    changed = 0
    for seed in range(40):
        annotations, results = problem(seed)
        by_category = defaultdict(list)
        for result in results:
            by_category[result["category_id"]].append(result)
        best = [
            result
            for group in by_category.values()
            for result in sorted(group, key=lambda r: r["score"], reverse=True)[:4]
        ]
        if not best:
            continue
        expected = official_metrics(annotations, best, "bbox", max_dets=-1)
        got = evaluate_lvis(annotations, results, "bbox", -1, engine, per_category=4).metrics
        assert got == pytest.approx(expected, abs=1e-12, rel=0)
        changed += got != evaluate_lvis(annotations, results, "bbox", -1).metrics
    assert changed > 10


def mask_to_boundary(mask):
    """Cheng et al. 2021, section 4, pixel by pixel."""
    h, w = mask.shape
    dilation = max(int(round(0.02 * np.sqrt(h**2 + w**2))), 1)
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=dilation)[1:-1, 1:-1]
    return mask - eroded


def random_masks(rng, height, width):
    noise = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), height / 12)
    yield (noise > rng.normal(0, noise.std())).astype(np.uint8)
    yield np.zeros((height, width), np.uint8)
    yield np.ones((height, width), np.uint8)


@pytest.mark.parametrize("height, width", [(20, 15), (64, 80), (200, 150), (7, 300)])
def test_boundary_is_that_of_the_paper(height, width):
    rng = np.random.default_rng(height)
    masks = [m for _ in range(5) for m in random_masks(rng, height, width)]
    got = boundary_rles([mask_utils.encode(np.asfortranarray(m)) for m in masks])
    for mask, rle in zip(masks, got):
        np.testing.assert_array_equal(mask_utils.decode(rle), mask_to_boundary(mask))


class BoundaryEval(load_official().LVISEval):
    """The official evaluation with Boundary IoU in place of mask IoU."""

    def compute_iou(self, img_id, cat_id):
        gt, dt = self._get_gt_dt(img_id, cat_id)
        if not gt or not dt:
            return []
        dt = [dt[i] for i in np.argsort([-d["score"] for d in dt], kind="mergesort")]
        out = np.zeros((len(dt), len(gt)))
        for i, d in enumerate(dt):
            for j, g in enumerate(gt):
                a, b = (mask_utils.decode(x["segmentation"]) for x in (d, g))
                pairs = [(a, b), (mask_to_boundary(a), mask_to_boundary(b))]
                ious = [(p & q).sum() / max((p | q).sum(), 1) for p, q in pairs]
                out[i, j] = min(ious)
        return out


def test_boundary_ap():
    official, lower = load_official(), 0
    for seed in range(25):
        annotations, results = problem(seed, with_boxes=False)
        if not results:
            continue
        got = evaluate_lvis(annotations, results, "boundary").metrics

        class FromDict(official.LVIS):
            def _load_json(self, source):
                return source

        annotations, results = problem(seed, with_boxes=False)
        gt = FromDict(annotations)
        evaluation = BoundaryEval(gt, official.LVISResults(gt, results), "segm")
        evaluation.run()
        expected = {k: float(v) * 100 for k, v in evaluation.get_results().items()}
        assert got == pytest.approx(expected, abs=1e-12, rel=0)
        lower += got["AP"] < evaluate_lvis(*problem(seed, with_boxes=False)).metrics["AP"]
    assert lower > 5
