"""Features to class probabilities: softmax head, the authors' formulation, this project."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from lvis_tde.modeling.fast_rcnn import TDEFastRCNNOutputLayers

from .authors import AuthorsOutputLayers
from .common import add_common_arguments, median_seconds, set_up
from .data import clustered_boxes

__all__ = ["add_arguments", "run"]


def add_arguments(parser):
    """Options of ``benchmark.py head``."""
    add_common_arguments(parser, repeats=30)
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=1203)


def run(args):
    """Median seconds of each head, and ratios."""
    setting = set_up(args)
    device = torch.device(args.device)
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    options = dict(box2box_transform=transform, num_classes=args.classes)
    shape = ShapeSpec(channels=args.features)
    ours = TDEFastRCNNOutputLayers(shape, **options).to(device).eval()
    authors = AuthorsOutputLayers(shape, **options).to(device).eval()
    softmax = torch.nn.Linear(args.features, args.classes + 1).to(device)
    features = torch.randn(args.proposals, args.features, device=device).relu()
    ours.feature_mean.mean.copy_(features.mean(dim=0))
    authors.load_state_dict(ours.state_dict())
    image_shape, generator = (800, 1067), torch.Generator().manual_seed(args.seed)
    boxes, _ = clustered_boxes(args.proposals, image_shape, 60, generator)
    proposals = [Instances(image_shape, proposal_boxes=Boxes(boxes.to(device)))]

    def tde(predictor):
        logits = predictor.cls_score(features) if predictor is ours else None
        return predictor.predict_probs((logits, None, features), proposals)[0]

    calls = {
        "softmax (Detectron2)": lambda: F.softmax(softmax(features), dim=-1),
        "TDE, authors' formulation": lambda: tde(authors),
        "TDE, this project": lambda: tde(ours),
    }
    with torch.no_grad():
        difference = (tde(ours) - tde(authors)).abs().max().item()
        assert difference < 1e-4, difference
        seconds = median_seconds(calls, args)
    names = list(calls)
    return {
        "benchmark": f"head, {args.proposals} x {args.features} -> {args.classes + 1}",
        **setting,
        "seconds": seconds,
        "largest difference of the two TDE": difference,
        "ratios": {
            "TDE / softmax": seconds[names[2]] / seconds[names[0]],
            "authors' formulation / this project": seconds[names[1]] / seconds[names[2]],
        },
    }
