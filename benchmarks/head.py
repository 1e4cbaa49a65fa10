"""Features to class probabilities: softmax head, the authors' formulation, this project; and the
plain heads against themselves with every post-hoc step that is linear in the logits."""

import dataclasses

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from lvis_tde.modeling.fast_rcnn import TDEFastRCNNOutputLayers
from lvis_tde.posthoc import Settings

from .authors import AuthorsOutputLayers
from .common import add_common_arguments, median_seconds, set_up
from .data import clustered_boxes

__all__ = ["add_arguments", "run"]

# A sigmoid's FRACAL has a second factor, and its shift is solved for: neither is linear in the
# logits.
_STEPS = dict(tau_norm=0.5, logn=0.5, logit_adjustment=0.5, norcal=0.1, keep_sum="")
_LINEAR = {
    "softmax": Settings(**_STEPS, fracal=1.0),
    "sigmoid": Settings(**_STEPS),
}
_KEEP_SUM = Settings(logit_adjustment=1.0)
_CLASS_MEANS = Settings(class_means=12.0)  # a second product


def add_arguments(parser):
    """Options of ``benchmark.py head``."""
    add_common_arguments(parser, repeats=30)
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=1203)


def _trained(shape, features, options, sigmoid):
    """A linear head whose statistics are known, with its TDE off."""
    head = TDEFastRCNNOutputLayers(
        shape, norm="none", num_heads=1, alpha=0.0, use_sigmoid_ce=sigmoid, **options
    )
    counts = torch.arange(1, options["num_classes"] + 1)
    head.statistics.set_annotations(
        images=counts, instances=counts, dimension=1 + 1 / counts, num_images=len(counts)
    )
    head.statistics.set_logits(-1 / counts, 1 + 1 / counts)
    means = torch.rand(len(counts), features.shape[1], generator=torch.Generator().manual_seed(0))
    head.statistics.set_class_means(means, means.mean(0))
    head.to(features.device).eval().feature_mean.mean.copy_(features.mean(dim=0))
    return head


def run(args):
    """Median seconds of each head, and ratios."""
    setting = set_up(args)
    device = torch.device(args.device)
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    options = dict(box2box_transform=transform, num_classes=args.classes)
    shape = ShapeSpec(channels=args.features)
    ours = TDEFastRCNNOutputLayers(shape, **options).to(device).eval()
    authors = AuthorsOutputLayers(shape, **options).to(device).eval()
    plain = torch.nn.Linear(args.features, args.classes + 1).to(device)
    features = torch.randn(args.proposals, args.features, device=device).relu()
    ours.feature_mean.mean.copy_(features.mean(dim=0))
    authors.load_state_dict(ours.state_dict())
    image_shape, generator = (800, 1067), torch.Generator().manual_seed(args.seed)
    boxes, _ = clustered_boxes(args.proposals, image_shape, 60, generator)
    proposals = [Instances(image_shape, proposal_boxes=Boxes(boxes.to(device)))]

    def tde(predictor):
        logits = None if predictor is authors else predictor.cls_score(features)
        return predictor.predict_probs((logits, None, features), proposals)[0]

    def trained(kind, settings):
        head = _trained(shape, features, options, kind == "sigmoid")
        head.posthoc = settings
        return head

    heads = {}
    for kind, linear in _LINEAR.items():
        heads[f"{kind}, all linear steps"] = trained(kind, linear)
        with_tde = dataclasses.replace(linear, region=0.5, class_=0.5)
        heads[f"{kind}, those and TDE"] = trained(kind, with_tde)
    kept = "sigmoid, logit adjustment and keep_sum"
    heads[kept] = trained("sigmoid", _KEEP_SUM)
    heads["sigmoid, class means"] = trained("sigmoid", _CLASS_MEANS)
    calls = {
        "softmax (Detectron2)": lambda: F.softmax(plain(features), dim=-1),
        "TDE, authors' formulation": lambda: tde(authors),
        "TDE, this project": lambda: tde(ours),
        "sigmoid (Detectron2)": lambda: plain(features).sigmoid(),
        **{name: lambda head=head: tde(head) for name, head in heads.items()},
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
            **{
                f"{name} / plain": seconds[name] / seconds[f"{name.split(',')[0]} (Detectron2)"]
                for name in heads
            },
        },
    }
