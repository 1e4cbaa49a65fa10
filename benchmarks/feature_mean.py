"""How the running mean's momentum matters: one training serves all, since none acts on it.

For every candidate: degrees to the mean of the trained model's features, the alpha that is best on
the calibration split, AP there, and AP and APr on val at that alpha.
"""

import itertools
import statistics
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.utils.env import seed_all_rng

from lvis_tde import RunningFeatureMean
from lvis_tde.calibration.alpha import sweep_alpha
from lvis_tde.calibration.estimate import angle_between, estimate_feature_mean
from lvis_tde.data.generated import KINDS
from lvis_tde.engine import Trainer, load_config
from lvis_tde.evaluation.build import build_evaluator
from lvis_tde.modeling.intercept import intercepted

__all__ = ["add_arguments", "run"]

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
CONFIG = Path(__file__).parents[1] / "configs" / "demo_deconfound.yaml"


def add_arguments(parser):
    """Options of ``benchmark.py feature_mean``."""
    parser.add_argument("--set", choices=KINDS, default="glyphs", help="what it is trained on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--momenta", type=float, nargs="+", default=[0.9, 0.99, 0.999, 0.9998])
    parser.add_argument("--batches", type=int, default=240, help="for the precise mean")
    parser.add_argument("--output", default="output/feature_mean", help="data and checkpoints")
    parser.add_argument("opts", nargs="*", help="KEY VALUE of the demo's config")


def run(args):
    """Per candidate what the docstring of this module says, by seed and as the seeds' mean."""
    seeds = {seed: _one_seed(args, seed) for seed in args.seeds}
    names = next(iter(seeds.values()))
    return {
        "benchmark": "momentum of the running mean, demo model with the de-confound classifier",
        **{f"seed {seed}": candidates for seed, candidates in seeds.items()},
        "mean over seeds": {
            name: {
                key: statistics.mean(candidates[name][key] for candidates in seeds.values())
                for key in names[name]
                if key != "alpha"
            }
            for name in names
        },
    }


def _one_seed(args, seed):
    root = Path(args.output)
    kind = KINDS[args.set]
    kind.make(root / "datasets", seed=seed)
    sets = kind.register(root / "datasets", seed=seed)
    DatasetCatalog.get(sets["train"])  # fills in the metadata
    num_classes = len(MetadataCatalog.get(sets["train"]).thing_classes)
    cfg = load_config(
        str(CONFIG),
        [
            "SEED", seed, "OUTPUT_DIR", str(root / f"seed{seed}"), "DATASETS.TEST", (),
            "DATASETS.TRAIN", (sets["train"],), "MODEL.ROI_HEADS.NUM_CLASSES", num_classes,
            *args.opts,
        ],
    )  # fmt: skip
    seed_all_rng(seed)
    torch.set_num_threads(1)
    trainer = Trainer(cfg)
    predictor = trainer.model.roi_heads.box_predictor
    size = predictor.feature_mean.num_features
    candidates = {f"{mu:g}": RunningFeatureMean(size, mu) for mu in args.momenta}
    first = {
        f"{mu:g}, begun at the first batch": RunningFeatureMean(size, mu) for mu in args.momenta
    }

    def update(original, features, mask):
        for mean in candidates.values():
            mean.update(features, mask)
        for mean in first.values():
            if mask.any() and not mean.mean.any():
                mean.mean.copy_(features[mask].mean(0))
            mean.update(features, mask)
        return original(features, mask)

    with intercepted(predictor.feature_mean, "update", update):
        trainer.train()
    model = trainer.model.eval()
    seed_all_rng(seed)
    loader = Trainer.build_train_loader(cfg)
    estimate_feature_mean(model, loader, max_batches=args.batches, tolerance=0)
    precise = predictor.feature_mean.mean.clone()
    means = {name: m.mean for name, m in itertools.chain(candidates.items(), first.items())}
    means[f"precise, {args.batches} batches"] = precise
    return {
        name: {
            "degrees": angle_between(mean, precise, predictor.cls_score.num_heads).mean().item(),
            **_chosen(cfg, model, predictor, sets, mean),
        }
        for name, mean in means.items()
    }


def _chosen(cfg, model, predictor, sets, mean):
    def evaluate(split, alphas):
        return sweep_alpha(
            model,
            build_detection_test_loader(cfg, sets[split]),
            alphas,
            lambda: build_evaluator(cfg, sets[split], save=False),
        )

    predictor.feature_mean.mean.copy_(mean)
    calibration = {a: found["segm"]["AP"] for a, found in evaluate("calib", ALPHAS).items()}
    alpha = max(ALPHAS, key=calibration.get)
    on_val = evaluate("val", [alpha])[alpha]["segm"]
    return {
        "alpha": alpha,
        "AP, calibration": calibration[alpha],
        "AP, val": on_val["AP"],
        "APr, val": on_val["APr"],
    }
