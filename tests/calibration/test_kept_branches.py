"""Further passes over images whose box branches are kept, against a pass of their own."""

import pytest
import torch
from heads_util import TDE_NAMES, build, predictors, training_image, zoo_config

from lvis_tde.calibration.replay import BoxBranch, KeptBranches
from lvis_tde.modeling.intercept import intercepted

NAMES = [
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
]


def model_and_batches(name=NAMES[0]):
    cfg = zoo_config(name)
    cfg.MODEL.ROI_HEADS.NAME = TDE_NAMES[cfg.MODEL.ROI_HEADS.NAME]
    model = build(cfg).eval()
    for predictor in predictors(model):
        predictor.feature_mean.mean.uniform_(0, 1, generator=torch.Generator().manual_seed(3))
    return model, [[training_image(cfg, seed=seed)] for seed in range(3)]


class Loader:
    """Counts its passes."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


@torch.no_grad()
def detections(model, branches, alpha):
    for predictor in predictors(model):
        predictor.alpha = alpha
    return [branch.detect() for _, branch in branches]


@torch.no_grad()
def fresh(model, batches, alpha):
    for predictor in predictors(model):
        predictor.alpha = alpha
    return [BoxBranch(model, batch).detect() for batch in batches]


def assert_equal(ours, expected):
    for (a,), (b,) in zip(ours, expected, strict=True):
        assert len(a) == len(b) > 0
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)


@pytest.mark.parametrize("name", NAMES)
def test_further_passes_need_no_images(name):
    model, batches = model_and_batches(name)
    loader = Loader(batches)
    kept = KeptBranches(model, loader)
    assert len(kept) == 3
    for alpha in (0.0, 1.0, 2.0):
        assert_equal(detections(model, kept, alpha), fresh(model, batches, alpha))
    assert loader.passes == 1
    # No map of features is left, only what the last networks gave.
    for inputs, branch in kept:
        assert "image" not in inputs[0]
        assert branch.num_bytes < 2_000_000


@pytest.mark.parametrize("fitting", [0, 1, 2])
def test_what_does_not_fit_is_run_again(fitting):
    model, batches = model_and_batches()
    with torch.no_grad():
        branch = BoxBranch(model, batches[0])
        branch.detect()
    size = branch.without_maps().num_bytes
    loader = Loader(batches)
    kept = KeptBranches(model, loader, budget=int(size * (fitting + 0.5)))
    for alpha in (0.0, 2.0):
        assert_equal(detections(model, kept, alpha), fresh(model, batches, alpha))
    assert loader.passes == 2
    assert sum("image" not in inputs[0] for inputs, _ in kept) == fitting


def test_heads_that_read_their_pooled_features_keep_them():
    model, batches = model_and_batches()

    def rescaled(original, features, proposals):
        heads = model.roi_heads
        pooled = heads.box_pooler(
            [features[f] for f in heads.box_in_features], [p.proposal_boxes for p in proposals]
        )
        predictions = heads.box_predictor(heads.box_head(pooled))
        found, _ = heads.box_predictor.inference(predictions, proposals)
        for one in found:
            one.scores = one.scores * pooled.mean().sigmoid()
        return found

    with intercepted(model.roi_heads, "_forward_box", rescaled):
        kept = KeptBranches(model, Loader(batches))
        for alpha in (0.0, 2.0):
            assert_equal(detections(model, kept, alpha), fresh(model, batches, alpha))


def test_a_pass_that_stops_early_leaves_no_gap():
    model, batches = model_and_batches()
    kept = KeptBranches(model, Loader(batches))
    with torch.no_grad():
        for _, branch in kept:
            branch.detect()
            break
    for alpha in (0.0, 2.0):
        assert_equal(detections(model, kept, alpha), fresh(model, batches, alpha))
