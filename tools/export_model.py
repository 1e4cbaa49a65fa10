#!/usr/bin/env python
"""Export a trained model for one alpha: TorchScript of the detector, ONNX of its box predictors.

Of a classifier of images both are the whole model.

    tools/export_model.py --config-file C --image photo.jpg --output DIR MODEL.WEIGHTS W

The exported files are run on three image sizes and compared with the model before the tool ends.
ONNX needs the packages onnx and onnxruntime; without them it is left out.
"""

import argparse
import importlib.util
import os

from lvis_tde import cli
from lvis_tde.arguments import Parser, add_weight_arguments


def parse_args(argv):
    parser = Parser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="of a model with TDE heads")
    parser.add_argument("--image", required=True, help="a picture with objects the model knows")
    parser.add_argument("--output", default="output/export", help="folder for what it writes")
    parser.add_argument("--alpha", type=float, help="strength of TDE, default: the config's")
    add_weight_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides of the config")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from lvis_tde.calibration.checkpoint import load_trained
    from lvis_tde.engine import check_run, load_recipe, setup_console
    from lvis_tde.export import run_export, run_image_export
    from lvis_tde.layers.functional import check_alpha
    from lvis_tde.modeling import ImageClassifier

    setup_console()
    if args.alpha is not None:
        check_alpha(args.alpha)
    if not os.path.isfile(args.image):
        raise FileNotFoundError(f"--image {args.image} does not exist.")
    recipe = load_recipe(args.config_file, args.opts)
    recipe.partial_weights = args.allow_partial_weights
    recipe.output_dir = args.output
    recipe.use_cpu_without_gpu()
    check_run(recipe)
    onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    model = load_trained(recipe)
    export = run_image_export if isinstance(model, ImageClassifier) else run_export
    cli.wrote(export(model, recipe.prepare, args.image, args.output, alpha=args.alpha, onnx=onnx))
    if not onnx:
        print("ONNX was left out: pip install onnx onnxruntime.")


if __name__ == "__main__":
    cli.run(main)
