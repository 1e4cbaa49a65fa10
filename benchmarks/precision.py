"""AP of trained models as they are, optimized, and optimized in half precision."""

import logging
from pathlib import Path

import torch
from detectron2.evaluation import inference_on_dataset

from lvis_tde.calibration.checkpoint import load_trained
from lvis_tde.engine import YacsRecipe, load_config
from lvis_tde.engine.trainer import predicting_for
from lvis_tde.modeling.inference_mode import named_dtype, optimize_for_inference

from .sigmoid_parts_runs import Run

__all__ = ["add_arguments", "run"]


def add_arguments(parser):
    """Options of ``benchmark.py precision``."""
    parser.add_argument("--runs", nargs="+", required=True, help="folders of the demo's models")
    parser.add_argument("--datasets", required=True, help="folder of the demo's sets")
    parser.add_argument("--dtypes", nargs="*", default=["", "bfloat16"], help="'' for float32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")


def run(args):
    """AP on val of each run, and what each type changes of it, in points."""
    torch.set_num_threads(args.threads)
    for name in ("lvis_tde", "detectron2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    tables, largest = {}, dict.fromkeys(args.dtypes, 0.0)
    for folder in map(Path, args.runs):
        one = Run.open(folder, args.datasets)
        weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
        recipe = YacsRecipe(load_config(str(folder / "config.yaml"), weights))
        model = load_trained(recipe)
        plain = _metrics(recipe, model, one.names["val"])
        table = tables[f"seed {one.seed}, {one.name}"] = {"as it is": plain}
        for dtype in args.dtypes:
            optimize_for_inference(model, named_dtype(dtype))
            found = _metrics(recipe, model, one.names["val"])
            change = {name: found[name] - value for name, value in plain.items()}
            table[f"{dtype or 'float32'}, optimized: change"] = change
            change = max(abs(change[name]) for name in ("bbox AP", "segm AP"))
            largest[dtype] = max(largest[dtype], change)
    return {**tables, "largest change of AP": {d or "float32": v for d, v in largest.items()}}


def _metrics(recipe, model, dataset):
    evaluator = recipe.evaluator(dataset, save=False)
    with predicting_for(model, [evaluator]):
        found = inference_on_dataset(model, recipe.test_loader(dataset), evaluator)
    names = ("AP", "APr", "APc", "APf")
    return {f"{task} {name}": found[task][name] for task in ("bbox", "segm") for name in names}
