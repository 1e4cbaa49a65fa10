"""Images to detections, end to end, with the share of each stage."""

import statistics
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json

from lvis_tde.modeling.intercept import intercepted
from lvis_tde.modeling.mask_postprocess import postprocess_to_rle

from .common import add_common_arguments, clock, set_up
from .model import VARIANTS, build, calibrate_classifier, make_inputs

__all__ = ["add_arguments", "run"]

STAGES = {
    "backbone": ("backbone", "forward"),
    "proposals": ("proposal_generator", "forward"),
    "box pooling": ("roi_heads.box_pooler", "forward"),
    "box head": ("roi_heads.box_head", "forward"),
    "box predictor, linear layers": ("roi_heads.box_predictor", "forward"),
    "probabilities, decoding, NMS": ("roi_heads.box_predictor", "inference"),
    "mask pooling": ("roi_heads.mask_pooler", "forward"),
    "mask head": ("roi_heads.mask_head", "forward"),
}


def add_arguments(parser):
    """Options of ``benchmark.py inference``."""
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--size", type=int, default=800, help="short edge of the images")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--candidates", type=int, default=100_000, help="per image, calibrated")
    parser.add_argument("--amp", action="store_true", help="autocast to half precision")


def run(args):
    """Median seconds an image of each variant, of each stage, and ratios."""
    setting = set_up(args)
    inputs = make_inputs(args)
    models, candidates = {}, {}
    for variant in VARIANTS:
        model = build(variant, args).eval()
        if models:  # the same weights but for the classifier
            state = next(iter(models.values())).state_dict()
            shared = {k: v for k, v in state.items() if "cls_score" not in k}
            assert not model.load_state_dict(shared, strict=False).unexpected_keys
        candidates[variant] = calibrate_classifier(model, inputs, args.candidates, args.seed)
        models[variant] = model

    clocks = {name: _Clock(model, args) for name, model in models.items()}
    totals, detections, now = defaultdict(list), {}, clock(args)
    amp = torch.autocast(torch.device(args.device).type, enabled=args.amp)
    with torch.no_grad(), amp:
        for repeat in range(args.warmup + args.repeats):
            for name, model in models.items():
                with clocks[name].running(keep=repeat >= args.warmup):
                    outputs = model(inputs)
                masks = clocks[name].last
                start = now()
                for index, output in enumerate(outputs):
                    instances_to_coco_json(output["instances"].to("cpu"), index)
                results = masks + now() - start
                detections[name] = len(outputs[0]["instances"])
                del outputs
                if name == "this project":
                    start = now()
                    for index, raw in enumerate(model.inference(inputs, do_postprocess=False)):
                        size = inputs[index]["height"], inputs[index]["width"]
                        processed = postprocess_to_rle(raw, *size).to("cpu")
                        written = instances_to_coco_json(processed, index)
                        for result, rle in zip(written, processed.pred_masks_rle):
                            result["segmentation"] = rle
                    results = now() - start
                if repeat >= args.warmup:
                    totals["images to detections with pasted masks", name].append(masks)
                    totals["images to results with RLEs", name].append(results)

    seconds = defaultdict(dict)
    for (title, name), values in totals.items():
        seconds[title][name] = statistics.median(values) / args.batch
    stages = {name: timed.medians(args.batch) for name, timed in clocks.items()}
    ours = "this project"
    return {
        "benchmark": f"inference, Mask R-CNN R50-FPN, 1203 classes, {args.size} px",
        **setting,
        "batch": args.batch,
        "amp": args.amp,
        "candidates per image": candidates,
        "detections": detections,
        "seconds an image": dict(seconds),
        "seconds an image by stage": stages,
        "share by stage": {
            name: {stage: value / sum(table.values()) for stage, value in table.items()}
            for name, table in stages.items()
        },
        "ratios": {
            f"{title}: {name} / {ours}": values[name] / values[ours]
            for title, values in seconds.items()
            for name in values
            if name != ours
        },
    }


class _Clock:
    """Times calls of one model, whole and by stage."""

    def __init__(self, model, args):
        self._model, self._seconds = model, clock(args)
        self._cuda = torch.device(args.device).type == "cuda"
        self._kept = defaultdict(list)
        self.last = 0.0

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
                stack.enter_context(intercepted(module, method, partial(timed, stage)))
            start = self._time()
            yield
            self.last = self._time() - start
        if keep:
            for stage, value in stages.items():
                self._kept[stage].append(value)
            self._kept["pasting and the rest"].append(self.last - sum(stages.values()))

    def medians(self, batch):
        return {stage: statistics.median(values) / batch for stage, values in self._kept.items()}
