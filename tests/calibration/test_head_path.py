"""Heads that do more than Detectron2's: the sweep and the explanation follow the model, or refuse."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from heads_util import TDE_NAMES, build, predictors, training_image, zoo_config

from lvis_tde.calibration.alpha import predict_for_alphas
from lvis_tde.calibration.explain import explain_detections
from lvis_tde.modeling.intercept import intercepted

ALPHAS = [0.0, 2.0]
MANY = ["TEST.DETECTIONS_PER_IMAGE", 120, "MODEL.RPN.POST_NMS_TOPK_TEST", 60]
FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"


def model_and_inputs(name, *options):
    cfg = zoo_config(name)
    cfg.MODEL.ROI_HEADS.NAME = TDE_NAMES[cfg.MODEL.ROI_HEADS.NAME]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    cfg.merge_from_list(options)
    model = build(cfg).eval()
    for predictor in predictors(model):
        predictor.feature_mean.mean.uniform_(0, 1, generator=torch.Generator().manual_seed(3))
        torch.nn.init.normal_(predictor.cls_score.weight, generator=torch.manual_seed(4))
    return model, [training_image(cfg, seed=seed) for seed in range(2)]


def halved(original, *args, **kwargs):
    """The method of a head that rescales what Detectron2's gives."""
    result = original(*args, **kwargs)
    instances = result[0] if isinstance(result, tuple) else result
    for one in instances:
        one.scores = one.scores * 0.5
    return result


@pytest.mark.parametrize(
    "name, part, method",
    [
        (FPN, "roi_heads", "_forward_box"),
        (FPN, "roi_heads", "forward"),
        (FPN, "roi_heads.box_predictor", "inference"),
        (CASCADE, "roi_heads", "_forward_box"),
        (CASCADE, "roi_heads.box_predictor.1", "predict_probs"),
    ],
)
def test_the_path_of_the_head_is_followed(name, part, method):
    model, inputs = model_and_inputs(name)

    def drop_first_class(original, *args):
        return tuple(p * torch.tensor([0.0] + [1.0] * 7) for p in original(*args))

    change = drop_first_class if method == "predict_probs" else halved
    with intercepted(model.get_submodule(part), method, change), torch.no_grad():
        together = predict_for_alphas(model, inputs, ALPHAS)
        for alpha, outputs in zip(ALPHAS, together):
            for predictor in predictors(model):
                predictor.alpha = alpha
            for ours, expected in zip(outputs, model(inputs)):
                ours, expected = ours["instances"], expected["instances"]
                assert len(ours) == len(expected) > 0
                torch.testing.assert_close(ours.scores, expected.scores)
                assert torch.equal(ours.pred_classes, expected.pred_classes)
                assert ours.pred_masks.shape == expected.pred_masks.shape


def test_changes_in_place_do_not_add_up():
    model, inputs = model_and_inputs(FPN)

    def box_branch(original, features, proposals):
        for one in proposals:
            one.proposal_boxes.tensor.add_(1.0)
        return original(features, proposals)

    def inference(original, predictions, proposals):
        predictions[0][:, 0] += 1.0
        predictions[1].mul_(0.5)
        return original(predictions, proposals)

    with intercepted(model.roi_heads, "_forward_box", box_branch):
        with intercepted(model.roi_heads.box_predictor, "inference", inference):
            first, _, again = predict_for_alphas(model, inputs, [1.0, 0.0, 1.0])
            model.roi_heads.box_predictor.alpha = 1.0
            with torch.no_grad():
                expected = model(inputs)
    for a, b, c in zip(first, again, expected):
        a, b, c = (one["instances"] for one in (a, b, c))
        assert torch.equal(a.scores, b.scores)
        torch.testing.assert_close(a.scores, c.scores)
        torch.testing.assert_close(a.pred_boxes.tensor, c.pred_boxes.tensor)


