"""What one step of the running mean costs, beside the classifier's own product."""

import torch

from lvis_tde import RunningFeatureMean

from .common import add_common_arguments, median_seconds, set_up

__all__ = ["add_arguments", "run"]


def add_arguments(parser):
    """Options of ``benchmark.py mean_update``."""
    add_common_arguments(parser, repeats=100)
    parser.add_argument("--regions", type=int, default=4096, help="512 of each of 8 images")
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=1203)


def run(args):
    """Median seconds of an update and of the linear classifier on the same features."""
    setting = set_up(args)
    features = torch.randn(args.regions, args.features, device=args.device)
    foreground = torch.rand(args.regions, device=args.device) < 0.25
    mean = RunningFeatureMean(args.features).to(args.device)
    classifier = torch.nn.Linear(args.features, args.classes + 1).to(args.device)
    update, product = "update of the running mean", "linear classifier"
    with torch.no_grad():
        seconds = median_seconds(
            {
                update: lambda: mean.update(features, foreground),
                product: lambda: classifier(features),
            },
            args,
        )
    return {
        "benchmark": f"running mean of {args.regions} x {args.features} features",
        **setting,
        "seconds": seconds,
        "ratios": {f"{update} / {product}": seconds[update] / seconds[product]},
    }
