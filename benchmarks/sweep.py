"""Nine alphas, or many settings by boxes, in one pass over the images, against one evaluation."""

import json
import logging
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset

from lvis_tde.arguments import DEFAULT_ALPHAS
from lvis_tde.calibration.alpha import predict_for_alphas, sweep_alpha
from lvis_tde.calibration.checkpoint import load_trained
from lvis_tde.calibration.estimate import estimate_feature_mean
from lvis_tde.calibration.replay import KeptBranches
from lvis_tde.calibration.statistics import gather_class_statistics
from lvis_tde.config import use_tde_on_softmax
from lvis_tde.data.generated import KINDS
from lvis_tde.engine import Trainer, YacsRecipe, load_config
from lvis_tde.evaluation.build import build_evaluator
from lvis_tde.posthoc import Settings

from .common import add_common_arguments, median_seconds, set_up
from .model import build, calibrate_classifier, make_inputs

__all__ = ["add_arguments", "run"]


def add_arguments(parser):
    """Options of ``benchmark.py sweep``."""
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--demo", default="output/demo", help="folder of a finished demo")
    parser.add_argument("--model", default="deconfound", help="of the demo: softmax or deconfound")
    parser.add_argument(
        "--settings",
        type=int,
        default=0,
        help="so many settings of all methods, by boxes, in place of the alphas; at most 40",
    )
    parser.add_argument("--images", type=int, default=240, help="images of its calibration split")
    parser.add_argument(
        "--lvis", action="store_true", help="predictions of an R50-FPN at LVIS settings instead"
    )
    parser.add_argument("--size", type=int, default=800, help="short edge, with --lvis")


def run(args):
    """Median seconds of one evaluation, of a sweep, and their ratio."""
    setting = set_up(args)
    return {**setting, **(_predictions(args) if args.lvis else _evaluations(args))}


def _predictions(args):
    args.batch = 1
    inputs = make_inputs(args)
    model = build("this project", args).eval()
    candidates = calibrate_classifier(model, inputs, 100_000, args.seed)
    one, nine = "one prediction", f"predictions for {len(DEFAULT_ALPHAS)} alphas"
    with torch.no_grad():
        seconds = median_seconds(
            {
                one: lambda: model(inputs),
                nine: lambda: predict_for_alphas(model, inputs, DEFAULT_ALPHAS, rle=True),
            },
            args,
        )
    return {
        "benchmark": f"Mask R-CNN R50-FPN, 1203 classes, {args.size} px, one image",
        "candidates": candidates,
        "seconds": seconds,
        "ratios": {f"{nine} / {one}": seconds[nine] / seconds[one]},
    }


def _evaluations(args):
    # The tables of every evaluation are no part of what is compared.
    logging.getLogger("lvis_tde").setLevel(logging.WARNING)
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    folder = Path(args.demo) / f"seed{args.seed}" / args.model
    made = json.loads((folder.parent / "results.json").read_text("utf-8"))["set"]
    names = KINDS[made["kind"]].register(Path(args.demo) / "datasets", seed=args.seed)
    options = ["MODEL.WEIGHTS", str(folder / "model_final.pth"), "MODEL.DEVICE", args.device]
    cfg = load_config(str(folder / "config.yaml"), options)
    use_tde_on_softmax(cfg)
    model = load_trained(YacsRecipe(cfg))
    records = DatasetCatalog.get(names["calib"])[: args.images]

    def loader():
        return build_detection_test_loader(cfg, names["calib"], sampler=range(len(records)))

    def evaluator():
        return build_evaluator(cfg, names["calib"], save=False)

    if args.settings:
        estimate_feature_mean(model, Trainer.build_train_loader(cfg), max_batches=8, tolerance=0)
        gather_class_statistics(model, cfg.DATASETS.TRAIN)
        return _family(args, model, loader, evaluator, f"{len(records)} images of {made['kind']}")
    one, nine = "one evaluation", f"sweep of {len(DEFAULT_ALPHAS)} alphas"
    seconds = median_seconds(
        {
            one: lambda: inference_on_dataset(model, loader(), evaluator()),
            "sweep of 1 alpha": lambda: sweep_alpha(model, loader(), [1.0], evaluator),
            nine: lambda: sweep_alpha(model, loader(), DEFAULT_ALPHAS, evaluator),
        },
        args,
    )
    return {
        "benchmark": f"demo model, {len(records)} images of {made['kind']}, masks, LVIS metrics",
        "seconds": seconds,
        "ratios": {f"{nine} / {one}": seconds[nine] / seconds[one]},
    }


def _settings(count):
    """The grids of all methods, finer than those of the tool."""
    steps = [
        *(Settings(region=0.25 * i, class_=0.25 * i) for i in range(11)),
        *(Settings(tau_norm=0.25 * i) for i in range(1, 8)),
        *(Settings(logit_adjustment=0.25 * i) for i in range(1, 8)),
        *(Settings(norcal=0.2 * i, background="joint") for i in range(1, 8)),
        *(Settings(fracal=0.5 * i, background="joint") for i in range(1, 7)),
        Settings(logn=1.0, background="joint"),
        Settings(region=0.5, class_=0.5, logit_adjustment=0.5),
    ]
    return steps[:count]


def _family(args, model, loader, evaluator, what):
    tried = _settings(args.settings)

    def sweep(settings):
        kept = KeptBranches(model, loader())
        return sweep_alpha(model, kept, settings, evaluator, boxes_only=settings)

    one, many = "one evaluation, with masks", f"sweep of {len(tried)} settings, by boxes"
    seconds = median_seconds(
        {
            one: lambda: inference_on_dataset(model, loader(), evaluator()),
            "sweep of 1 setting, by boxes": lambda: sweep(tried[:1]),
            many: lambda: sweep(tried),
        },
        args,
    )
    return {
        "benchmark": f"demo model {args.model}, {what}, LVIS metrics",
        "seconds": seconds,
        "ratios": {f"{many} / {one}": seconds[many] / seconds[one]},
    }
