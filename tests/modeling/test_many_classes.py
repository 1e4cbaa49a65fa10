"""Inference with the 13,204 classes of V3Det: memory, and that the parts are the whole."""

import dataclasses

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Instances

from benchmarks.common import peak_memory
from lvis_tde import TDEFastRCNNOutputLayers
from lvis_tde.posthoc import Settings

REGIONS, FEATURES, CLASSES = 1000, 32, 13204


BOTH = Settings(class_=0.5, region=0.5, logit_adjustment=1.0)
JOINT_TDE = Settings(class_=0.5, region=0.5, background="joint")
JOINT = dataclasses.replace(BOTH, background="joint")


@pytest.mark.parametrize(
    "settings, sigmoid",
    [(None, False), (BOTH, False), (JOINT, False), (JOINT_TDE, False), (BOTH, True)],
)
def test_no_more_than_two_tensors_of_all_scores(settings, sigmoid):
    predictor = TDEFastRCNNOutputLayers(
        ShapeSpec(channels=FEATURES),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=CLASSES,
        cls_agnostic_bbox_reg=True,
        use_sigmoid_ce=sigmoid,
    ).eval()
    counts = torch.arange(1, CLASSES + 1)
    predictor.statistics.set_annotations(
        images=counts, instances=counts, dimension=1 + 1 / counts, num_images=CLASSES
    )
    features = torch.rand(REGIONS, FEATURES)
    predictor.feature_mean.mean.copy_(features.mean(0))
    if settings is not None:
        predictor.posthoc = settings
    proposals, found = [Instances((9, 9), features=features)], []

    def infer():
        found.append(predictor.predict_probs(predictor(features), proposals)[0])

    with torch.no_grad():
        peak = peak_memory(infer, "cpu")
    one = REGIONS * (CLASSES + 1) * 4 / 1e6
    assert 2 * one <= peak < 2.3 * one
    # With gradients nothing is done in parts.
    with torch.enable_grad():
        whole = predictor.predict_probs(predictor(features), proposals)[0].detach()
    torch.testing.assert_close(found[0], whole, rtol=1e-4, atol=1e-8)
