"""Images to result files, end to end, with the time of each stage.

All have one set of weights: the linear classifier of Detectron2's model. This project's has TDE,
with a strength so small that its detections are Detectron2's: its cost is in, and what is found is
compared before it is timed.
"""

import statistics
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from torch import nn

from lvis_tde.modeling.inference_mode import DTYPES, optimize_for_inference
from lvis_tde.modeling.intercept import intercepted
from lvis_tde.modeling.mask_postprocess import masks_as_rle

from .common import add_common_arguments, clock, set_up
from .model import build, calibrate_classifier, make_inputs

__all__ = ["add_arguments", "differences", "run"]

STAGES = {
    "backbone": ("backbone", "forward"),
    "proposals": ("proposal_generator", "forward"),
    "box pooling": ("roi_heads.box_pooler", "forward"),
    "box head": ("roi_heads.box_head", "forward"),
    "box predictor, linear layers": ("roi_heads.box_predictor", "forward"),
    "probabilities": ("roi_heads.box_predictor", "predict_probs"),
    "mask pooling": ("roi_heads.mask_pooler", "forward"),
    "mask head": ("roi_heads.mask_head", "forward"),
}
MODELS = {"r50": (50, "{}ROIHeads"), "cascade_r101": (101, "{}CascadeROIHeads")}
UPSTREAM, OURS = "Detectron2", "this project"
EXACT = f"{OURS}, optimized"


def add_arguments(parser):
    """Options of ``benchmark.py inference``."""
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--size", type=int, default=800, help="short edge of the images")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--candidates", type=int, default=100_000, help="per image, calibrated")
    parser.add_argument("--model", choices=MODELS, default="r50")
    parser.add_argument("--agnostic", action="store_true", help="one box for all classes")
    parser.add_argument(
        "--dtypes", nargs="*", choices=[d for d in DTYPES if d], default=["bfloat16"]
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="columns, such as Detectron2"
    )
    parser.add_argument("--amp", action="store_true", help="autocast around Detectron2")


@torch.no_grad()
def run(args):
    """Median seconds an image of each column and stage, and ratios."""
    setting = set_up(args)
    inputs = make_inputs(args)
    models, candidates = _models(args, inputs)
    found = {name: _predict(model, inputs, name) for name, model in models.items()}
    apart = {name: differences(found[UPSTREAM], other) for name, other in found.items()}
    for name in (OURS, EXACT):
        if name in models and not args.amp:
            assert apart[name]["found again"] >= 0.99, apart[name]

    clocks = {name: _Clock(model, args) for name, model in models.items()}
    for repeat in range(args.warmup + args.repeats):
        for name, model in models.items():
            with clocks[name].running(keep=repeat >= args.warmup):
                _predict(model, inputs, name, amp=args.amp and name == UPSTREAM)
    stages = {name: timed.medians(args.batch) for name, timed in clocks.items()}
    seconds = {name: table.pop(_Clock.WHOLE) for name, table in stages.items()}
    return {
        "benchmark": f"inference, {args.model}, 1203 classes, {args.size} px",
        **setting,
        "batch": args.batch,
        "boxes": "class-agnostic" if args.agnostic else "class-specific",
        "candidates an image": candidates,
        "detections": len(found[UPSTREAM][0]),
        "distinct boxes": len({tuple(one["bbox"]) for one in found[UPSTREAM][0]}),
        f"beside {UPSTREAM}": apart,
        "seconds an image by stage": stages,
        "seconds an image, to results with RLEs": seconds,
        "ratios": {
            f"{UPSTREAM} / {name}": seconds[UPSTREAM] / value for name, value in seconds.items()
        },
    }


