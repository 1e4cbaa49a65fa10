#!/usr/bin/env python
"""Export a trained model for one alpha: TorchScript of the detector, ONNX of its box predictors.

Of a classifier of images both are the whole model.

    tools/export_model.py --config-file C --image photo.jpg --output DIR MODEL.WEIGHTS W

The exported files are run on three image sizes and compared with the model before the tool ends.
ONNX needs the packages onnx and onnxruntime; without them it is left out.
"""

import argparse
import importlib.util
from pathlib import Path

from detectron2.utils.logger import setup_logger

from lvis_tde import cli
from lvis_tde.calibration.checkpoint import load_trained
from lvis_tde.engine import load_recipe
from lvis_tde.export import run_export
from lvis_tde.export_images import run_image_export
from lvis_tde.modeling import ImageClassifier


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="of a model with TDE heads")
    parser.add_argument("--image", required=True, help="a picture with objects the model knows")
    parser.add_argument("--output", default="output/export", help="folder for what it writes")
    parser.add_argument("--alpha", type=float, help="strength of TDE, default: the config's")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides of the config")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    setup_logger(name="lvis_tde")
    recipe = load_recipe(args.config_file, args.opts)
    recipe.use_cpu_without_gpu()
    onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    model = load_trained(recipe)
    export = run_image_export if isinstance(model, ImageClassifier) else run_export
    files = export(model, recipe.prepare, args.image, args.output, alpha=args.alpha, onnx=onnx)
    print("Wrote " + ", ".join(str(Path(file)) for file in files))
    if not onnx:
        print("ONNX was left out: pip install onnx onnxruntime.")


if __name__ == "__main__":
    cli.run(main)
