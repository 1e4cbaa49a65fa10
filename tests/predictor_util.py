"""A box predictor of explicit arguments, and proposals for it."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

from lvis_tde import TDEFastRCNNOutputLayers

C, D = 5, 8


def make_predictor(cls=TDEFastRCNNOutputLayers, **options):
    torch.manual_seed(0)
    return cls(
        ShapeSpec(channels=D),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=C,
        **options,
    )


def make_proposals(*labels_per_image):
    generator = torch.Generator().manual_seed(1)
    proposals = []
    for labels in labels_per_image:
        corner = torch.rand(len(labels), 2, generator=generator) * 20
        boxes = Boxes(torch.cat([corner, corner + 10], dim=1))
        instances = Instances((40, 40), proposal_boxes=boxes, gt_boxes=boxes)
        instances.gt_classes = torch.tensor(labels, dtype=torch.long)
        proposals.append(instances)
    return proposals


def with_mean(predictor, seed=2):
    predictor.feature_mean.mean.copy_(torch.rand(D, generator=torch.Generator().manual_seed(seed)))
    return predictor
