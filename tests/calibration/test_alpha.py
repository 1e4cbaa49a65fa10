"""Predictions and metrics for several alphas, against the model run once for each alpha."""

import copy

import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from heads_util import TDE_NAMES, build, predictors, training_image, zoo_config
from pycocotools import mask as mask_utils

from lvis_tde.calibration.alpha import predict_for_alphas, sweep_alpha
from lvis_tde.evaluation import LVISEvaluator
from lvis_tde.evaluation.build import build_evaluator

ALPHAS = [0.0, 0.5, 2.0]
NAMES = [
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml",  # precomputed proposals
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
]


def with_means(model):
    for predictor in predictors(model):
        predictor.feature_mean.mean.uniform_(0, 1, generator=torch.Generator().manual_seed(3))
    return model.eval()


def one_by_one(model, inputs):
    for alpha in ALPHAS:
        for predictor in predictors(model):
            predictor.alpha = alpha
        with torch.no_grad():
            yield model(inputs)


def in_order(instances):
    # Rows of equal scores may come in any order.
    order = sorted(
        range(len(instances)),
        key=lambda i: (
            -instances.scores[i].item(),
            instances.pred_classes[i].item(),
            instances.pred_boxes.tensor[i].tolist(),
        ),
    )
    return instances[torch.tensor(order, dtype=torch.long)]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_same_predictions_as_the_model(name, fast):
    cfg = zoo_config(name)
    cfg.MODEL.ROI_HEADS.NAME = TDE_NAMES[cfg.MODEL.ROI_HEADS.NAME]
    cfg.MODEL.TDE.FAST_NMS = fast
    model = with_means(build(cfg))
    inputs = [training_image(cfg, seed=seed) for seed in range(2)]
    for one in inputs:
        one.update(height=50, width=90)  # not the size of the network's input
        del one["instances"]
    alphas_before = [predictor.alpha for predictor in predictors(model)]
    together = predict_for_alphas(model, inputs, ALPHAS)
    assert [predictor.alpha for predictor in predictors(model)] == alphas_before
    scores = set()
    for ours, expected in zip(together, one_by_one(model, inputs)):
        assert len(ours) == len(expected) == 2
        for a, b in zip(ours, expected):
            a, b = in_order(a["instances"]), in_order(b["instances"])
            assert len(a) > 0 and a.image_size == b.image_size == (50, 90)
            assert set(a.get_fields()) == set(b.get_fields())
            for field in a.get_fields():
                x, y = (getattr(one.get(field), "tensor", one.get(field)) for one in (a, b))
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
            scores.add(round(a.scores.sum().item(), 6))
    # Alpha matters, except with background exemption and a single class.
    assert len(scores) == (6 if model.roi_heads.num_classes > 1 else 2)


def test_run_lengths_are_those_of_the_pasted_masks(tiny_model, make_batch):
    model = with_means(tiny_model())
    inputs = make_batch()
    pasted = predict_for_alphas(model, inputs, ALPHAS)
    encoded = predict_for_alphas(model, inputs, ALPHAS, rle=True)
    for a, b in zip(sum(pasted, []), sum(encoded, [])):
        a, b = a["instances"], b["instances"]
        assert torch.equal(a.scores, b.scores) and not b.has("pred_masks")
        assert len(a) == len(b.pred_masks_rle) > 0
        for mask, rle in zip(a.pred_masks, b.pred_masks_rle):
            assert (torch.from_numpy(mask_utils.decode(rle)).bool() == mask).all()


def test_same_metrics_as_an_evaluation_for_each_alpha(tiny_cfg, tiny_set, tiny_model):
    # The true boxes as proposals: then even random weights give detections that count.
    options = ["INPUT.MIN_SIZE_TEST", 64, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"]
    cfg = tiny_cfg("deconfound", *options)
    model = with_means(tiny_model("deconfound", *options)).train()
    torch.nn.init.zeros_(model.roi_heads.box_predictor.bbox_pred.weight)
    mapper, batches = DatasetMapper(cfg, is_train=False), []
    for record in DatasetCatalog.get(tiny_set["val"]):
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]])
        boxes[:, 2:] += boxes[:, :2]
        proposals = Instances((64, 64), proposal_boxes=Boxes(boxes))
        batches.append([{**mapper(copy.deepcopy(record)), "proposals": proposals}])

    def evaluator():
        return build_evaluator(cfg, tiny_set["val"])

    made, so_far = [], []
    found = sweep_alpha(
        model,
        batches,
        ALPHAS,
        lambda: made.append(1) or evaluator(),
        on_result=lambda results: so_far.append(list(results)),
    )
    assert model.training and made == [1]  # the annotations are read once
    assert so_far == [ALPHAS[:1], ALPHAS[:2], ALPHAS]
    for alpha in ALPHAS:
        model.roi_heads.box_predictor.alpha = alpha
        assert found[alpha] == inference_on_dataset(model, batches, evaluator()), alpha
    assert len({results["bbox"]["AP"] for results in found.values()}) == len(ALPHAS)
    assert found[0.0]["bbox"]["AP"] > 1
    some = sweep_alpha(model, batches, ALPHAS, evaluator, boxes_only=ALPHAS[1:])
    assert some[ALPHAS[0]] == found[ALPHAS[0]]
    assert all(some[alpha] == {"bbox": found[alpha]["bbox"]} for alpha in ALPHAS[1:])


class Listing(DatasetEvaluator):
    """Keeps a list that ``reset`` clears in place."""

    def __init__(self):
        self.seen = []

    def reset(self):
        self.seen.clear()

    def process(self, inputs, outputs):
        self.seen += [one["instances"].scores.sum().item() for one in outputs]

    def evaluate(self):
        return {"bbox": {"seen": list(self.seen)}}


def test_evaluators_of_others_share_nothing(tiny_model, make_batch):
    model = with_means(tiny_model())
    batches = [make_batch(n) for n in (1, 2)]
    found = sweep_alpha(model, batches, ALPHAS, Listing)
    seen = [found[alpha]["bbox"]["seen"] for alpha in ALPHAS]
    assert [len(scores) for scores in seen] == [3, 3, 3] and len(set(map(tuple, seen))) == 3


def test_one_setting_of_detections_is_in_memory_after_its_evaluation(
    tiny_cfg, tiny_set, tiny_model, monkeypatch
):
    cfg = tiny_cfg("deconfound", "INPUT.MIN_SIZE_TEST", 64)
    evaluate, done, held = LVISEvaluator.evaluate, [], []

    def measured(self):
        held.append([len(one.detections().scores) for one in done])
        results = evaluate(self)
        done.append(self)
        assert len(self.detections().scores) > 0
        return results

    monkeypatch.setattr(LVISEvaluator, "evaluate", measured)
    loader = build_detection_test_loader(cfg, tiny_set["val"])
    sweep_alpha(
        with_means(tiny_model()), loader, ALPHAS, lambda: build_evaluator(cfg, tiny_set["val"])
    )
    assert held == [[], [0], [0, 0]]


def test_bad_alpha(tiny_model, make_batch):
    model = tiny_model().eval()
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"alpha={bad}"):
            predict_for_alphas(model, make_batch(), [0.5, bad])
        with pytest.raises(ValueError, match=f"alpha={bad}"):
            sweep_alpha(model, [make_batch()], [0.5, bad], None)
    with pytest.raises(ValueError, match="no TDE predictor"):
        predict_for_alphas(tiny_model("softmax").eval(), make_batch(), [0.5])
