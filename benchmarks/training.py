"""A training step: softmax head, the authors' formulation, this project."""

import torch
from detectron2.utils.events import EventStorage

from lvis_tde.modeling.roi_align import pool_faster

from .common import add_common_arguments, median_seconds, peak_memory, set_up
from .model import build, make_inputs

__all__ = ["add_arguments", "run"]

SELECTED, ALL = "SelectedClassMaskRCNNConvUpsampleHead", "MaskRCNNConvUpsampleHead"
# The box head alone differs within the first three, which are built as the trainer builds them.
STEPS = {
    "softmax head": ("StandardROIHeads", SELECTED),
    "authors' formulation": ("TDEROIHeads", SELECTED),
    "TDE head": ("TDEROIHeads", SELECTED),
    "Detectron2 (softmax head, masks of all classes)": ("StandardROIHeads", ALL),
}


def add_arguments(parser):
    """Options of ``benchmark.py training``."""
    add_common_arguments(parser, repeats=9)
    parser.add_argument("--size", type=int, default=320, help="short edge of the images")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--amp", action="store_true", help="autocast to half precision")


def run(args):
    """Median seconds of forward, backward and the optimizer's step, and ratios."""
    setting = set_up(args)
    inputs = make_inputs(args, training=True)
    steps = {name: _step(name, heads, inputs, args) for name, heads in STEPS.items()}
    seconds = median_seconds(steps, args)
    cuda = torch.device(args.device).type == "cuda"
    # On the CPU the profiler that counts it would take minutes.
    memory = {
        name: peak_memory(step, args.device) if cuda else None for name, step in steps.items()
    }
    softmax, authors, ours, upstream = (seconds[name] for name in STEPS)
    return {
        "benchmark": f"training step, Mask R-CNN R50-FPN, 1203 classes, {args.size} px",
        **setting,
        "batch": args.batch,
        "amp": args.amp,
        "seconds": seconds,
        "peak megabytes": memory,
        "ratios": {
            "TDE head / softmax head": ours / softmax,
            "authors' formulation / TDE head": authors / ours,
            "Detectron2 / this project (TDE head, needed masks)": upstream / ours,
        },
    }


def _step(name, heads, inputs, args):
    model = build(name, args, heads).train()
    if heads[1] == SELECTED and torch.device(args.device).type == "cpu":
        pool_faster(model.to(memory_format=torch.channels_last))
    # A rate at which the weights, and with them the work, stay as they are.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)
    device = torch.device(args.device).type

    def step():
        torch.manual_seed(args.seed)  # the same sampled proposals in every step
        with EventStorage(), torch.autocast(device, enabled=args.amp):
            losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step