def _models(args, inputs):
    """The columns, and the number of candidates an image."""
    depth, heads = MODELS[args.model]
    agnostic = args.agnostic = args.agnostic or "Cascade" in heads
    plain = "StandardROIHeads" if heads == "{}ROIHeads" else heads.format("")
    upstream = build("", args, (plain, "MaskRCNNConvUpsampleHead"), depth=depth, agnostic=agnostic)
    candidates = calibrate_classifier(upstream.eval(), inputs, args.candidates, args.seed)
    models = {UPSTREAM: upstream}
    ours = (heads.format("TDE"), "SelectedClassMaskRCNNConvUpsampleHead")
    for name in (OURS, EXACT, *(f"{OURS}, {dtype}" for dtype in args.dtypes)):
        if args.only and name not in args.only:
            continue
        tde = {"NORM": "none", "NUM_HEADS": 1, "ALPHA": 1e-9}
        model = build("", args, ours, depth=depth, agnostic=agnostic, tde=tde).eval()
        assert not model.load_state_dict(upstream.state_dict(), strict=False).unexpected_keys
        predictors = model.roi_heads.box_predictor
        for one in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
            one.feature_mean.mean.fill_(1)
        if name != OURS:
            dtype = name.removeprefix(f"{OURS}, ")
            optimize_for_inference(model, DTYPES["" if name == EXACT else dtype])
        models[name] = model
    return models, candidates


def _predict(model, inputs, name, amp=False):
    """What an evaluator keeps of the images: results with boxes, scores, classes and RLEs."""
    results = []
    compact = ExitStack() if name == UPSTREAM else masks_as_rle(model)
    with torch.autocast(model.device.type, enabled=amp), compact:
        outputs = model(inputs)
    for index, output in enumerate(outputs):
        instances = output["instances"].to("cpu")
        written = instances_to_coco_json(instances, index)
        if instances.has("pred_masks_rle"):
            for result, rle in zip(written, instances.pred_masks_rle):
                result["segmentation"] = rle
        results.append(written)
    return results


def differences(reference, other):
    """How far results of images are from others.

    Returns:
        dict: the share of the reference's detections that the other has, of the same class, with an
        IoU of 0.99 and a score within 1 %; the largest difference of the scores of those.
    """
    matched, total, largest = 0, 0, 0.0
    for ones, others in zip(reference, other):
        total += len(ones)
        if not ones or not others:
            continue
        boxes, scores, classes = _columns(ones)
        other_boxes, other_scores, other_classes = _columns(others)
        same = (classes[:, None] == other_classes) & (pairwise_iou(boxes, other_boxes) > 0.99)
        apart = (scores[:, None] - other_scores).abs().where(same, torch.inf).amin(1)
        again = apart <= 0.01 * scores
        matched += int(again.sum())
        largest = max(largest, apart[again].max().item() if again.any() else 0.0)
    return {"found again": matched / max(total, 1), "scores apart": largest}


def _columns(results):
    boxes = torch.tensor([one["bbox"] for one in results], dtype=torch.float64)
    boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    scores = torch.tensor([one["score"] for one in results], dtype=torch.float64)
    return boxes, scores, torch.tensor([one["category_id"] for one in results])


class _Clock:
    """Times calls of one model, whole and by stage."""

    WHOLE = "whole"

    def __init__(self, model, args):
        self._model, self._seconds = model, clock(args)
        self._cuda = torch.device(args.device).type == "cuda"
        self._kept = defaultdict(list)

    def _time(self):
        if self._cuda:
            torch.cuda.synchronize()
        return self._seconds()

    @contextmanager
    def running(self, *, keep):
        """Clocks the one call inside; ``keep`` counts it for the medians."""
        stages = dict.fromkeys(STAGES, 0.0)

        def timed(stage, call, *args, **kwargs):
            start = self._time()
            result = call(*args, **kwargs)
            stages[stage] += self._time() - start
            return result

        with ExitStack() as stack:
            for stage, (path, method) in STAGES.items():
                module = self._model.get_submodule(path)
                # A cascade has several.
                for one in module if isinstance(module, nn.ModuleList) else [module]:
                    stack.enter_context(intercepted(one, method, partial(timed, stage)))
            start = self._time()
            yield
            whole = self._time() - start
        if keep:
            for stage, value in stages.items():
                self._kept[stage].append(value)
            self._kept["decoding, NMS, RLEs and the rest"].append(whole - sum(stages.values()))
            self._kept[self.WHOLE].append(whole)

    def medians(self, batch):
        return {stage: statistics.median(values) / batch for stage, values in self._kept.items()}
