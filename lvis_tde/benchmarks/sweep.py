"""Nine alphas in one pass over the images, against one evaluation as Detectron2 runs it."""

import logging
from pathlib import Path

from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset

from ..alpha import sweep_alpha
from ..data.synthetic import register_synthetic_lvis
from ..engine import build_evaluator, load_config
from ..sweep import DEFAULT_ALPHAS
from ..trained import load_trained
from .common import add_common_arguments, median_seconds, set_up

__all__ = ["add_arguments", "run"]


def add_arguments(parser):
    """Options of ``benchmark.py sweep``."""
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--demo", default="output/demo", help="folder of a finished demo")
    parser.add_argument("--images", type=int, default=240, help="images of its calibration split")


def run(args):
    """Median seconds of one evaluation, of a sweep, and their ratio."""
    setting = set_up(args)
    # The tables of every evaluation are no part of what is compared.
    logging.getLogger("lvis_tde").setLevel(logging.WARNING)
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    folder = Path(args.demo) / f"seed{args.seed}" / "deconfound"
    names = register_synthetic_lvis(Path(args.demo) / "datasets", seed=args.seed)
    options = ["MODEL.WEIGHTS", str(folder / "model_final.pth"), "MODEL.DEVICE", args.device]
    cfg = load_config(str(folder / "config.yaml"), options)
    model = load_trained(cfg)
    records = DatasetCatalog.get(names["calib"])[: args.images]

    def loader():
        return build_detection_test_loader(cfg, names["calib"], sampler=range(len(records)))

    def evaluator():
        return build_evaluator(cfg, names["calib"], save=False)

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
        "benchmark": f"demo model, {len(records)} images of 128 px, masks, LVIS metrics",
        **setting,
        "seconds": seconds,
        "ratios": {f"{nine} / {one}": seconds[nine] / seconds[one]},
    }
