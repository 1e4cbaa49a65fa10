"""What else a model can have, with TDE heads; upstream's with the same weights is the oracle."""

import heads_util as util
import pytest
import torch
from detectron2.engine import AMPTrainer, DefaultTrainer
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from detectron2.utils.events import EventStorage

from lvis_tde.engine import Trainer
from lvis_tde.modeling.swap import swap_box_predictor

FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"
KEYPOINTS = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"
PRED_BOXES = ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True]
PROPOSALS = ["MODEL.LOAD_PROPOSALS", True, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"]
HEADS = pytest.mark.parametrize("name", [FPN, CASCADE, C4])


def tde_config(name, *overrides):
    cfg = util.zoo_config(name)
    cfg.MODEL.ROI_HEADS.NAME = util.TDE_NAMES[cfg.MODEL.ROI_HEADS.NAME]
    cfg.merge_from_list(list(overrides))
    return cfg


def losses_of(model, batch):
    torch.manual_seed(0)
    with EventStorage():
        return {name: loss.item() for name, loss in model.train()(batch).items()}


@pytest.mark.parametrize(
    "name, options",
    [
        (KEYPOINTS, []),
        (KEYPOINTS, ["MODEL.MASK_ON", True]),
        (FPN, PRED_BOXES),
        (KEYPOINTS, PRED_BOXES),
        (FPN, PROPOSALS),
        (CASCADE, PROPOSALS),
        (C4, PROPOSALS),
    ],
)
def test_all_losses_but_the_classifiers_are_upstreams(name, options):
    cfg = util.zoo_config(name)
    cfg.merge_from_list(options)
    model, batch = util.build(cfg), [util.training_image(cfg), util.training_image(cfg, seed=1)]
    for predictor in util.predictors(model, util.FastRCNNOutputLayers):
        predictor.bbox_pred.bias.data.fill_(0.05)  # so that predicted boxes are not the proposals
    expected = losses_of(model, batch)
    got = losses_of(swap_box_predictor(model), batch)
    assert set(got) == set(expected)
    for key in expected:
        assert key.startswith("loss_cls") or got[key] == expected[key], key
    util.assert_trained_and_finite(model, got, util.infer(model, batch))
    found = util.infer(model, batch)[0]
    if cfg.MODEL.KEYPOINT_ON:
        assert found.pred_keypoints.shape[1:] == (17, 3) and found.pred_keypoints.isfinite().all()


def test_masks_are_trained_on_the_predicted_boxes():
    losses = []
    for options in ([], PRED_BOXES):
        cfg = tde_config(FPN, *options)
        model = util.build(cfg)
        model.roi_heads.box_predictor.bbox_pred.bias.data.fill_(0.5)
        losses.append(losses_of(model, [util.training_image(cfg)]))
    assert losses[0]["loss_cls"] == losses[1]["loss_cls"]
    assert losses[0]["loss_mask"] != losses[1]["loss_mask"]


@HEADS
def test_test_time_augmentation(name):
    cfg = tde_config(name)
    # Overlapping detections come back in another order after the second suppression.
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.3
    model, batch = util.build(cfg), [util.training_image(cfg)]
    torch.manual_seed(1)
    for predictor in util.predictors(model):
        predictor.feature_mean.mean.uniform_()
    plain = util.infer(model, batch)[0]

    def augmented(sizes, flip):
        cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = sizes, flip
        (found,) = util.infer(GeneralizedRCNNWithTTA(cfg, model, DatasetMapperTTA(cfg)), batch)
        return found

    # One size and no flip is no augmentation.
    same = augmented((64,), False)
    assert torch.equal(same.scores, plain.scores)
    torch.testing.assert_close(same.pred_boxes.tensor, plain.pred_boxes.tensor)
    more = augmented((64, 96), True)
    assert more.scores.isfinite().all() and len(more) > 0 and more.pred_masks.shape[1:] == (64, 64)
    for predictor in util.predictors(model):
        predictor.alpha = 0.0
    assert not torch.equal(augmented((64, 96), True).scores, more.scores)


@pytest.mark.parametrize(
    "name, dtype",
    [
        (FPN, torch.bfloat16),
        (CASCADE, torch.bfloat16),
        (C4, torch.bfloat16),
        (FPN, torch.float16),
        (CASCADE, torch.float16),  # C4 as well, but half convolutions crawl on the CPU
    ],
)
def test_autocast_trains_and_predicts(name, dtype):
    cfg = tde_config(name)
    model, batch = util.build(cfg), [util.training_image(cfg)]
    expected = losses_of(model, batch)
    for predictor in util.predictors(model):
        predictor.feature_mean.mean.zero_()
    with torch.autocast("cpu", dtype=dtype):
        losses = util.step(cfg, model, batch)
        detections = util.infer(model, batch)
    util.assert_trained_and_finite(model, losses, detections)
    assert all(p.feature_mean.mean.dtype == torch.float32 for p in util.predictors(model))
    assert all(found.scores.dtype == torch.float32 for found in detections)
    for key in expected:
        if key.startswith("loss_cls"):
            assert losses[key] == pytest.approx(expected[key], rel=0.05)


def test_amp_trainer(tmp_path, monkeypatch):
    # SOLVER.AMP.ENABLED takes Detectron2 to AMPTrainer, which is for GPUs: on the CPU the same
    # loop runs under the CPU's autocast, and its gradient scaler is off.
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
        monkeypatch.setattr(
            torch.cuda.amp,
            "autocast",
            lambda dtype=None: torch.autocast("cpu", dtype=torch.bfloat16),
        )
        device = "cpu"
    else:
        device = "cuda"
    cfg = tde_config(FPN, "SOLVER.AMP.ENABLED", True, "OUTPUT_DIR", str(tmp_path))
    cfg.MODEL.DEVICE = device
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.MAX_ITER = 3
    batch = [util.training_image(cfg)]
    monkeypatch.setattr(
        DefaultTrainer, "build_model", classmethod(lambda cls, cfg: util.build(cfg))
    )
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: [batch] * 3))
    trainer = Trainer(cfg)
    assert isinstance(trainer._trainer, AMPTrainer)
    trainer.train()  # raises if a loss is not finite
    (predictor,) = util.predictors(trainer.model)
    mean = predictor.feature_mean.mean
    assert mean.dtype == torch.float32 and mean.isfinite().all() and mean.any()
