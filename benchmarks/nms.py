"""Boxes and probabilities to detections: ``fast_rcnn_inference`` and this project."""

import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference

from lvis_tde.modeling.postprocess import large_vocabulary_inference

from .common import add_common_arguments, median_seconds, set_up
from .data import clustered_boxes, detection_scores

__all__ = ["add_arguments", "run"]

IMAGE_SHAPE = (800, 1067)
# classes, candidates, score threshold, detections, class-specific boxes
CASES = (
    (80, 600, 0.05, 100, True),
    (80, 3_000, 0.01, 100, True),
    (1203, 50_000, 1e-4, 300, False),
    (1203, 50_000, 1e-4, 300, True),
    (1203, 150_000, 1e-4, 300, True),
    (1203, 400_000, 1e-4, 300, True),
)


def add_arguments(parser):
    """Options of ``benchmark.py nms``."""
    add_common_arguments(parser, repeats=9)
    parser.add_argument("--proposals", type=int, default=1000)


def run(args):
    """Median seconds for each number of classes and candidates, and ratios."""
    setting = set_up(args)
    seconds, ratios = {}, {}
    for classes, candidates, score_thresh, topk, specific in CASES:
        generator = torch.Generator().manual_seed(args.seed)
        boxes, owner = clustered_boxes(args.proposals, IMAGE_SHAPE, 60, generator)
        scores = detection_scores(owner, classes, candidates, score_thresh, generator)
        if specific:
            moved = torch.randn(args.proposals, classes, 4, generator=generator) * 2
            boxes = (boxes[:, None] + moved).flatten(1)
        boxes, scores = boxes.to(args.device), scores.to(args.device)
        arguments = ([boxes], [scores], [IMAGE_SHAPE], score_thresh, 0.5, topk)
        _assert_equal(fast_rcnn_inference(*arguments), large_vocabulary_inference(*arguments))
        measured = median_seconds(
            {
                "Detectron2": lambda: fast_rcnn_inference(*arguments),  # noqa: B023
                "this project": lambda: large_vocabulary_inference(*arguments),  # noqa: B023
            },
            args,
        )
        found = int((scores[:, :-1] > score_thresh).sum())
        kind = "class-specific" if specific else "class-agnostic"
        name = f"{classes} classes, {found} candidates, {kind} boxes"
        seconds[name] = measured
        ratios[f"{name}: Detectron2 / this project"] = (
            measured["Detectron2"] / measured["this project"]
        )
    return {
        "benchmark": f"nms, {args.proposals} proposals, threshold 1e-4, 300 detections at LVIS",
        **setting,
        "seconds": seconds,
        "ratios": ratios,
    }


def _assert_equal(expected, actual):
    for want, got in zip(expected[0], actual[0]):
        assert torch.equal(want.pred_boxes.tensor, got.pred_boxes.tensor)
        assert torch.equal(want.scores, got.scores)
        assert torch.equal(want.pred_classes, got.pred_classes)
