"""The mask head of all classes against those of the needed class: time and peak memory."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from lvis_tde.modeling.mask_head import (
    CosineMaskRCNNConvUpsampleHead,
    SelectedClassMaskRCNNConvUpsampleHead,
)

from .common import add_common_arguments, median_seconds, peak_memory, set_up

__all__ = ["add_arguments", "run"]

CHANNELS = 256


def add_arguments(parser):
    """Options of ``benchmark.py mask``."""
    add_common_arguments(parser, repeats=5)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--detections", type=int, default=300, help="instances in inference")
    parser.add_argument(
        "--boxes", type=int, help="distinct boxes, shared by them (default: a third as many)"
    )
    parser.add_argument("--foreground", type=int, default=64, help="instances in training")


def run(args):
    """Median seconds and peak megabytes in inference and training, and ratios."""
    setting = set_up(args)
    arguments = dict(num_classes=args.classes, conv_dims=[CHANNELS] * 5)
    heads = {
        "Detectron2": MaskRCNNConvUpsampleHead,
        "this project": SelectedClassMaskRCNNConvUpsampleHead,
        "this project, cosine": CosineMaskRCNNConvUpsampleHead,
    }
    heads = {
        name: head(ShapeSpec(channels=CHANNELS), **arguments).to(args.device)
        for name, head in heads.items()
    }
    heads["this project"].load_state_dict(heads["Detectron2"].state_dict())
    boxes = max(1, args.detections // 3) if args.boxes is None else args.boxes
    if not 1 <= boxes <= args.detections:
        raise ValueError(f"--boxes must be in 1 ... {args.detections}, got {boxes}")
    infer = {name: _inference(head, args, args.detections) for name, head in heads.items()}
    share = {name: _inference(head, args, boxes) for name, head in heads.items()}
    train = {name: _training(head, args) for name, head in heads.items()}
    predict = {name: _predictor(head, args) for name, head in heads.items()}
    for head in heads.values():
        head.eval()
    with torch.no_grad():
        seconds = {
            f"inference, {args.detections} instances": median_seconds(infer, args),
            f"  the same in {boxes} boxes": median_seconds(share, args),
            "  of it the 1x1 predictor, 100 instances": median_seconds(predict, args),
        }
        memory = {
            f"inference, {args.detections} instances": {
                name: peak_memory(call, args.device) for name, call in infer.items()
            }
        }
    for head in heads.values():
        head.train()
    title = f"training, {args.foreground} instances"
    seconds[title] = median_seconds(train, args)
    memory[title] = {name: peak_memory(call, args.device) for name, call in train.items()}
    return {
        "benchmark": f"mask, {args.classes} classes, four convolutions of {CHANNELS}, 28x28",
        **setting,
        "seconds": seconds,
        "peak megabytes": memory,
        "ratios": {
            f"{what}, {title.strip()}: Detectron2 / {name}": values["Detectron2"] / values[name]
            for what, table in (("time", seconds), ("memory", memory))
            for title, values in table.items()
            for name in values
            if name != "Detectron2"
        },
    }


def _inference(head, args, num_boxes):
    """Detections that share boxes, one after the other, and with them their pooled features."""
    which = torch.arange(args.detections, device=args.device) % num_boxes
    x = torch.randn(num_boxes, CHANNELS, 14, 14, device=args.device)[which]
    instances = Instances((800, 1067))
    corner = which[:, None].float()
    instances.pred_boxes = Boxes(torch.cat([corner, corner, corner + 9, corner + 9], dim=1))
    instances.pred_classes = torch.randint(args.classes, (args.detections,), device=args.device)
    return lambda: head(x, [instances])


def _predictor(head, args):
    x = torch.randn(100, CHANNELS, 28, 28, device=args.device)
    classes = torch.randint(args.classes, (100,), device=args.device)
    if isinstance(head, SelectedClassMaskRCNNConvUpsampleHead):
        return lambda: head.select_logits(x, classes).sigmoid()
    return lambda: head.predictor(x)[torch.arange(100), classes].sigmoid()


def _training(head, args):
    count = args.foreground
    x = torch.randn(count, CHANNELS, 14, 14, device=args.device, requires_grad=True)
    instances = Instances((64, 64))
    instances.proposal_boxes = Boxes(
        torch.tensor([[4.0, 4, 60, 60]], device=args.device).expand(count, 4)
    )
    instances.gt_classes = torch.randint(args.classes, (count,), device=args.device)
    instances.gt_masks = BitMasks(torch.rand(count, 64, 64, device=args.device) > 0.5)

    def step():
        head.zero_grad()
        with EventStorage():
            head(x, [instances])["loss_mask"].backward()

    return step
