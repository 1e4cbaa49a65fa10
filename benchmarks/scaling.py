"""Time and memory over the number of classes: head, post-processing, evaluation, report.

From COCO's 80 classes by LVIS's 1203 to V3Det's 13,204, with the same regions, features, images and
detections: Detectron2 and the official ``lvis`` beside this project. What grows like the classes
has an exponent of 1 between the last two points; nothing should have more.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch.nn import functional as F

from lvis_tde.evaluation import evaluate_lvis
from lvis_tde.evaluation.report import write_report
from lvis_tde.modeling.fast_rcnn import TDEFastRCNNOutputLayers
from lvis_tde.modeling.postprocess import large_vocabulary_inference
from lvis_tde.visualization.figure import bare, headline, new_figure
from lvis_tde.visualization.palette import INK, RUN_COLORS

from .common import add_common_arguments, median_seconds, peak_memory, set_up
from .data import clustered_boxes, detection_scores
from .evaluation_data import DETECTIONS, Scenes

__all__ = ["add_arguments", "exponent", "run"]

IMAGE_SHAPE = (800, 1067)
_OURS, _THEIRS = "this project", "beside it"
_COLORS = RUN_COLORS["tde"], RUN_COLORS["softmax"]
# What is drawn: of which step, in which unit, and whose the other curve is.
_PANELS = (
    ("head", "seconds", "softmax (Detectron2)"),
    ("head", "megabytes", "softmax (Detectron2)"),
    ("NMS", "seconds", "fast_rcnn_inference"),
    ("evaluation", "seconds", "lvis"),
    ("report", "seconds", ""),
)


def add_arguments(parser):
    """Options of ``benchmark.py scaling``."""
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--images", type=int, default=50, help="images to evaluate (default: 50)")
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[80, 365, 1203, 2000, 5000, 13204]
    )
    parser.add_argument("--figure", help="a file for the curves, such as docs/images/scaling.png")


def run(args):
    """For each step and number of classes both sides' figures, and how they grow."""
    setting = set_up(args)
    curves: dict[str, dict[int, dict[str, float]]] = {}
    for classes in args.classes:
        for step in (_head, _nms, _evaluation):
            for name, figures in step(classes, args).items():
                curves.setdefault(name, {})[classes] = figures
    if args.figure:
        _draw(curves, args.figure)
    growth = {
        f"{name}: {side}": exponent({c: row[side] for c, row in rows.items()})
        for name, rows in curves.items()
        for side in next(iter(rows.values()))
    }
    return {
        "benchmark": f"{args.proposals} regions, {args.features} features, {args.images} images "
        f"with {DETECTIONS} detections each",
        **setting,
        **{
            name: {f"{c} classes, {side}": v for c, row in rows.items() for side, v in row.items()}
            for name, rows in curves.items()
        },
        "exponent between the last two": growth if len(args.classes) > 1 else {},
    }


def exponent(curve: dict[int, float]) -> float:
    """Of the power by which a figure grows between the last two numbers of classes."""
    (c0, v0), (c1, v1) = list(curve.items())[-2:] if len(curve) > 1 else [*curve.items()] * 2
    return math.log(v1 / v0) / math.log(c1 / c0) if c1 != c0 and v0 > 0 and v1 > 0 else math.nan


@torch.no_grad()
def _head(classes: int, args) -> dict[str, dict[str, float]]:
    ours = TDEFastRCNNOutputLayers(
        ShapeSpec(channels=args.features),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=classes,
        cls_agnostic_bbox_reg=True,
    )
    ours.to(args.device).eval()
    plain = torch.nn.Linear(args.features, classes + 1).to(args.device)
    features = torch.randn(args.proposals, args.features, device=args.device).relu()
    ours.feature_mean.mean.copy_(features.mean(dim=0))
    proposals = [Instances(IMAGE_SHAPE, features=features)]
    calls = {
        _OURS: lambda: ours.predict_probs((ours.cls_score(features), None, features), proposals),
        _THEIRS: lambda: F.softmax(plain(features), dim=-1),
    }
    memory = {name: peak_memory(call, args.device) for name, call in calls.items()}
    return {"head, seconds": median_seconds(calls, args), "head, megabytes": memory}


def _nms(classes: int, args) -> dict[str, dict[str, float]]:
    generator = torch.Generator().manual_seed(args.seed)
    boxes, owner = clustered_boxes(args.proposals, IMAGE_SHAPE, 60, generator)
    # A candidate of eight, as on LVIS at a threshold of 1e-4.
    candidates = args.proposals * classes // 8
    scores = detection_scores(owner, classes, candidates, 1e-4, generator)
    arguments = [boxes.to(args.device)], [scores.to(args.device)], [IMAGE_SHAPE], 1e-4, 0.5, 300
    expected, found = fast_rcnn_inference(*arguments), large_vocabulary_inference(*arguments)
    assert torch.equal(expected[0][0].scores, found[0][0].scores)
    calls = {
        _OURS: lambda: large_vocabulary_inference(*arguments),
        _THEIRS: lambda: fast_rcnn_inference(*arguments),
    }
    return {"NMS, seconds": median_seconds(calls, args)}


def _evaluation(classes: int, args) -> dict[str, dict[str, float]]:
    scenes = Scenes(args.seed, classes)
    annotations, results = scenes.annotations(args.images), []
    for number in range(args.images):
        boxes, scores, labels, _ = scenes.predictions(number)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist()):
            one = {"image_id": number + 1, "category_id": label + 1, "bbox": box, "score": score}
            results.append(one)

    def evaluate(engine: str):
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluate_lvis(annotations, results, "bbox", engine=engine)

    found = evaluate("native")
    with tempfile.TemporaryDirectory() as folder:
        report = {_OURS: lambda: write_report(Path(folder), {"run": found})}
        written = median_seconds(report, args)
    calls = {_OURS: lambda: evaluate("native"), _THEIRS: lambda: evaluate("lvis")}
    return {"evaluation, seconds": median_seconds(calls, args), "report, seconds": written}


def _draw(curves, path: str) -> None:
    """The curves, on logarithmic axes."""
    figure = new_figure(11.5, 3.6)
    headline(
        figure,
        "Time and memory over the number of classes",
        list(zip((_OURS, "Detectron2, or lvis"), _COLORS)),
    )
    panels = figure.subplots(1, len(_PANELS))
    figure.subplots_adjust(left=0.05, right=0.985, top=0.66, bottom=0.13, wspace=0.32)
    for axes, (step, unit, other) in zip(panels, _PANELS):
        bare(axes, grid="y")
        rows = curves[f"{step}, {unit}"]
        for side, color in zip((_OURS, _THEIRS), _COLORS):
            if side in next(iter(rows.values())):
                values = [row[side] for row in rows.values()]
                axes.plot(list(rows), values, color=color, lw=2, marker="o", ms=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([80, 1203, 13204], ["80", "1203", "13,204"])
        low, high = axes.get_ylim()
        decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        axes.set_yticks(decades, [f"{value:g}" for value in decades])
        axes.minorticks_off()
        beside = f"\nbeside {other}" if other else "\n"
        axes.set_title(f"{step}, {unit}{beside}", loc="left", fontsize=9, color=INK)
    figure.savefig(path, dpi=150)