def test_the_network_runs_once():
    model, inputs = model_and_inputs(CASCADE)
    calls = []

    def count(original, *args):
        calls.append(args)
        return original(*args)

    with intercepted(model.roi_heads.box_head[2], "forward", count):
        with intercepted(model.backbone, "forward", count):
            predict_for_alphas(model, inputs, [0.0, 1.0, 2.0])
    assert len(calls) == 2
    # Nothing stays behind in the modules.
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_head_that_runs_on_what_alpha_changes_is_refused():
    model, inputs = model_and_inputs(FPN)

    def twice_with_tde(original, features, proposals):
        if model.roi_heads.box_predictor.alpha:
            model.roi_heads.box_head(
                model.roi_heads.box_pooler(
                    [features[f] for f in model.roi_heads.box_in_features],
                    [p.proposal_boxes for p in proposals],
                )
            )
        return original(features, proposals)

    def other_regions_with_tde(original, features, proposals):
        for one in proposals:
            one.proposal_boxes.tensor += model.roi_heads.box_predictor.alpha
        return original(features, proposals)

    for change in (twice_with_tde, other_regions_with_tde):
        for alphas in ([0.0, 2.0], [2.0, 0.0]):
            with intercepted(model.roi_heads, "_forward_box", change):
                with pytest.raises(ValueError, match="TDEROIHeads.*one alpha at a time"):
                    predict_for_alphas(model, inputs, alphas)


def test_scores_of_the_mask_branch_are_refused():
    model, inputs = model_and_inputs(FPN)

    def rescored(original, features, instances):
        if model.roi_heads.mask_on:
            instances = [Instances(i.image_size, **i.get_fields()) for i in instances]
            for one in instances:
                one.scores = one.scores * 0.5
        return original(features, instances)

    with intercepted(model.roi_heads, "forward_with_given_boxes", rescored):
        with pytest.raises(ValueError, match="TDEROIHeads.*forward_with_given_boxes"):
            predict_for_alphas(model, inputs, ALPHAS)


@pytest.mark.parametrize("name", [FPN, CASCADE])
def test_what_cannot_be_explained_is_refused(name):
    model, inputs = model_and_inputs(name)
    for found, parts in explain_detections(model, inputs):
        assert len(found) == len(parts) > 0
    with intercepted(model.roi_heads, "_forward_box", halved):
        with pytest.raises(ValueError, match="ROIHeads.*cannot be explained"):
            explain_detections(model, inputs)

    def moved(original, *args, **kwargs):
        instances = original(*args, **kwargs)
        for one in instances:
            one.pred_boxes = Boxes(one.pred_boxes.tensor + 1)
        return instances

    with intercepted(model.roi_heads, "_forward_box", moved):
        with pytest.raises(ValueError, match="ROIHeads.*cannot be explained"):
            explain_detections(model, inputs)


def test_a_head_that_leaves_some_out_is_explained():
    model, inputs = model_and_inputs(FPN)

    def every_other(original, *args, **kwargs):
        return [one[1::2] for one in original(*args, **kwargs)]

    with intercepted(model.roi_heads, "_forward_box", every_other):
        for found, parts in explain_detections(model, inputs):
            assert len(found) == len(parts) > 0
            rows = torch.arange(len(found))
            of_class = parts.probs[rows, found.pred_classes].float()
            torch.testing.assert_close(of_class, found.scores, rtol=1e-4, atol=1e-6)


def test_masks_are_predicted_in_parts():
    model, inputs = model_and_inputs(FPN, *MANY)
    alphas, largest = [0.0, 1.0, 3.0], []

    def measured(original, features, instances):
        if model.roi_heads.mask_on:
            largest.append(sum(map(len, instances)))
        return original(features, instances)

    for images in (inputs, inputs[:1]):
        largest.clear()
        with intercepted(model.roi_heads, "forward_with_given_boxes", measured):
            together = predict_for_alphas(model, images, alphas)
        assert sum(largest) > 100 >= max(largest)
        for alpha, outputs in zip(alphas, together):
            model.roi_heads.box_predictor.alpha = alpha
            with torch.no_grad():
                expected = model(images)
            for ours, theirs in zip(outputs, expected):
                ours, theirs = ours["instances"], theirs["instances"]
                torch.testing.assert_close(ours.scores, theirs.scores)
                assert torch.equal(ours.pred_classes, theirs.pred_classes)
                different = (ours.pred_masks != theirs.pred_masks).float().mean()
                assert theirs.pred_masks.any() and different < 1e-3


def test_fields_of_the_head_stay_with_their_detection():
    model, inputs = model_and_inputs(FPN)

    def with_field(original, *args):
        found, kept = original(*args)
        for one in found:
            one.doubled = one.scores * 2
        return found, kept

    with intercepted(model.roi_heads.box_predictor, "inference", with_field):
        for outputs in predict_for_alphas(model, inputs, ALPHAS):
            for output in outputs:
                found = output["instances"]
                assert torch.equal(found.doubled, found.scores * 2)
